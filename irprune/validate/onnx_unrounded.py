"""Quantised models without rounding: a proof is about structure, and which integer a number is
rounded to differs from kernel to kernel.

Products of u8 with s8 saturate on processors with AVX2 or AVX-512 and without VNNI, where
onnxruntime adds pairs of them up in sixteen bits; and a sum in another order may be rounded to the
next integer, a step that later layers carry on. In a model that does not round, both are gone:
integers in between become the floats that would have been rounded, and products sums of floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from irprune.frontend.onnx.order import captured, opset_of, target_of
from irprune.ops.onnx.float_forms import BOUNDS, INT32, RULES, Result, Uncovered
from irprune.ops.onnx.fold import is_cast, is_constant, is_copy
from irprune.validate.onnx_rule_node import RuleNode

__all__ = ["unrounded"]

_OLDEST = 10  # the opset that quantisation came with
_FLOAT = "tensor(float)"


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """``model`` with its quantised operators in floating point; None where it has none that can be
    written so.

    Stored integers stay as they are. Where an operator takes integers and has no such form
    (``QAttention``, bodies of loops), the floats before it are rounded, and it computes as ever.
    """
    opset = opset_of(model)
    if opset < _OLDEST or not any(target_of(n) in RULES for n in model.graph.node):
        return None
    return _Walk(model, opset).made()


class _Walk:
    """Writes the nodes of a model in order. ``soft`` has a name for the floats in the place of a
    value that was an integer."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.model, self.opset = model, opset
        self.domains = {o.domain: o.version for o in model.opset_import}
        self.nodes: list[onnx.NodeProto] = []
        self.soft: dict[str, str] = {}
        self.rounded: set[str] = set()
        self.cast: dict[str, str] = {}
        self.kinds: dict[str, int] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.count = 0
        graph = model.graph
        for v in (*graph.value_info, *graph.input, *graph.output):
            self.kinds[v.name] = v.type.tensor_type.elem_type
        for t in graph.initializer:
            self._store(t.name, t)

    def _store(self, name: str, t: TensorProto) -> None:
        self.kinds[name], self.sizes[name] = t.data_type, tuple(t.dims)

    def made(self) -> onnx.ModelProto | None:
        for node in self.model.graph.node:
            results = self.written(node)
            if results is None:
                self.pass_on(node)
                continue
            for name, result in zip(node.output, results, strict=False):
                if name:
                    self.result(name, result)
        if not self.soft and len(self.nodes) == len(self.model.graph.node):
            return None
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        del made.graph.node[:]
        made.graph.node.extend(self.nodes)
        for out in made.graph.output:
            if out.name in self.soft:
                out.name, out.type.tensor_type.elem_type = self.soft[out.name], TensorProto.FLOAT
        return made

    def written(self, node: onnx.NodeProto) -> list[Result] | None:
        """The results of the nodes in the place of a quantised ``node``; None where there are
        none."""
        rule = RULES.get(target_of(node))
        if rule is None:
            return None
        before, cast = len(self.nodes), dict(self.cast)
        try:
            return rule(_Node(self, node))
        except Uncovered:
            del self.nodes[before:]
            self.cast = cast
            return None

    def result(self, name: str, made: Result) -> None:
        if made.kind:
            self.soft[name], self.kinds[name] = made.name, made.kind
        else:
            self.nodes.append(helper.make_node("Identity", [made.name], [name]))
            self.kinds[name] = TensorProto.FLOAT
        if made.dims is not None:
            self.sizes[name] = made.dims

    # -- nodes -------------------------------------------------------------------------------------

    def fresh(self) -> str:
        self.count += 1
        return f"unrounded.{self.count}"

    def put(
        self, kind: str, inputs: list[str], attrs: Mapping[str, Any], results: int = 1
    ) -> list[str]:
        made = [self.fresh() for _ in range(results)]
        self.nodes.append(helper.make_node(kind, inputs, made, **attrs))
        return made

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return self.put("Constant", [], {"value": numpy_helper.from_array(array)})[0]

    def number(self, name: str) -> str:
        """``name`` as a float32."""
        if name in self.soft:
            return self.soft[name]
        if self.kinds.get(name) == TensorProto.FLOAT:
            return name
        if name not in self.cast:
            self.cast[name] = self.put("Cast", [name], {"to": TensorProto.FLOAT})[0]
        return self.cast[name]

    def round(self, name: str) -> None:
        """Make the value ``name`` itself, of integers, of the floats in its place."""
        if name not in self.soft or name in self.rounded:
            return
        held = self.put("Round", [self.soft[name]], {})[0]
        kind = self.kinds[name]
        if kind in BOUNDS:
            low, high = BOUNDS[kind]
            held = self.put(
                "Min",
                [
                    self.put("Max", [held, self.constant(float(low))], {})[0],
                    self.constant(float(high)),
                ],
                {},
            )[0]
        self.nodes.append(helper.make_node("Cast", [held], [name], to=kind))
        self.rounded.add(name)

    # -- operators that move values without looking at them ----------------------------------------

    def pass_on(self, node: onnx.NodeProto) -> None:
        """Write ``node`` over floats where it takes them in the place of integers; else round what
        it takes."""
        if is_copy(target_of(node)) and node.input[0] in self.sizes:
            self.sizes[node.output[0]] = self.sizes[node.input[0]]
        for name in captured(node):
            self.round(name)
        given = [name for name in node.input if name in self.soft]
        schema = self._schema(node)
        kinds = {} if schema is None else _variables(schema, node)
        if given and schema is not None and is_cast(target_of(node)) and self._cast(node):
            return
        free = (
            schema is not None
            and not captured(node)
            and all(_floats(schema, kinds.get(i, "")) for i in self._soft_at(node))
        )
        if not free:
            for name in given:
                self.round(name)
            given = []
        if not given:
            self.nodes.append(node)
            self._note(node, schema, kinds)
            return
        together = {kinds[i] for i in self._soft_at(node)}
        kind = self.kinds[given[0]]
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name and kinds.get(i) in together:
                twin.input[i] = self.number(name)
        for k, name in enumerate(node.output):
            if name and _output(schema, k) in together:
                twin.output[k] = self.fresh()
                self.soft[name], self.kinds[name] = twin.output[k], kind
        self.nodes.append(twin)

    def _cast(self, node: onnx.NodeProto) -> bool:
        """A cast of floats in the place of integers to floats, or to larger integers: they stay as
        they are."""
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        if to not in (TensorProto.FLOAT, INT32, TensorProto.INT64):
            return False
        self.result(
            node.output[0], Result(self.soft[node.input[0]], 0 if to == TensorProto.FLOAT else to)
        )
        return True

    def _soft_at(self, node: onnx.NodeProto) -> list[int]:
        return [i for i, name in enumerate(node.input) if name in self.soft]

    def _note(self, node: onnx.NodeProto, schema: Any, kinds: Mapping[int, str]) -> None:
        """Which integers a node makes, as far as it is known."""
        if is_constant(target_of(node)):
            stored = next((a.t for a in node.attribute if a.name == "value"), None)
            if stored is not None:
                self._store(node.output[0], stored)
            return
        by = {
            kind: self.kinds[name]
            for i, kind in kinds.items()
            if (name := node.input[i]) in self.kinds
        }
        for k, name in enumerate(node.output):
            if name and name not in self.kinds and schema is not None and _output(schema, k) in by:
                self.kinds[name] = by[_output(schema, k)]

    def _schema(self, node: onnx.NodeProto) -> Any:
        try:
            return onnx.defs.get_schema(
                node.op_type, self.domains.get(node.domain, self.opset), node.domain
            )
        except onnx.defs.SchemaError:
            return None


