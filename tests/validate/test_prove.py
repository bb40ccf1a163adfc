"""One proof for models and files: what both share, and that each finds a planted fault."""

import numpy as np
import pytest
import torch
from torch import nn

import irprune
from irprune.driver.pipelines import cut_graph
from irprune.errors import IrpruneError
from irprune.ir.graph import TensorType, Weight
from irprune.ir.parse import from_text
from irprune.validate.proof_result import is_constant
from irprune.validate.prove import prove_cut
from irprune.validate.random_weights import with_random_numbers


def pruned_both_ways(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    whole = irprune.prune(net, (torch.randn(4, 6),), proof=False)
    file = irprune.prune(net, (torch.randn(4, 6),), ratio=0.01, proof=False).onnx(
        tmp_path / "m.onnx"
    )
    return whole, irprune.prune(str(file), proof=False)


def proof_of(pruned):
    return prove_cut(pruned.graph, pruned.cut, lambda: pruned.module, lambda: torch.device("cpu"))


def test_a_right_cut_is_proven_and_a_wrong_one_is_not(tmp_path):
    for pruned in pruned_both_ways(tmp_path):
        assert proof_of(pruned).passed
        weight = next(w for w in pruned.cut.weights.values() if w.rank == 2)
        held = weight.load()
        weight.load = lambda held=held: held * 1.01
        pruned._module = None
        assert not proof_of(pruned).passed, pruned.graph.source.dialect


def test_a_graph_that_came_from_no_model_has_no_proof():
    graph = from_text(
        "graph g {\n  %x: f32[2] = input\n\n  %y: f32[2] = relu(%x)\n  return %y\n}\n"
    )
    with pytest.raises(IrpruneError, match="came from no model"):
        prove_cut(graph, graph, lambda: nn.Identity(), lambda: torch.device("cpu"))


def test_weights_without_values_have_no_proof():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pruned = irprune.prune(
        net, (torch.empty(4, 6, device="meta"),), importance="uniform", proof=False
    )
    assert cut_graph(pruned.graph) is not None and proof_of(pruned) is None


@pytest.mark.parametrize("of", [np.asarray, torch.tensor])
def test_outputs_that_do_not_vary(of):
    assert is_constant([of([2.0, 2.0]), of([1, 2])])
    assert not is_constant([of([2.0, 2.5]), of([1, 1])])
    assert is_constant([of([0.0])]) and not is_constant([of([3.0])])
    assert is_constant([of([1, 1])]) and not is_constant([of([1, 2])])
    assert not is_constant([of([1, 1])], integers=False)
    assert not is_constant([of([0.0])], integers=False)
    assert is_constant([of([2.0, 2.0])], integers=False)


def test_random_numbers_take_the_place_of_a_constant():
    weight = Weight("w", TensorType("f32", (64, 32)), lambda: None)
    zeros, ones = np.zeros((64, 32), np.float32), np.ones((64, 32), np.float32)
    made = with_random_numbers(weight, ones, 3)
    assert made.dtype == np.float32 and abs(made.mean()) < 0.05 and made.std() > 0.1
    assert np.array_equal(made, with_random_numbers(weight, zeros, 3))
    assert not np.array_equal(made, with_random_numbers(weight, zeros, 4))
    ramp = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    assert np.allclose(with_random_numbers(weight, ramp, 3) - ramp, made, atol=1e-3)


def test_scales_and_variances_stay_positive():
    text = """graph g {
  %x: f32[2, 16, 4] = input
  %w: f32[16] = parameter
  %b: f32[16] = parameter
  %m: f32[16] = buffer
  %v: f32[16] = buffer

  %y: f32[2, 16, 4] = batch_norm(%x, %w, %b, %m, %v) {training=False, momentum=0.1, eps=1e-05}
  return %y
}
"""
    weights = from_text(text).weights
    zeros = np.zeros(16, np.float32)
    made = {k: with_random_numbers(w, zeros, 0) for k, w in weights.items()}
    assert made["w"].min() > 0 and made["v"].min() > 0
    assert abs(made["w"].mean() - 1) < 0.2 and abs(made["b"].mean()) < 0.2
