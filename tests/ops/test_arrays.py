"""The arrays of weights: numpy's and torch's, each as the other, with the same elements."""

import ml_dtypes
import numpy as np
import pytest
import torch

from irprune.ir.dtype import ELEMENT_TYPES, numpy_dtype
from irprune.ops.arrays import as_numpy, as_tensor, is_meta, is_tensor, like
from irprune.ops.dtypes import TO_TORCH

NUMBERS = [0, 1, 1, 0]


@pytest.mark.parametrize("name", TO_TORCH)
def test_there_and_back_keeps_type_and_numbers(name):
    array = np.array(NUMBERS).astype(numpy_dtype(name))
    tensor = as_tensor(array)
    assert tensor.dtype == TO_TORCH[name]
    again = as_numpy(tensor)
    assert again.dtype == array.dtype == ELEMENT_TYPES[name].numpy()
    assert again.tobytes() == array.tobytes()


def test_no_copy_where_it_can_be():
    array = np.zeros(3, np.float32)
    as_tensor(array)[0] = 2.0
    as_numpy(as_tensor(array))[1] = 3.0
    assert array.tolist() == [2.0, 3.0, 0.0]


def test_a_read_only_array_is_copied():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    as_tensor(array)[0] = 1.0
    assert not array.any()


def test_what_takes_gradients_is_detached():
    held = torch.nn.Parameter(torch.ones(2))
    assert not as_tensor(held).requires_grad and as_numpy(held).tolist() == [1, 1]


def test_what_an_array_is():
    empty = torch.empty(3, device="meta")
    assert is_tensor(empty) and is_meta(empty)
    assert is_tensor(torch.ones(1)) and not is_meta(torch.ones(1))
    assert not is_tensor(np.ones(1)) and not is_meta(np.ones(1)) and not is_meta(np.float32(1))


def test_numbers_like_an_array():
    made = like(torch.ones(2, dtype=torch.bfloat16), np.array([1.5, 2.0]))
    assert made.dtype == torch.bfloat16 and made.tolist() == [1.5, 2.0]
    made = like(np.ones(2, ml_dtypes.bfloat16), np.array([1.5, 2.0]))
    assert made.dtype == ml_dtypes.bfloat16 and made.tolist() == [1.5, 2.0]
