"""Random inputs come from one source: by seed, of the type, within what they index."""

import numpy as np
import pytest

from irprune.ir.dtype import ELEMENT_TYPES
from irprune.ir.parse import from_text
from irprune.run.inputs import drawn, index_limits, random_inputs

TEXT = """graph g {
  %ids: i64[n, 5] = input
  %mask: bool[n, 5] = input
  %x: f16[n, 5, 4] = input
  %table: f32[7, 4] = parameter

  %turned: i64[5, n] = permute(%ids) {dims=[1, 0]}
  %rows: f32[5, n, 4] = embedding(%table, %turned)
  return %rows, %mask, %x
}
"""


@pytest.mark.parametrize("name", [n for n, t in ELEMENT_TYPES.items() if t.torch])
def test_every_type_is_drawn(name):
    made = drawn(np.random.default_rng(0), (64,), name)
    assert made.dtype == ELEMENT_TYPES[name].numpy() and made.shape == (64,)
    assert len(set(made.astype(np.complex128).tolist())) > 1
    assert drawn(np.random.default_rng(0), (64,), name).tobytes() == made.tobytes()


def test_ranges():
    generator = np.random.default_rng(0)
    below = drawn(generator, (200,), "i64", limit=3)
    assert set(below.tolist()) == {0, 1, 2}
    within = drawn(generator, (200,), "f32", within=(2.0, 3.0))
    assert within.min() >= 2 and within.max() <= 3 and within.std() > 0.2


def test_inputs_of_a_graph():
    graph = from_text(TEXT)
    assert {v.name: n for v, n in index_limits(graph).items() if v in graph.inputs} == {"ids": 7}
    made = random_inputs(graph, {"n": 40}, seed=3)
    assert {k: (v.shape, str(v.dtype)) for k, v in made.items()} == {
        "ids": ((40, 5), "int64"),
        "mask": ((40, 5), "bool"),
        "x": ((40, 5, 4), "float16"),
    }
    assert made["ids"].min() >= 0 and 2 < made["ids"].max() < 7
    again = random_inputs(graph, {"n": 40}, seed=3)
    assert all(np.array_equal(made[k], again[k]) for k in made)
    assert random_inputs(graph)["ids"].shape == (2, 5)
