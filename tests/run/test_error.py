"""The one relative error: the same for numpy and torch, and what it makes of odd values."""

import ml_dtypes
import numpy as np
import pytest
import torch

from irprune.run.error import array_error, relative_error

INF = float("inf")
CASES = {
    "equal": ([1.0, -4.0], [1.0, -4.0], 0.0),
    "relative to the largest of theirs": ([1.0, -3.0], [1.0, -4.0], 0.25),
    "zeros": ([0.0, 0.0], [0.0, 0.0], 0.0),
    "not zeros": ([1e-3, 0.0], [0.0, 0.0], 1e9),
    "the same NaN": ([float("nan"), 2.0], [float("nan"), 2.0], 0.0),
    "another NaN": ([float("nan"), 2.0], [2.0, float("nan")], INF),
    "the same infinity": ([INF, 2.0], [INF, 4.0], 0.5),
    "another infinity": ([INF, 2.0], [2.0, 2.0], INF),
    "the other infinity": ([INF], [-INF], INF),
    "shape": ([1.0], [1.0, 1.0], INF),
    "none": ([], [], 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_numpy_and_torch_agree(name):
    ours, theirs, want = CASES[name]
    arrays = np.array(ours), np.array(theirs)
    assert array_error(*arrays) == pytest.approx(want)
    assert array_error(*map(torch.tensor, (ours, theirs))) == pytest.approx(want)
    assert array_error(arrays[0], torch.tensor(theirs)) == pytest.approx(want)


def test_every_kind_of_element():
    assert array_error(np.array([True, False]), np.array([True, True])) == 1.0
    assert array_error(np.array([3, 250], np.uint8), np.array([253, 250], np.uint8)) > 0.9
    assert array_error(np.array([1 + 1j]), np.array([1 - 1j])) == pytest.approx(2**0.5)
    assert array_error(torch.tensor([1 + 1j]).conj(), torch.tensor([1 - 1j])) == 0.0
    assert array_error(np.array(["a", "b"], object), np.array(["a", "b"], object)) == 0.0
    assert array_error(np.array(["a", "b"], object), np.array(["a", "c"], object)) == INF
    half = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert array_error(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), half) == 0.0
    assert array_error(torch.tensor([1.0, 3.0], dtype=torch.bfloat16), half) == 0.5


def test_the_worst_of_all_outputs():
    one, two = [np.array([1.0]), np.array([10.0])], [np.array([1.0]), np.array([8.0])]
    assert relative_error(one, two) == 0.25
    assert relative_error([], []) == 0.0
    with pytest.raises(ValueError, match="zip"):
        relative_error(one, two[:1])
