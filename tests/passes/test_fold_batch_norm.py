"""Batch norms become part of the layer before them, where nobody else reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pass_checks import check, filled, pipeline

NORMS = """\
graph g {
  %x: f32[2, 4, 6, 6] = input
  %conv.weight: f32[8, 2, 3, 3] = parameter
  %norm.weight: f32[8] = parameter
  %norm.bias: f32[8] = parameter
  %norm.mean: f32[8] = buffer
  %norm.var: f32[8] = buffer
  %up.weight: f32[8, 3, 2, 2] = parameter
  %up.bias: f32[6] = parameter
  %up.mean: f32[6] = buffer
  %up.var: f32[6] = buffer
  %fc.weight: f32[5, 6] = parameter
  %fc.bias: f32[5] = parameter {aliases=["other.bias"]}
  %fc.mean: f32[5] = buffer
  %fc.var: f32[5] = buffer

  %c: f32[2, 8, 4, 4] = conv(%x, %conv.weight) {stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=2}
  %n: f32[2, 8, 4, 4] = batch_norm(%c, %norm.weight, %norm.bias, %norm.mean, %norm.var) {training=False, momentum=0.1, eps=0.001}
  %u: f32[2, 6, 8, 8] = conv_transpose(%n, %up.weight, %up.bias) {stride=[2, 2], padding=[0, 0], output_padding=[0, 0], groups=2}
  %m: f32[2, 6, 8, 8] = batch_norm(%u, -, -, %up.mean, %up.var) {training=False, momentum=0.1, eps=0.001}
  %p: f32[2, 6] = mean(%m) {dim=[2, 3], keepdim=False}
  %f: f32[2, 5] = linear(%p, %fc.weight, %fc.bias)
  %y: f32[2, 5] = batch_norm(%f, -, -, %fc.mean, %fc.var) {training=False, momentum=0.1, eps=0.001}
  return %y
}
"""


def test_fold_batch_norm_multiplies_it_into_the_layer_before() -> None:
    graph = check(
        "fold-batch-norm,dead-code",
        NORMS,
        """\
graph g {
  %x: f32[2, 4, 6, 6] = input
  %conv.weight: f32[8, 2, 3, 3] = parameter
  %up.weight: f32[8, 3, 2, 2] = parameter
  %up.bias: f32[6] = parameter
  %fc.weight: f32[5, 6] = parameter
  %conv.bias: f32[8] = parameter
  %fc.bias.folded1: f32[5] = parameter

  %c: f32[2, 8, 4, 4] = conv(%x, %conv.weight, %conv.bias) {stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=2}
  %u: f32[2, 6, 8, 8] = conv_transpose(%c, %up.weight, %up.bias) {stride=[2, 2], padding=[0, 0], output_padding=[0, 0], groups=2}
  %p: f32[2, 6] = mean(%u) {dim=[2, 3], keepdim=False}
  %f: f32[2, 5] = linear(%p, %fc.weight, %fc.bias.folded1)
  return %f
}
""",
    )
    assert graph.weights["conv.bias"].load().dtype == torch.float32
    twin = filled(NORMS, as_numpy=True)
    pipeline(twin, "fold-batch-norm")
    for name in ("conv.weight", "conv.bias", "up.weight", "fc.weight"):
        array = twin.weights[name].load()
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        np.testing.assert_array_equal(array, graph.weights[name].load().numpy())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            ("%m: f32[2, 6, 8, 8] = batch_norm(%u", "%m: f32[2, 6, 8, 8] = batch_norm(%u2"),
            "another reader stands between",
        ),
        (
            (
                "training=False, momentum=0.1, eps=0.001}\n  %u",
                "training=True, momentum=0.1, eps=0.001}\n  %u",
            ),
            "it is training",
        ),
        (("return %y", "return %y, %c"), "the layer's own result is returned"),
        (
            (
                "%p: f32[2, 6] = mean(%m)",
                "%q: f32[2, 8, 4, 4] = relu(%c)\n  %p: f32[2, 6] = mean(%m)",
            ),
            "the layer's own result is read",
        ),
    ],
)
def test_fold_batch_norm_leaves_what_it_may_not_touch(change: tuple[str, str], why: str) -> None:
    assert change[0] in NORMS
    text = NORMS.replace(*change)
    if "%u2" in text:
        text = text.replace("  %m:", "  %u2: f32[2, 6, 8, 8] = relu(%u)\n  %m:")
    graph = filled(text)
    pipeline(graph, "fold-batch-norm")
    assert sum(n.op == "batch_norm" for n in graph.nodes) == 1, why


def test_a_weight_that_others_read_is_folded_into_a_copy() -> None:
    conv = next(line for line in NORMS.splitlines() if "%c:" in line)
    text = NORMS.replace("  return %y", conv.replace("%c:", "%k:") + "\n  return %y, %k")
    graph = filled(text)
    plain = graph.weights["conv.weight"].load()
    pipeline(graph, "fold-batch-norm")
    assert graph.nodes[0].inputs[1] is graph.weights["conv.weight.folded1"]
    assert graph.weights["conv.weight"].load() is plain


def test_folding_an_analysed_graph_keeps_its_axes() -> None:
    graph = filled(NORMS)
    assert pipeline(graph, "infer-axes,fold-batch-norm,dead-code")
    assert "%conv.bias: f32[(2 c0)]" in str(graph) or "%conv.bias: f32[(c0 c1)]" in str(graph)
    twin = filled(NORMS)
    pipeline(twin, "fold-batch-norm,dead-code,infer-axes")
    assert str(twin) == str(graph)
