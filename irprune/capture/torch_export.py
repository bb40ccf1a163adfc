"""From an ``nn.Module`` or an ``ExportedProgram`` to a graph.

The exported program is read as it is, without decomposition: in-place operators become their functional twins where no
other view of the storage is read later (torch functionalises the program where one is), higher-order wrappers are
inlined, and sizes become ``int`` or ``Sym``.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from irprune.capture.dtypes import FROM_TORCH
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, Node, Origin, TensorType, Value, Weight
from irprune.ir.size import Size, Sym, symbol
from irprune.ops.registry import spelling

__all__ = ["Structure", "export", "from_exported"]


@dataclass
class Structure:
    """How a call of the torch model maps to the graph: the pytrees of arguments and results and what stands in each leaf.

    ``inputs`` and ``outputs`` hold an index into the graph's inputs and outputs, or a constant leaf wrapped in a tuple.
    """

    in_spec: Any
    out_spec: Any
    inputs: list[int | tuple[Any]]
    outputs: list[int | tuple[Any]]
    module_types: dict[str, type] = field(default_factory=dict)
    module: torch.nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode, and every submodule's own mode back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """``torch.export`` of ``model`` in eval mode; FX tracing is tried where it is refused. Raises IrpruneError with what both said."""
    kwargs = dict(kwargs or {})
    with _evaluating(model), torch.no_grad():
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as refused:  # noqa: BLE001 - torch.export raises many kinds; both messages reach the user
            first = refused
        try:
            traced = torch.fx.symbolic_trace(model)
            return torch.export.export(traced, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as refused:  # noqa: BLE001
            raise IrpruneError(
                f"the model cannot be captured: torch.export says {_gist(first)!r}; torch.fx says {_gist(refused)!r}",
                _user_line(first),
                "remove what depends on tensor values (branches, .item(), data-dependent shapes) from forward, or check the example input",
            ) from first


def _gist(error: BaseException) -> str:
    """The first telling line of an error."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def _user_line(error: BaseException) -> str:
    """The deepest frame outside torch that the error passed through."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/torch/" not in file and "/irprune/" not in file:
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@lru_cache(maxsize=65536)
def _source(trace: str | None) -> str:
    """``file:line`` of the innermost user frame of a recorded stack trace."""
    frames = _FRAME.findall(trace or "")
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""


def size_of(s: Any) -> Size:
    """A torch size as the graph's."""
    if isinstance(s, int):
        return s
    return _symbolic(s.node.expr)


@lru_cache(maxsize=4096)
def _symbolic(expr: Any) -> Size:
    from torch.utils._sympy.printers import PythonPrinter

    if expr.is_number:
        return int(expr)
    probe = expr.xreplace({s: symbol(s.name).probe for s in expr.free_symbols})
    text = str(PythonPrinter().doprint(expr))
    return Sym(text if text.isidentifier() else f"({text})", int(probe))


def type_of(t: torch.Tensor) -> TensorType:
    return TensorType(FROM_TORCH[t.dtype], tuple(size_of(s) for s in t.shape))


@lru_cache(maxsize=None)
def _schema(target: Any) -> tuple[tuple[str, bool, Any], ...]:
    """Name, whether it takes tensors, and default of each argument."""
    return tuple((a.name, "Tensor" in str(a.type), a.default_value) for a in target._schema.arguments)


def functionalised(program: ExportedProgram) -> ExportedProgram:
    """The program as it is where its in-place operators can be renamed away, else as torch functionalises it."""
    root: dict[torch.fx.Node, torch.fx.Node] = {}
    family: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    mutations: list[tuple[int, torch.fx.Node]] = []
    place: dict[torch.fx.Node, int] = {}
    for i, node in enumerate(program.graph.nodes):
        place[node] = i
        base = node
        if node.op == "call_function":
            source = next((a for a in node.all_input_nodes), None)
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable:
                mutations.append((i, node))
            if source is not None and (schema is None or _may_alias(node)):
                base = root[source]
        root[node] = base
        family.setdefault(base, []).append(node)
    for i, node in mutations:
        written = node.args[0]
        if not isinstance(written, torch.fx.Node):
            return _functionalise(program)
        base = root[written]
        if base.op == "placeholder":
            return _functionalise(program)
        for other in family[base]:
            if other is not written and other is not node and place[other] < i and any(place[u] > i for u in other.users):
                return _functionalise(program)
    return program


