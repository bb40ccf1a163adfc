"""A kernel that several layers of a file read: cut where that makes the file smaller, left whole
where the copy would be larger than what is taken away."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx_models import info, model_of, node, shapes, tensor

import irprune
from irprune.emit.onnx.emitter import emit_onnx
from irprune.errors import IrpruneError


def shared_kernel(after: int) -> onnx.ModelProto:
    """Three strided convolutions by one kernel of 32 * 64 numbers; two of them are outputs, and
    ``after`` channels are made of the third."""
    nodes = [
        node("Conv", "x k", f"c{j}", kernel_shape=[64], strides=[2 << j], pads=[32, 32])
        for j in range(3)
    ]
    nodes += [node("Relu", "c2", "r"), node("Conv", "r w", "y", kernel_shape=[1])]
    return model_of(
        nodes,
        [info("x", 1, 1, 512)],
        [info("y", 1, after, 65), info("c0", 1, 32, 257), info("c1", 1, 32, 129)],
        [tensor("k", 32, 1, 64), tensor("w", after, 32, 1)],
    )


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"ratio": 0.1}, {"budget": {"macs": 0.9}}])
def test_a_copy_that_is_larger_than_what_it_saves_is_not_made(options: dict[str, Any]) -> None:
    if "budget" in options:
        with pytest.raises(IrpruneError, match="cannot be met"):
            irprune.prune(shared_kernel(4), **options)
        return
    pruned = irprune.prune(shared_kernel(4), **options)
    assert pruned.report.params.after == pruned.report.params.before == 32 * 64 + 4 * 32
    (group,) = [g for g in pruned.report.groups if g.size == 32]
    assert group.kept == 32 and "copy of 'k'" in group.reason


def test_a_copy_that_pays_is_made() -> None:
    """The layer behind it loses 16 * 512 numbers, the copy has 16 * 64."""
    model = shared_kernel(512)
    pruned = irprune.prune(model, ratio=0.5)
    assert pruned.report.params.before == 32 * 64 + 512 * 32
    assert pruned.report.params.after == 32 * 64 + 16 * 64 + 512 * 16
    assert shapes(emit_onnx(pruned.cut))["w"] == (512, 16, 1)
