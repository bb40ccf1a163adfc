"""From an ``nn.Module`` or an ``ExportedProgram`` to a graph.

The exported program is read as it is, without decomposition: in-place operators become their
functional twins where no other view of the storage is read later (torch functionalises the program
where one is), higher-order wrappers are inlined, and sizes become ``int`` or ``Sym``."""

from __future__ import annotations

import contextlib
import inspect
import operator
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, gist, option, users_line
from irprune.frontend.torch.build import (
    Aliases,
    Builder,
    CallSite,
    decompositions,
    innermost,
    open_dataclasses,
    type_of,
)
from irprune.frontend.torch.gradient_stops import without_idle_stops
from irprune.frontend.torch.means import with_means
from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.sizes import size_of
from irprune.frontend.torch.source import Entry, TorchSource
from irprune.frontend.torch.tracing_flags import unchecked
from irprune.ir.graph import Graph, TensorType, Value, Weight
from irprune.ir.guards import Fixed
from irprune.ops.call import overload
from irprune.ops.registry import spelling
from irprune.ops.torch.dispatched import (
    NORM,
    STOP_GRADIENT,
    canonical_target,
    is_aten,
    is_autocast,
    is_dropout,
    is_frozen_norm,
    is_of_vmap,
    reads_number,
)
from irprune.ops.torch.views import may_alias

__all__ = ["export", "from_exported"]