_VIEWS = {"reshape", "flatten", "contiguous", "to", "type_as", "dropout", "feature_dropout", "expand_as", "unflatten", "chunk", "split",
          "tensor_split", "reshape_as", "view_as", "broadcast_to", "swapaxes", "numpy_T", "broadcast_tensors", "meshgrid", "movedim", "squeeze"}


def _may_alias(node: torch.fx.Node) -> bool:
    target: Any = node.target
    if target._schema.is_mutable or any(r.alias_info is not None for r in target._schema.returns):
        return True
    return target._schema.name.split("::")[1] in _VIEWS


def _functionalise(program: ExportedProgram) -> ExportedProgram:
    return program.run_decompositions({})


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program with operators that the table lacks replaced by what torch says they consist of."""
    missing = {
        node.target for node in program.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "_schema") and node.target.namespace == "aten"
        and spelling("aten", _canonical_target(node.target)) is None
    }
    if not missing:
        return program
    table = torch.export.default_decompositions()
    chosen = {t: table[t] for t in missing if t in table}
    return program.run_decompositions(chosen) if chosen else program


@lru_cache(maxsize=None)
def _canonical_target(target: Any) -> str:
    """The overload's name; for an in-place one, its functional twin's."""
    name, overload = target._schema.name.split("::")[1], target._overloadname
    if target._schema.is_mutable and name.endswith("_") and not name.endswith("__"):
        twin = getattr(torch.ops.aten, name[:-1], None)
        if twin is not None and overload in twin.overloads():
            name = name[:-1]
    return f"{target.namespace}.{name}.{overload}"


def from_exported(program: ExportedProgram, module: torch.nn.Module | None = None) -> Graph:
    """The graph of an exported program; ``module`` is the user's own instance where there is one."""
    program = _decomposed(functionalised(program))
    return _Reader(program, module).read()


