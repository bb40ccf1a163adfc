"""What the rules that write other nodes in the place of one see of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from irprune.ops.onnx.float_forms import Uncovered

__all__ = ["RuleNode"]


class RuleNode:
    """One node of a file.

    Args:
        node: The message.
        opset: The version of ai.onnx that the file imports.
        sizes: The shapes of tensors that are known, by name.
    """

    def __init__(
        self, node: onnx.NodeProto, opset: int, sizes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.node, self.opset, self.sizes = node, opset, sizes
        self.attrs: Mapping[str, Any] = {
            a.name: helper.get_attribute_value(a) for a in node.attribute
        }

    def name(self, i: int) -> str:
        """Input ``i`` as it is in the file; "" where it is not given."""
        return str(self.node.input[i]) if i < len(self.node.input) else ""

    def dims(self, i: int) -> tuple[int, ...]:
        """The shape of input ``i``. Raises Uncovered where it is not known."""
        if self.name(i) not in self.sizes:
            raise Uncovered("a shape that is not known")
        return self.sizes[self.name(i)]
