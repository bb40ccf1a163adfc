"""The oracle for ONNX: the file that came in, uncut, with dropped channels silenced where they are
consumed, on onnxruntime.

It shares nothing with slicing and nothing with torch: before each contraction, norm, softmax or
mean of the original model stand nodes that take out what was dropped. If the cut was right, the cut
model computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from irprune.emit.onnx.file import without_arrays
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.reader import nodes_of
from irprune.frontend.onnx.source import NodePlace, OnnxSource, onnx_source
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.selection import Selection
from irprune.ir.size import Size, Sym, UnboundSymbol, evaluate
from irprune.ops.onnx.recorder import Recorder, Tensor, Untraced
from irprune.ops.registry import lookup
from irprune.validate.onnx_forced_branches import take_branches
from irprune.validate.onnx_run import run_model

__all__ = ["silenced_model", "silenced_onnx"]

Array = NDArray[Any]


def silenced_onnx(graph: Graph, kept: Selection, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs of the original model of the analysed ``graph`` with everything that ``kept``
    drops silenced.

    Raises IrpruneError where an operator that mixes what is dropped has no ONNX form of its
    silencing."""
    model, data = silenced_model(graph, kept, inputs)
    return run_model(model, inputs, optimise=False, data=data)


def silenced_model(
    graph: Graph,
    kept: Selection,
    inputs: Mapping[str, Array],
    asked: dict[Node, set[Axis]] | None = None,
) -> tuple[onnx.ModelProto, dict[str, Loader]]:
    """The model that ``silenced_onnx`` runs, the original with silencing nodes for inputs of these
    shapes, and the tensors that lie apart from it. ``asked`` gets, for each node that is silenced,
    the dropped axes that it sums over or mixes."""
    source = onnx_source(graph)
    symbols = {
        s.name: int(n)
        for v in graph.inputs
        for s, n in zip(v.shape, inputs[v.name].shape, strict=True)
        if isinstance(s, Sym) and s.name
    }
    return _Oracle(source, kept, symbols, {} if asked is None else asked).build(graph)