class _Reader:
    def __init__(self, program: ExportedProgram, module: torch.nn.Module | None) -> None:
        self.program = program
        self.graph = Graph(type(module).__name__ if module is not None else "program")
        self.env: dict[torch.fx.Node, Any] = {}
        self.module = module
        self.names: set[str] = set()
        self.types: dict[str, type] = {}

    def read(self) -> Graph:
        program, graph = self.program, self.graph
        signature = program.graph_signature
        inputs: list[int | tuple[Any]] = []
        places = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        shared = self._shared()
        for spec in signature.input_specs:
            node = places[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(spec.arg, ConstantArgument) or not isinstance(node.meta.get("val"), torch.Tensor):
                    inputs.append((getattr(spec.arg, "value", None),))
                    continue
                inputs.append(len(graph.inputs))
                self.env[node] = graph.add_input(self._unique(node.name), type_of(node.meta["val"]))
            elif isinstance(spec.arg, TensorArgument):
                assert spec.target is not None
                self.env[node] = self._weight(spec.target, spec.kind, shared, node)
            else:
                raise IrpruneError(f"the program takes {spec.arg.name!r}, which is not a tensor", "", "remove custom objects from forward")
        result = self._body(program.graph, program.graph_module)
        outputs: list[int | tuple[Any]] = []
        for value, spec in zip(result, signature.output_specs, strict=True):
            if spec.kind != OutputKind.USER_OUTPUT:
                graph.notes.append(f"forward changes {spec.target!r}; the change is not part of the pruned model")
                continue
            if isinstance(value, Value):
                outputs.append(len(graph.outputs))
                graph.outputs.append(value)
            else:
                outputs.append((value,))
        spec = program.call_spec
        example = program.example_inputs or ((), {})
        modules = dict(self.module.named_modules()) if self.module is not None else {}
        graph.structure = Structure(spec.in_spec, spec.out_spec, inputs, outputs,
                                    {k: type(m) for k, m in modules.items()} or self.types, self.module, *example)
        return graph

    def _unique(self, name: str) -> str:
        fresh, k = name, 1
        while fresh in self.names:
            fresh, k = f"{name}_{k}", k + 1
        self.names.add(fresh)
        return fresh

    def _shared(self) -> dict[int, list[str]]:
        """Names by the identity of the tensor they hold: more than one for tied weights."""
        out: dict[int, list[str]] = {}
        for name, tensor in {**self.program.state_dict, **self.program.constants}.items():
            if isinstance(tensor, torch.Tensor):
                out.setdefault(id(tensor), []).append(name)
        return out

    def _weight(self, name: str, kind: InputKind, shared: Mapping[int, Sequence[str]], node: torch.fx.Node) -> Weight:
        source = self.program.state_dict if name in self.program.state_dict else self.program.constants
        tensor = source[name]
        names = shared[id(tensor)]
        if names[0] in self.graph.weights:
            return self.graph.weights[names[0]]
        kinds = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}
        owner = names[0]
        return self.graph.add_weight(Weight(
            owner, type_of(node.meta["val"]), lambda: source[owner], kinds.get(kind, "constant"), tuple(names[1:]),
            bool(getattr(tensor, "requires_grad", False)),
        ))

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _body(self, body: torch.fx.Graph, owner: torch.fx.GraphModule) -> list[Any]:
        result: list[Any] = []
        for node in body.nodes:
            if node.op == "call_function":
                self._call(node, owner)
            elif node.op == "get_attr":
                self.env[node] = getattr(owner, str(node.target))
            elif node.op == "output":
                result = [self._resolve(a) for a in node.args[0]]
        return result

    def _resolve(self, arg: Any) -> Any:
        """A graph value, a size, or the constant itself."""
        if isinstance(arg, torch.fx.Node):
            if arg in self.env:
                return self.env[arg]
            val = arg.meta.get("val")
            if isinstance(val, torch.SymInt):
                return size_of(val)
            if isinstance(val, (int, float, bool)):
                return val
            raise IrpruneError(f"{arg.format_node()} is not a tensor", _source(arg.meta.get("stack_trace")), "its value depends on the data")
        if isinstance(arg, (list, tuple)):
            return [self._resolve(a) for a in arg]
        return arg

    def _call(self, node: torch.fx.Node, owner: torch.fx.GraphModule) -> None:
        target: Any = node.target
        if target is operator.getitem:
            source, index = node.args
            held = self.env[source] if isinstance(source, torch.fx.Node) and source in self.env else None
            if held is not None:
                self.env[node] = held[index]
            return
        if isinstance(target, torch._ops.HigherOrderOperator):
            self._inline(node, owner)
            return
        val = node.meta.get("val")
        if not hasattr(target, "_schema") or not _tensors_in(val):
            return  # arithmetic on sizes, assertions: sizes are read from the types
        inputs: list[Value | None] = []
        attrs: dict[str, Any] = {}
        layout: list[tuple[str, int | tuple[int | None, ...] | None]] = []
        schema = _schema(target)
        given = dict(zip((a for a, _, _ in schema), node.args, strict=False)) | dict(node.kwargs)
        entry_name = _canonical_target(target)
        entry = spelling("aten", entry_name) if target.namespace == "aten" else None
        rename = entry.aten[entry_name] if entry is not None else {}
        for name, tensorial, default in schema:
            arg = given.get(name, default)
            if not tensorial:
                attrs[rename.get(name, name)] = _plain(self._resolve(arg))
            elif isinstance(value := self._resolve(arg), (int, float, bool, complex, Sym)):
                attrs[rename.get(name, name)] = value  # a number where the schema has a tensor
            elif isinstance(arg, (list, tuple)):
                layout.append((name, tuple(self._operand(a, inputs) for a in arg)))
            else:
                layout.append((name, self._operand(arg, inputs, keep_none=True)))
        while inputs and inputs[-1] is None:
            inputs.pop()
        layout = [(n, s) for n, s in layout if not (isinstance(s, int) and s >= len(inputs))]
        flat = list(val) if isinstance(val, (list, tuple)) else [val]
        stack = node.meta.get("nn_module_stack") or {}
        scope, kind = next(reversed(stack.values()), ("", None)) if stack else ("", None)
        origin = Origin("aten", entry_name, tuple(layout), scope, _source(node.meta.get("stack_trace")), kind)
        base = self._unique(node.name)
        types = [(base if len(flat) == 1 else self._unique(f"{base}_{i}"), type_of(v) if isinstance(v, torch.Tensor) else TensorType("none", ()))
                 for i, v in enumerate(flat)]
        made = self.graph.add(entry.name if entry is not None else entry_name, inputs, attrs, types, origin)
        self.env[node] = made.outputs if isinstance(val, (list, tuple)) else made.out
        if target._schema.is_mutable and isinstance(node.args[0], torch.fx.Node):
            self.env[node.args[0]] = made.out

    def _operand(self, arg: Any, inputs: list[Value | None], keep_none: bool = False) -> int | None:
        if arg is None and not keep_none:
            inputs.append(None)
            return len(inputs) - 1
        value = self._resolve(arg) if arg is not None else None
        if value is not None and not isinstance(value, Value):
            if isinstance(value, torch.Tensor):
                value = self._constant(value)
            else:
                raise IrpruneError(f"operand {value!r} is not a tensor")
        inputs.append(value)
        return len(inputs) - 1

    def _constant(self, tensor: torch.Tensor) -> Weight:
        return self.graph.add_weight(Weight(self._unique("constant"), type_of(tensor), lambda: tensor, "constant"))

    def _inline(self, node: torch.fx.Node, owner: torch.fx.GraphModule) -> None:
        """``wrap_with_set_grad_enabled(flag, body, *args)`` and its like: the body's nodes take the wrapper's place."""
        bodies = [(i, a) for i, a in enumerate(node.args) if isinstance(a, torch.fx.Node) and a.op == "get_attr"]
        name = str(getattr(node.target, "name", lambda: node.target)())
        if len(bodies) != 1 or not name.startswith("wrap"):
            raise IrpruneError(f"higher-order operator {name!r} is not inlined", _source(node.meta.get("stack_trace")),
                               "write the branch or the loop without torch.cond, while_loop or scan")
        i, attr = bodies[0]
        body = getattr(owner, str(attr.target))
        places = [n for n in body.graph.nodes if n.op == "placeholder"]
        for place, arg in zip(places, node.args[i + 1:], strict=True):
            if isinstance(arg, torch.fx.Node) and arg not in self.env and not isinstance(arg.meta.get("val"), torch.Tensor):
                continue
            self.env[place] = self._resolve(arg)
        self.env[node] = self._body(body.graph, body)


def _tensors_in(val: Any) -> bool:
    return isinstance(val, torch.Tensor) or (isinstance(val, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in val))


def _plain(x: Any) -> Any:
    """Attributes as plain data: torch's enumerations by name."""
    if isinstance(x, list):
        return [_plain(v) for v in x]
    if isinstance(x, torch.dtype):
        return FROM_TORCH[x]
    if isinstance(x, (torch.device, torch.layout, torch.memory_format)):
        return str(x).removeprefix("torch.")
    if isinstance(x, torch.SymInt):
        return size_of(x)
    return x