def _variables(schema: Any, node: onnx.NodeProto) -> dict[int, str]:
    """The type variable of each input that is given."""
    last = len(schema.inputs) - 1
    return {
        i: schema.inputs[min(i, last)].type_str
        for i, name in enumerate(node.input)
        if name and last >= 0
    }


def _output(schema: Any, k: int) -> str:
    return str(schema.outputs[min(k, len(schema.outputs) - 1)].type_str)


def _floats(schema: Any, variable: str) -> bool:
    """Whether an operator takes floats as ``variable``, and makes tensors of them."""
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    sequences = any(
        "(tensor" in t
        for o in schema.outputs
        if o.type_str != variable
        for t in allowed.get(o.type_str, [o.type_str])
    )
    return _FLOAT in allowed.get(variable, [variable]) and not sequences


class _Node(RuleNode):
    """One node for a rule of ``irprune.ops.onnx.float_forms``."""

    def __init__(self, walk: _Walk, node: onnx.NodeProto) -> None:
        super().__init__(node, walk.opset, walk.sizes)
        self.walk = walk

    def has(self, i: int) -> bool:
        return bool(self.name(i))

    def count(self) -> int:
        return len(self.node.input)

    def kind(self, i: int) -> int:
        return self.walk.kinds.get(self.name(i), 0)

    def unrounded(self, i: int) -> bool:
        return self.name(i) in self.walk.soft

    def number(self, i: int) -> str:
        return self.walk.number(self.name(i))

    def constant(self, value: Any) -> str:
        return self.walk.constant(value)

    def put(self, kind: str, *inputs: str, **attrs: Any) -> str:
        return self.walk.put(kind, list(inputs), attrs)[0]

    def put_all(
        self, kind: str, inputs: list[str], attrs: Mapping[str, Any], results: int
    ) -> list[str]:
        return self.walk.put(kind, inputs, attrs, results)