class _Oracle:
    def __init__(
        self,
        source: OnnxSource,
        kept: Selection,
        symbols: Mapping[str, int],
        asked: dict[Node, set[Axis]],
    ) -> None:
        self.source, self.kept, self.symbols, self.asked = source, kept, symbols, asked

    def build(self, graph: Graph) -> tuple[onnx.ModelProto, dict[str, Loader]]:
        original = self.source.model
        model = onnx.ModelProto()
        model.CopyFrom(original)
        data = {}
        for t in model.graph.initializer:
            if t.data_location == onnx.TensorProto.EXTERNAL:
                data[t.name] = self.source.files.loader(t)
                t.CopyFrom(without_arrays(t.name, t.data_type, tuple(t.dims)))
        del model.graph.node[:]
        steps: dict[int, list[tuple[Node, NodePlace]]] = {}
        for node, place in nodes_of(graph):
            steps.setdefault(place.index, []).append((node, place))
        for index, proto in enumerate(original.graph.node):
            many = steps.get(index, [])
            silent = [(n, p) for n, p in many if self._mixes(n)]
            if not silent:
                model.graph.node.append(proto)
                continue
            if len(silent) > 1:
                raise _mixed(proto)
            recorder = self._record(index, proto, many, *silent[0])
            model.graph.node.extend(recorder.nodes)
            model.graph.initializer.extend(
                numpy_helper.from_array(a, name) for name, a in recorder.constants.items()
            )
            if model.ir_version < 4:
                model.ir_version = 4
        take_branches(model, graph)
        return model, data

    def _mixes(self, node: Node) -> bool:
        """Whether dropped indices reach an operator whose value could depend on them."""
        entry = lookup(node)
        if entry is None or (entry.silence is None and entry.signature is None):
            return False
        return any(self.kept.changes(a) for v in node.inputs if v is not None for a in v.axes or ())

    def _record(
        self,
        index: int,
        proto: onnx.NodeProto,
        steps: Sequence[tuple[Node, NodePlace]],
        node: Node,
        place: NodePlace,
    ) -> Recorder:
        """``proto`` with what its step ``node`` would read of dropped indices taken out.

        What the steps before make of the first input is not there to be silenced, so that input is,
        which is the same where those steps leave the silenced dimensions alone."""
        recorder = Recorder(f"silent.{index}.", self.source.opset(""))
        entry = lookup(node)
        assert entry is not None
        lead = [n for n, p in steps if p.step < place.step]
        source = steps[0][1].operands[0] if lead else None
        slots = [
            source if j is None and v is not None else j
            for v, j in zip(node.inputs, place.operands, strict=False)
        ]
        if any(j is None and v is not None for v, j in zip(node.inputs, slots, strict=False)):
            raise _mixed(proto)
        before = lead[0].operand(0) if lead else None
        made: list[Tensor] = []

        def stands_for(i: int, value: Value) -> Value:
            return before if before is not None and place.operands[i] is None else value

        given = [
            None
            if v is None or j is None
            else Tensor(recorder, self._shape(stands_for(i, v)), v.dtype, proto.input[j])
            for i, (v, j) in enumerate(zip(node.inputs, slots, strict=False))
        ]

        def run(*operands: Tensor | None) -> Any:
            twin = onnx.NodeProto()
            twin.CopyFrom(proto)
            for x, j in zip(operands, slots, strict=False):
                if j is not None and x is not None:
                    twin.input[j] = recorder.named(x)
            made[:] = [
                Tensor(recorder, self._shape(v), v.dtype, recorder.fresh())
                for v in steps[-1][0].outputs
            ]
            for k, t in enumerate(made):
                if proto.output[k]:
                    twin.output[k] = t.name
            recorder.nodes.append(twin)
            return list(made) if len(made) > 1 else made[0]

        def present(value: Value, dims: Sequence[int]) -> Tensor | None:
            mask = self._mask(value, dims)
            axes = [leaf for d in dims for leaf in leaves((value.axes or ())[d])]
            met = self.asked.setdefault(node, set())
            met.update(find(leaf) for leaf in axes if self.kept.changes(leaf))
            if mask is not None and lead and any(v is value for v in lead[-1].outputs):
                assert before is not None
                if any(self.kept.changes((value.axes or ())[d]) for d in dims) and not _passes(
                    before, value, [d for d in dims if mask.shape[d] != 1]
                ):
                    raise _mixed(proto)
            return None if mask is None else recorder.constant(mask, "bool")

        try:
            if entry.silence is not None:
                result = entry.silence(recorder, node, given, present, run)
            else:
                operands = list(given)
                for i, dims in entry.signature.contracted(node).items():  # type: ignore[union-attr]
                    mask, x = present(node.operand(i), [d for d, _ in dims]), operands[i]
                    if mask is not None and x is not None:
                        operands[i] = recorder.where(mask, x, recorder.zeros((), dtype=x.dtype))
                result = run(*operands)
        except Untraced as what:
            raise IrpruneError(
                f"the oracle cannot write how {proto.op_type} is silenced: {what} has no ONNX form",
                proto.name or proto.output[0],
            ) from what
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        if len(steps) > 1 and any(x is not y for x, y in zip(results, made, strict=True)):
            raise _mixed(proto)  # what the step makes itself, the steps after it do not see
        for name, x in zip(proto.output, results, strict=False):
            if name:
                recorder.nodes.append(
                    onnx.helper.make_node("Identity", [recorder.named(x)], [name])
                )
        return recorder

    # -- sizes and masks ---------------------------------------------------------------------------

    def _shape(self, value: Value) -> list[int]:
        return [self._size(s) for s in value.shape]

    def _size(self, size: Size) -> int:
        if isinstance(size, int):
            return size
        try:
            return evaluate(size, self.symbols)
        except UnboundSymbol as error:
            raise IrpruneError(
                f"the size {size} is known to onnxruntime alone",
                hint="give the model static shapes",
            ) from error

    def _mask(self, value: Value, dims: Sequence[int]) -> Array | None:
        """True where every index along ``dims`` is kept; broadcasts against ``value``; None where
        nothing is dropped."""
        axes = value.axes or ()
        out: Array | None = None
        for d in dims:
            if self.kept.changes(axes[d]):
                mask = self.kept.present(axes, d)
                out = mask if out is None else out & mask
        return out


def _passes(before: Value, after: Value, dims: Sequence[int]) -> bool:
    """Whether dimensions ``dims`` of ``after`` are those of ``before``."""
    old, new = before.axes or (), after.axes or ()
    return len(old) == len(new) and all(find(old[d]) is find(new[d]) for d in dims)


def _mixed(proto: onnx.NodeProto) -> IrpruneError:
    return IrpruneError(
        f"the oracle cannot silence {proto.op_type}, which is read as several operators", proto.name
    )
