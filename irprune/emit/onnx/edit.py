"""Edits of an ONNX node: attributes, constant inputs, sizes computed where they are known only at
run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from irprune.errors import IrpruneError
from irprune.frontend.onnx.order import target_of
from irprune.frontend.onnx.proto import attributes
from irprune.frontend.onnx.source import OnnxSource
from irprune.ir.dtype import TO_ONNX, numpy_dtype
from irprune.ir.size import Size, Sym, same
from irprune.ops.onnx.importer import OF_SIZES

__all__ = ["NodeEdit", "SizeNodes", "tensor_of"]


def tensor_of(
    name: str, array: NDArray[Any], like: onnx.TensorProto | None = None
) -> onnx.TensorProto:
    """``array`` as a tensor of the model; doc string and metadata are those of ``like``."""
    made = numpy_helper.from_array(np.ascontiguousarray(array) if array.ndim else array, name)
    if like is not None:
        made.doc_string = like.doc_string
        made.metadata_props.extend(like.metadata_props)
        if made.data_type != like.data_type:
            raise IrpruneError(
                f"'{name}' changed its element type from {like.data_type} to {made.data_type}"
            )
    return made


class Model(Protocol):
    """The model that is being emitted, as far as the edit of one node needs it."""

    nodes: list[onnx.NodeProto]
    source: OnnxSource
    original: onnx.ModelProto
    size_nodes: SizeNodes

    def now(self, name: str) -> NDArray[Any] | None:
        """What the tensor ``name`` holds now; None where it is not known."""

    def constant(self, name: str, array: NDArray[Any], index: int, slot: int) -> str:
        """The name of a tensor that holds ``array``, for input ``slot`` of node ``index``, which
        read ``name``."""


class NodeEdit:
    """What a writer may do to node ``index`` of the model that is being emitted."""

    def __init__(self, emitter: Model, index: int) -> None:
        self.emitter, self.index = emitter, index
        self.node = emitter.nodes[index]
        self.target = target_of(self.node)
        self.opset = emitter.source.opset(self.node.domain)
        self.attrs: Mapping[str, Any] = attributes(self.node)

    def given(self, i: int) -> bool:
        """Whether input ``i`` is there."""
        return i < len(self.node.input) and bool(self.node.input[i])

    def value(self, i: int) -> list[Size] | None:
        """What input ``i`` holds now, as a list; None where it is not known."""
        array = self.emitter.now(self.node.input[i]) if self.given(i) else None
        return None if array is None else array.reshape(-1).tolist()

    def dtype(self, i: int) -> str:
        """The element type of input ``i``."""
        return self.emitter.source.types[
            self.emitter.original.graph.node[self.index].input[i]
        ].dtype

    def sizes(self, i: int, dims: Sequence[int]) -> list[Size]:
        """Sizes of input ``i`` before pruning."""
        shape = self.emitter.source.types[
            self.emitter.original.graph.node[self.index].input[i]
        ].known
        return [shape[d] for d in dims]

    def attr(self, name: str, value: Any) -> None:
        """Set an attribute; None takes it away."""
        kept = [a for a in self.node.attribute if a.name != name]
        at = next((k for k, a in enumerate(self.node.attribute) if a.name == name), len(kept))
        if value is not None:
            kept.insert(at, helper.make_attribute(name, value))
        made = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del self.node.attribute[:]
        self.node.attribute.extend(made)

    def become(self, target: str) -> None:
        """Make it operator ``target``, which takes its first input alone and no attributes."""
        self.node.op_type = target
        del self.node.attribute[:], self.node.input[1:]

    def moved(self, name: str, i: int, since: int, value: Sequence[Size]) -> None:
        """Attribute ``name`` before opset ``since``, input ``i`` from then on."""
        if self.opset >= since:
            self.input(i, value)
        elif any(isinstance(v, Sym) for v in value):
            raise IrpruneError(
                f"{self.target} of opset {self.opset} cannot hold a size known only at run time",
                self.node.name,
                "convert it to a newer opset",
            )
        else:
            self.attr(name, [int(v) for v in value])  # type: ignore[arg-type]

    def input(self, i: int, value: Sequence[Size]) -> None:
        """Let input ``i`` hold ``value``, in the element type that it has (int64 where it is not
        given); left alone where it does."""
        now = self.value(i)
        if (
            now is not None
            and len(now) == len(value)
            and all(_equal(a, b) for a, b in zip(now, value, strict=True))
        ):
            return
        dtype = self.dtype(i) if self.given(i) else "i64"
        while len(self.node.input) <= i:
            self.node.input.append("")
        if any(isinstance(v, Sym) for v in value):
            self.node.input[i] = self.emitter.size_nodes.vector(
                list(value),
                self.index,
                self.node.input[i] or f"{self.node.output[0]}_sizes",
                dtype,
            )
            return
        array = np.array(value, numpy_dtype(dtype))
        self.node.input[i] = self.emitter.constant(self.node.input[i], array, self.index, i)


def _equal(a: Any, b: Any) -> bool:
    return same(a, b) if isinstance(a, (int, Sym)) and isinstance(b, (int, Sym)) else bool(a == b)


class SizeNodes:
    """Nodes that compute sizes from the shapes of the model's inputs, each symbol once."""

    def __init__(
        self,
        fresh: Callable[[str], str],
        add: Callable[[int, onnx.NodeProto], None],
        constant: Callable[[str, NDArray[Any]], str],
        symbols: Mapping[str, tuple[str, int]],
    ) -> None:
        self.fresh, self.add, self.constant, self.symbols = fresh, add, constant, symbols

    def vector(self, values: Sequence[Size], before: int, hint: str, dtype: str = "i64") -> str:
        """The name of a vector of ``values`` with elements ``dtype``, computed before node
        ``before``."""
        if dtype != "i64":
            whole = self.vector(values, before, hint)
            return self._node("Cast", [whole], before, hint, to=TO_ONNX[dtype])
        pieces: list[str] = []
        run: list[int] = []
        for v in [*values, None]:
            if isinstance(v, int):
                run.append(v)
                continue
            if run:
                pieces.append(self.constant(f"{hint}_part", np.array(run, np.int64)))
                run = []
            if v is not None:
                pieces.append(self._compile(v, before, hint))
        if len(pieces) == 1:
            return pieces[0]
        return self._node("Concat", pieces, before, hint, axis=0)

    def _node(self, kind: str, inputs: list[str], before: int, hint: str, **attrs: Any) -> str:
        name = self.fresh(hint)
        self.add(before, helper.make_node(kind, inputs, [name], name=name, **attrs))
        return name

    def _compile(self, size: Sym | int | float | str, before: int, hint: str) -> str:
        if isinstance(size, int):
            return self.constant(f"{hint}_part", np.array([size], np.int64))
        if isinstance(size, Sym) and size.name in self.symbols:
            value, dim = self.symbols[size.name]
            shape = self._node("Shape", [value], before, f"{hint}_shape")
            return self._node(
                "Gather",
                [shape, self.constant(f"{hint}_dim", np.array([dim], np.int64))],
                before,
                f"{hint}_{size.name}",
                axis=0,
            )
        if isinstance(size, Sym) and size.op in OF_SIZES:
            operands = [self._compile(a, before, hint) for a in size.args]
            return self._node(OF_SIZES[size.op], operands, before, hint)
        raise IrpruneError(
            f"a size that depends on '{size}' cannot be written",
            hint,
            "export the model with static shapes",
        )
