"""Sequences and optional values: lists in torch. Their parts are told apart at run time, so nothing
in them may change size."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ops.onnx.importer import OnnxNode, Step, runs, spell
from irprune.ops.registry import TABLE, Unsupported
from irprune.ops.registry import op as declare

__all__ = ["OPTIONAL", "SEQUENCE"]

op = partial(declare, family="sequences")

SEQUENCE, OPTIONAL = "sequence_type", "optional_type"


def _refuse(axes: Axes, node: Node) -> None:
    raise Unsupported("part of a sequence")


def _read(name: str, *attrs: tuple[str, object]) -> object:
    def read(node: OnnxNode) -> Step:
        kinds = node.inferred()
        if name in ("sequence_of", "sequence_split", "sequence_with", "sequence_without"):
            kinds = [TensorType(SEQUENCE, None)]
        return Step(name, None, {k: node.attrs.get(k, d) for k, d in attrs}, kinds)

    return read


for _name, _onnx, _attrs in (
    ("sequence_of", "SequenceConstruct", ()),
    ("sequence_of", "SequenceEmpty", ()),
    ("sequence_with", "SequenceInsert", ()),
    ("sequence_without", "SequenceErase", ()),
    ("sequence_at", "SequenceAt", ()),
    ("sequence_length", "SequenceLength", ()),
    ("sequence_joined", "ConcatFromSequence", (("axis", 0), ("new_axis", 0))),
    ("sequence_split", "SplitToSequence", (("axis", 0), ("keepdims", 1))),
    ("optional", "Optional", ()),
    ("optional_has", "OptionalHasElement", ()),
    ("optional", "OptionalGetElement", ()),
):
    if _name not in TABLE:
        op(_name, _refuse, run=runs(_name))
    spell(_name, _onnx, read=_read(_name, *_attrs))  # type: ignore[arg-type]
