"""Products with a stored matrix as two products with thinner ones, as ONNX spells them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["as_two", "has_form_as_two"]

_FORMS = ("Gemm", "MatMul", "Conv")


def has_form_as_two(target: str) -> bool:
    """Whether ``as_two`` knows the operator ``target``."""
    return target in _FORMS


def as_two(node: onnx.NodeProto, weight: str, own: str, other: str) -> list[onnx.NodeProto]:
    """``node`` as two that read ``own`` and ``other`` in the place of ``weight``: the first keeps
    its attributes, the second its bias and its result."""
    import onnx

    at = list(node.input).index(weight)
    between = f"{node.output[0]}.0"
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(node)
    second.CopyFrom(node)
    first.name = f"{node.name}.0" if node.name else ""
    del first.input[2:], first.output[:]
    first.output.append(between)
    del second.attribute[:], second.input[:]
    kept = [a for a in node.attribute if a.name == "transB"]
    if node.op_type == "MatMul" and at == 0:  # the weight from the left, [o, k] times [k, n]
        first.input[0] = own
        second.input.extend([other, between])
    else:
        first.input[1] = own
        second.input.extend([between, other, *list(node.input)[2:]])
        second.attribute.extend(kept)
    return [first, second]