def export(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """``torch.export`` of ``model`` in eval mode; FX tracing is tried where it is refused. Raises
    IrpruneError with what both said."""
    kwargs = dict(kwargs or {})
    # Advice about the user's code, graphs beside a refusal
    with (
        evaluating(model),
        attributes_kept(model),
        unchecked(),
        quiet(),
    ):
        open_dataclasses((args, kwargs))
        # Where forward switches gradients off is seen while they are on, where torch can do that
        with contextlib.suppress(Exception), torch.enable_grad():
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        try:
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        except Exception as refused:  # torch.export raises many kinds; both messages reach the user
            first = refused
        try:
            result = model(*args, **kwargs)
        except Exception as failed:  # whatever forward raises is what the user must see
            raise IrpruneError(
                f"forward fails on the example input: {gist(failed)}",
                users_line(failed),
                f"give {option('args')} of the shapes and types that the model takes",
            ) from failed
        try:
            if open_dataclasses(result):
                return torch.export.export(
                    model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
                )
            traced = torch.fx.symbolic_trace(model)
            return torch.export.export(
                traced, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
        except Exception as refused:
            sizes = dynamic_shapes is not None and isinstance(
                first, (torch._dynamo.exc.UserError, TypeError)
            )
            raise IrpruneError(
                f"the model cannot be captured: torch.export says {gist(first)!r}; torch.fx says {gist(refused)!r}",
                users_line(first) or users_line(refused),
                "give dynamic_shapes as torch.export takes it, for sizes that forward leaves open; or leave it out"
                if sizes
                else "take out of forward what depends on the values of tensors (branches, .item(), data-dependent shapes)",
            ) from first


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@lru_cache(maxsize=65536)
def _source(trace: str | None) -> str:
    """``file:line`` of the innermost user frame of a recorded stack trace."""
    return innermost([(file, int(line)) for file, line in _FRAME.findall(trace or "")])


def functionalised(program: ExportedProgram) -> ExportedProgram:
    """The program as it is where its in-place operators can be renamed away, else as torch
    functionalises it; autocast becomes casts, and ``torch.vmap`` what it stands for."""
    aliases = Aliases()
    for node in program.graph.nodes:
        aliases.tick()
        for source in node.all_input_nodes:
            aliases.read(source)
        if node.op == "placeholder":
            aliases.given(node)
            continue
        target: Any = node.target
        if node.op == "call_function" and is_autocast(target) and node.args[2]:
            return _without(program, {})
        if is_of_vmap(target):
            return _without(program, {})
        schema = getattr(target, "_schema", None) if node.op == "call_function" else None
        source = next(iter(node.all_input_nodes), None)
        alias = source is not None and (
            target is operator.getitem or (schema is not None and may_alias(target))
        )
        aliases.made(node, source if alias else None)
        if schema is not None and schema.is_mutable:
            written = node.args[0]
            if not isinstance(written, torch.fx.Node):
                return _without(program, {})
            tensors = [
                v
                for n in (written, *node.all_input_nodes)
                if isinstance(v := n.meta.get("val"), torch.Tensor)
            ]
            aliases.wrote(target, written, node, [t.dtype for t in tensors])
    return _without(program, {}) if aliases.clash() else program


def _without(program: ExportedProgram, table: dict[Any, Any]) -> ExportedProgram:
    """The program functionalised, with the operators of ``table`` decomposed; the one given stays
    as it is.

    Torch takes a dropout that is off for a copy, so that it passes as an operator of our own.
    """
    bodies = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    dropouts = [
        (n, n.target, n.args)
        for m in bodies
        for n in m.graph.nodes
        if is_dropout(str(n.target)) and n.args[2] is False
    ]
    try:
        for node, target, args in dropouts:
            node.target, node.args = (
                torch.ops.irprune.dropout.default,
                (*args[:2], canonical_target(target)),
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own use of what it deprecates
            made: ExportedProgram = program.run_decompositions(table)
    finally:
        for node, target, args in dropouts:
            node.target, node.args = target, args
    return made


@torch.library.custom_op("irprune::dropout", mutates_args=())
def _dropout(x: torch.Tensor, p: float, kind: str) -> torch.Tensor:
    """A dropout that is off."""
    return x.clone()


@_dropout.register_fake
def _(x: torch.Tensor, p: float, kind: str) -> torch.Tensor:
    return torch.empty_like(x)


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program with operators that the table lacks replaced by what torch says they consist
    of."""
    missing = {
        func
        for node in program.graph.nodes
        if node.op == "call_function"
        and is_aten(func := node.target)
        and spelling("aten", canonical_target(func)) is None
    }
    if not missing:
        return program
    chosen = decompositions(missing)
    return _without(program, chosen) if chosen else program


def from_exported(program: ExportedProgram, module: torch.nn.Module | None = None) -> Graph:
    """The graph of an exported program; ``module`` is the user's own instance where there is
    one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying its pytree specs
        program = _decomposed(functionalised(program))
    return _Reader(program, module).read()


class _Reader:
    def __init__(self, program: ExportedProgram, module: torch.nn.Module | None) -> None:
        self.program = program
        self.build = Builder(type(module).__name__ if module is not None else "program")
        self.graph = self.build.graph
        self.env: dict[torch.fx.Node, Any] = {}
        self.module = module
        self.types: dict[str, type] = {}
        self.state: dict[str, Entry] = {}

    def read(self) -> Graph:
        program, graph = self.program, self.graph
        signature = program.graph_signature
        inputs: list[int | tuple[Any]] = []
        places = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        shared = self._shared()
        for spec in signature.input_specs:
            node = places[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(spec.arg, ConstantArgument) or not isinstance(
                    node.meta.get("val"), torch.Tensor
                ):
                    inputs.append((getattr(spec.arg, "value", None),))
                    continue
                inputs.append(len(graph.inputs))
                self.env[node] = graph.add_input(
                    self.build.unique(node.name), type_of(node.meta["val"])
                )
            elif isinstance(spec.arg, TensorArgument):
                assert spec.target is not None
                self.env[node] = self._weight(spec.target, spec.kind, shared, node)
            else:
                raise IrpruneError(
                    f"the program takes {spec.arg.name!r}, which is not a tensor",
                    "",
                    "remove custom objects from forward",
                )
        result = self._body(program.graph, program.graph_module)
        without_idle_stops(graph)
        outputs: list[int | tuple[Any]] = []
        for value, spec in zip(result, signature.output_specs, strict=True):
            if spec.kind != OutputKind.USER_OUTPUT:
                graph.notes.append(
                    f"forward changes {spec.target!r}; the change is not part of the pruned model"
                )
                continue
            if isinstance(value, Value):
                outputs.append(len(graph.outputs))
                graph.outputs.append(value)
            else:
                outputs.append((value,))
        with_means(graph)
        spec = program.call_spec
        args, kwargs = program.example_inputs or ((), {})
        # In the model's order
        self.state = {
            n: self.state[n] for n in (*program.state_dict, *program.constants) if n in self.state
        }
        modules = dict(self.module.named_modules()) if self.module is not None else {}
        call = program.module_call_graph[0].signature
        graph.source = TorchSource(
            spec.in_spec,
            spec.out_spec,
            inputs,
            outputs,
            {k: type(m) for k, m in modules.items()} or self.types,
            self.module,
            args,
            kwargs,
            names=tuple((call.forward_arg_names if call is not None else None) or ()),
            signature=inspect.signature(self.module.forward) if self.module is not None else None,
            state=self.state,
        )
        graph.fixed += [
            Fixed(i, d, size, "torch.export captured it at this size")
            for i, value in enumerate(graph.inputs)
            for d, size in enumerate(value.type.shape or ())
            if isinstance(size, int)
        ]
        return graph

    def _shared(self) -> dict[int, list[str]]:
        """Names by the identity of the tensor they hold: more than one for tied weights."""
        out: dict[int, list[str]] = {}
        for name, tensor in {**self.program.state_dict, **self.program.constants}.items():
            if isinstance(tensor, torch.Tensor):
                out.setdefault(id(tensor), []).append(name)
        return out

    def _weight(
        self, name: str, kind: InputKind, shared: Mapping[int, Sequence[str]], node: torch.fx.Node
    ) -> Weight:
        source = (
            self.program.state_dict if name in self.program.state_dict else self.program.constants
        )
        tensor = source[name]
        names = shared[id(tensor)]
        kinds = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}
        if kind in kinds:
            self.state.update(
                {
                    n: Entry(tensor, kinds[kind], n in self.program.state_dict)
                    for n in names
                    if n not in self.state
                }
            )
        if names[0] in self.graph.weights:
            return self.graph.weights[names[0]]
        owner = names[0]
        return self.graph.add_weight(
            Weight(
                owner,
                type_of(node.meta["val"]),
                lambda: source[owner],
                kinds.get(kind, "constant"),
                tuple(names[1:]),
                bool(getattr(tensor, "requires_grad", False)),
            )
        )

    # -- nodes -------------------------------------------------------------------------------------

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
            raise IrpruneError(
                f"{arg.format_node()} is not a tensor",
                _source(arg.meta.get("stack_trace")),
                "its value depends on the data",
            )
        if isinstance(arg, (list, tuple)):
            return [self._resolve(a) for a in arg]
        return arg

    def _call(self, node: torch.fx.Node, owner: torch.fx.GraphModule) -> None:
        target: Any = node.target
        if target is operator.getitem:
            source, index = node.args
            held = (
                self.env[source]
                if isinstance(source, torch.fx.Node) and source in self.env
                else None
            )
            if held is not None:
                self.env[node] = held[index]
            return
        if isinstance(target, torch._ops.HigherOrderOperator):
            self._inline(node, owner)
            return
        val = node.meta.get("val")
        read = reads_number(target) and isinstance(val, torch.SymInt)
        if not hasattr(target, "_schema") or not (read or _tensors_in(val)):
            return  # arithmetic on sizes, assertions: sizes are read from the types
        args = [self._resolve(a) for a in node.args]
        kwargs = {k: self._resolve(a) for k, a in node.kwargs.items()}
        stack = node.meta.get("nn_module_stack") or {}
        scope, kind = next(reversed(stack.values()), ("", None)) if stack else ("", None)
        if scope not in self.types and kind:
            self.types[scope] = _class_named(str(kind))
        place = CallSite(scope, kind, _source(node.meta.get("stack_trace")))
        # Functionalised; a layer again, that can train
        if is_frozen_norm(target):
            *operands, momentum, eps = args
            self.env[node] = [
                self.build.call(
                    NORM,
                    [*operands, False, momentum, eps],
                    {},
                    next(iter(val or ())),
                    "batch_norm",
                    place,
                )
            ]
            return
        if target is torch.ops.irprune.dropout.default:
            target, args = overload(args[2]), [*args[:2], False]
        if read:
            number: Value = self.build.call(
                target, args, kwargs, TensorType("i64", ()), node.name, place
            )
            assert number.producer is not None
            number.producer.attrs["symbol"] = size_of(val)
            return
        made = self.build.call(target, args, kwargs, val, node.name, place)
        self.env[node] = made
        if target._schema.is_mutable and isinstance(node.args[0], torch.fx.Node):
            self.env[node.args[0]] = made

    def _inline(self, node: torch.fx.Node, owner: torch.fx.GraphModule) -> None:
        """``wrap_with_set_grad_enabled(flag, body, *args)`` and its like: the body's nodes take the
        wrapper's place."""
        bodies = [
            (i, a)
            for i, a in enumerate(node.args)
            if isinstance(a, torch.fx.Node) and a.op == "get_attr"
        ]
        name = str(getattr(node.target, "name", lambda: node.target)())
        if len(bodies) != 1 or not name.startswith("wrap"):
            raise IrpruneError(
                f"higher-order operator {name!r} is not inlined",
                _source(node.meta.get("stack_trace")),
                "write the branch or the loop without torch.cond, while_loop or scan",
            )
        i, attr = bodies[0]
        body = getattr(owner, str(attr.target))
        places = [n for n in body.graph.nodes if n.op == "placeholder"]
        for place, arg in zip(places, node.args[i + 1 :], strict=True):
            if (
                isinstance(arg, torch.fx.Node)
                and arg not in self.env
                and not isinstance(arg.meta.get("val"), torch.Tensor)
            ):
                continue
            self.env[place] = self._resolve(arg)
        made = self._body(body.graph, body)
        if "set_grad_enabled" in name and node.args[0] is False:
            place = CallSite("", None, _source(node.meta.get("stack_trace")))
            made = [
                self.build.call(STOP_GRADIENT, (v,), {}, v.type, "detach", place)
                if isinstance(v, Value)
                else v
                for v in made
            ]
        self.env[node] = made


def _class_named(name: str) -> type:
    """The class of that qualified name where its module is imported, else ``nn.Module``."""
    place, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(place), own, None)
    return found if isinstance(found, type) else torch.nn.Module


def _tensors_in(val: Any) -> bool:
    return isinstance(val, torch.Tensor) or (
        isinstance(val, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in val)
    )
