"""The quick capture: one call of ``forward`` on fake tensors, each ATen call recorded as it is
dispatched.

Under inference mode torch leaves its autograd keys out of dispatch, so a dispatch mode sees
composite operators (``linear``, ``conv2d``, ``batch_norm``, attention) whole, as ``torch.export``
records them, at a fraction of its time. That torch behaves so is not promised anywhere, so it is
checked once per process on a small model. Whatever this way of capture does not cover raises
``Declined``; ``torch.export`` takes such models."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from irprune.base.garbage import without_collection
from irprune.frontend.torch.build import (
    LAYERS,
    TORCH,
    Aliases,
    Builder,
    CallSite,
    decomposition,
    decompositions,
    functional,
    may_alias,
    open_dataclasses,
    type_of,
)
from irprune.frontend.torch.decisions import Decisions, asserted_at, asserts_sizes
from irprune.frontend.torch.dynamic import NOTHING_OPEN, Dynamic, WrongSizes
from irprune.frontend.torch.gradient_stops import (
    GradientStops,
    carries_gradient,
    without_idle_stops,
)
from irprune.frontend.torch.known import from_constants
from irprune.frontend.torch.own_backward import hooks_of_model, own_gradients
from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.size_nodes import SizeNode, as_torch, expression_of, stride
from irprune.frontend.torch.sizes import size_of
from irprune.frontend.torch.source import Entry, TorchSource
from irprune.frontend.torch.tracing_flags import as_exported, as_run, formatted, unchecked
from irprune.frontend.torch.train_mode import (
    Asked,
    lost_in_training,
    modes_watched,
    stochastic_depth,
    with_rates,
)
from irprune.frontend.torch.views import NotInvertible, Views, ViewStep, shares
from irprune.ir.graph import Graph, Node, Origin, TensorType, Value, Weight
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Sym, evaluate, number
from irprune.ops.dtypes import FROM_TORCH, TO_TORCH
from irprune.run.stored_tensor import StoredTensor, read

__all__ = ["Declined", "trace"]

_PACKAGE = Path(__file__).parents[2]
# what runs between the user's line and the recording of what it calls
HERE = tuple(str(_PACKAGE / part) for part in ("frontend", "ir", "ops", "run"))


class SizesOfValues(Exception):
    """A size depends on values, and others are open."""


class Declined(Exception):
    """The model does something that this capture does not cover; the text says what."""


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    plain: bool = False,
    dynamic: str = "none",
    by_example: bool = False,
) -> Graph:
    """The graph of one call of ``model`` in eval mode.

    ``by_example``: where forward goes by sizes that depend on values, it goes as the example does.

    Code that asks whether it is being captured hears what ``torch.export`` would answer; ``plain``:
    what a plain call would. ``dynamic`` says which sizes of the inputs are left open
    (``irprune.frontend.torch.dynamic``); where forward cannot run on such sizes, fewer are. The
    model, its modes and its attributes are as before afterwards. Raises Declined, or whatever
    ``forward`` raises."""
    if why := _composites_are_split():
        raise Declined(why)
    wish = Dynamic.read(dynamic)
    seen = _Seen(by_example=by_example)
    call = tuple(args), dict(kwargs or {})
    try:
        try:
            return _narrowed(model, call, plain, wish, seen)
        except WrongSizes:
            raise
        except Exception:
            if not seen.asserted or by_example:
                raise
            # A pruned module, which checks sizes that depend on values: the checks must stay
            seen.by_example = True
            return _narrowed(model, call, plain, wish, seen)
    except NotInvertible as unknown:
        raise Declined(str(unknown)) from unknown
    except GuardOnDataDependentSymNode as branch:
        raise Declined(
            f"forward branches on a size that depends on values: {str(branch).splitlines()[0]}"
        ) from branch


@dataclass
class _Seen:
    """What the captures of one call found, and how the next is to be made.

    Args:
        asserted: forward is a pruned module's, which checks sizes that depend on values.
        by_example: such sizes are those of the example where forward goes by them.
    """

    asserted: bool = False
    by_example: bool = False


def _narrowed(
    model: nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    plain: bool,
    wish: Dynamic,
    seen: _Seen,
) -> Graph:
    """The graph with the sizes open that ``wish`` says, or as many of them as forward runs on."""
    first: Exception | None = None
    for fewer in wish.narrower():
        try:
            return _trace(model, *call, plain, fewer, first, seen)
        except (Declined, WrongSizes):
            raise
        except Exception as failed:  # by an open size, or whatever sizes there are
            if fewer.is_none:
                raise
            first = first or failed
    raise AssertionError("the last one has no open size")


@cache
def _composites_are_split() -> str:
    """ "" if torch hands composite operators whole to a dispatch mode under inference mode, else
    what it does instead."""
    probe = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    try:
        seen = [n.origin.target for n in _trace(probe, (torch.zeros(2, 2),), {}).nodes]
    except Exception as why:  # a torch that this does not fit; torch.export serves then
        return f"this version of torch does not let calls be recorded: {type(why).__name__}: {why}"
    whole = ["aten.linear.default", "aten.batch_norm.default"]
    return (
        ""
        if seen == whole
        else f"this version of torch splits composite operators: {' '.join(seen)}"
    )


def _trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plain: bool = False,
    dynamic: Dynamic = NOTHING_OPEN,
    failed: Exception | None = None,
    seen: _Seen | None = None,
) -> Graph:
    """``failed`` is why more sizes could not be left open; ``seen`` learns what is found."""
    seen = seen or _Seen()
    build = Builder(type(model).__name__)
    graph = build.graph
    open_dataclasses((args, kwargs))
    flat, in_spec = pytree.tree_flatten((args, kwargs))
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    leaf_names = _leaf_names(model, args, kwargs)
    arguments = {*leaf_names, *inspect.signature(model.forward).parameters}

    def unique(name: str) -> str:
        while name in arguments:
            name += "_"
        return build.unique(name)

    sizes = OpenSizes(_source, unique) if seen.by_example or not dynamic.is_none else None
    build.sizes = sizes
    decisions = Decisions(graph, build.unique, seen.by_example)
    recorder = _Recorder(build, fake, model, decisions)
    inputs: list[int | tuple[Any]] = []
    with contextlib.ExitStack() as around:
        around.enter_context(without_collection())
        around.enter_context(evaluating(model))
        left = around.enter_context(attributes_kept(model))
        around.enter_context(as_run() if plain else as_exported())
        around.enter_context(unchecked())
        around.enter_context(formatted())
        around.enter_context(torch.inference_mode())
        around.enter_context(fake)
        # Where forward switches gradients off is seen while they are on; none are recorded
        around.enter_context(torch.enable_grad())
        leaves: list[Any] = []
        for leaf, name in zip(flat, leaf_names, strict=True):
            if isinstance(leaf, torch.Tensor):
                twin = recorder.twin(leaf)
                value = graph.add_input(build.unique(name), type_of(twin))
                decisions.given(value, leaf)
                inputs.append(len(graph.inputs) - 1)
                if sizes is not None:
                    dynamic.open(value, len(graph.inputs) - 1, sizes)
                shown = recorder.shown(twin, value)
                recorder.aliases.given(id(shown))
                leaves.append(shown)
            else:
                inputs.append((leaf,))
                leaves.append(leaf)
        twins, twin_kwargs = pytree.tree_unflatten(leaves, in_spec)
        asked = around.enter_context(modes_watched())
        with recorder, _scopes(model, recorder, asked), own_gradients(recorder):
            try:
                result = _forward(model, twins, twin_kwargs)
                if decisions.asserts_sizes and not seen.by_example:
                    raise SizesOfValues("forward asserts what holds of sizes that depend on values")
            finally:
                seen.asserted |= decisions.asserts_sizes
        open_dataclasses(result)
        results, out_spec = pytree.tree_flatten(result)
        outputs = [recorder.output(leaf) for leaf in results]
    if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(left)):
        graph.notes.append(
            "forward keeps a tensor in an attribute; the pruned module computes it in every call"
        )
    if why := recorder.aliases.refused():
        raise Declined(why)
    missing = dict.fromkeys(
        target
        for node, target in recorder.unknown
        if any(v.users or v in graph.outputs for v in node)
    )
    if known := decompositions(missing):
        raise Declined("torch decomposes " + ", ".join(sorted(map(str, known))))
    without_idle_stops(graph)
    graph.notes += hooks_of_model(model)
    if any(True for _ in lost_in_training(model, asked, graph)):
        same = with_rates(graph, _in_training(model, args, kwargs))
        graph.notes += lost_in_training(model, asked, graph, same)
    dynamic.settle(graph, sizes, failed, decisions.settle)
    decisions.finish()
    graph.source = TorchSource(
        in_spec,
        out_spec,
        inputs,
        outputs,
        {k: type(m) for k, m in model.named_modules()},
        model,
        args,
        kwargs,
        names=tuple(_argument_names(model, args, kwargs)),
        signature=inspect.signature(model.forward),
        state=recorder.state,
    )
    return graph


def _in_training(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Node]:
    """The operators of one call in training, at the sizes of the example; none where forward fails
    there."""
    build = Builder(type(model).__name__)
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    recorder = _Recorder(build, fake, model, Decisions(build.graph, build.unique, False))
    with (
        without_collection(),
        evaluating(model),
        attributes_kept(model),
        as_exported(),
        unchecked(),
        torch.inference_mode(),
        fake,
    ):

        def shown(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            twin = recorder.twin(leaf)
            value = build.graph.add_input(build.unique("x"), type_of(twin))
            recorder.aliases.given(id(twin))
            return recorder.shown(twin, value)

        try:
            twins, twin_kwargs = pytree.tree_map(shown, (args, kwargs))
            model.train()
            with recorder, _scopes(model, recorder, {}):
                _forward(model, twins, twin_kwargs)
        except Exception:  # forward may want labels, or more than one sample
            return []
    return build.graph.nodes


def _forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)


def _argument_names(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """One name per argument of the call: the parameter's, numbered for those that a ``*args``
    takes."""
    names = []
    for name, value in inspect.signature(model.forward).bind_partial(*args).arguments.items():
        several = (
            inspect.signature(model.forward).parameters[name].kind
            is inspect.Parameter.VAR_POSITIONAL
        )
        names += [f"{name}_{i}" for i in range(len(value))] if several else [name]
    return names + list(kwargs)


def _leaf_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each leaf of the arguments: the argument's, with the keys that lead to the
    leaf."""
    names = []
    for name, value in zip(
        _argument_names(model, args, kwargs), (*args, *kwargs.values()), strict=True
    ):
        for path, _ in pytree.tree_flatten_with_path(value)[0]:
            keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", "")))) for k in path]
            names.append(
                "_".join(
                    [name, *("".join(c if c.isalnum() else "_" for c in k.lower()) for k in keys)]
                )
            )
    return names


# -- recording -------------------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds a node for every ATen call. Weights stay in the model: each gets a fake twin when it is
    first read."""

    def __init__(
        self, build: Builder, fake: FakeTensorMode, model: nn.Module, decisions: Decisions
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.build, self.fake, self.model = build, fake, model
        self.decisions = decisions
        self.aliases = Aliases()
        self.scopes: list[tuple[str, str | None]] = [
            ("", f"{type(model).__module__}.{type(model).__qualname__}")
        ]
        self.unknown: list[
            tuple[list[Value], Any]
        ] = []  # results and overload of operators that the table lacks
        self.state: dict[str, Entry] = {}
        self._values: dict[int, Value] = {}
        self._views = Views(self._values, self._call)
        self._stops = GradientStops(self._stopped)
        self._twins: dict[int, torch.Tensor] = {}
        self._held: list[torch.Tensor] = []  # keeps ids from being taken again
        self._last: Value | None = None
        self._storages: dict[tuple[Any, ...], Weight] | None = None
        self._weights: dict[int, tuple[torch.Tensor, Weight]] = {}
        if build.sizes is not None:
            self._stride = stride(build.sizes)
        self._blanks: dict[TensorType, torch.Tensor] = {}
        self._declare()

    def _declare(self) -> None:
        """All parameters and buffers, in the order in which ``torch.export`` lists them; loaded
        when asked for."""
        model = self.model
        passing = {
            f"{p}.{n}" if p else n
            for p, m in model.named_modules()
            for n in m._non_persistent_buffers_set
        }
        named: list[tuple[str, torch.Tensor, str]] = [
            (n, p, "parameter") for n, p in model.named_parameters(remove_duplicate=False)
        ]
        named += [(n, b, "buffer") for n, b in model.named_buffers(remove_duplicate=False)]
        names: dict[int, list[str]] = {}
        for name, tensor, kind in named:
            self.state[name] = Entry(tensor, kind, name not in passing)
            names.setdefault(id(tensor), []).append(name)
        for name, tensor, kind in named:
            if names[id(tensor)][0] == name:
                load = partial(read, tensor)
                weight = Weight(
                    name,
                    type_of(tensor),
                    load,
                    kind,
                    tuple(names[id(tensor)][1:]),
                    tensor.requires_grad,
                )
                self.build.unique(name)
                self._weights[id(tensor)] = (tensor, self.build.graph.add_weight(weight))

    def hold(self, tensor: torch.Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._held.append(tensor)

    def shown(self, tensor: torch.Tensor, value: Value) -> torch.Tensor:
        """What forward sees of ``tensor``, which stands for ``value``: itself, or a tensor of open
        sizes where ``value`` has them. Operators run on ``tensor``."""
        sizes = self.build.sizes
        if sizes is None or value.type.static:
            self.hold(tensor, value)
            return tensor
        sizes.quiet = True
        try:
            with unset_fake_temporarily(), torch.inference_mode(tensor.is_inference()):
                face = FakeTensor(self.fake, self._blank(value.type), tensor.device)
        finally:
            sizes.quiet = False
        self.hold(face, value)
        self._twins[id(face)] = tensor
        self._held.append(tensor)
        return face

    def _blank(self, kind: TensorType) -> torch.Tensor:
        """A tensor on the meta device of open sizes; one serves all of a type."""
        if kind not in self._blanks:
            sizes = self.build.sizes
            assert sizes is not None
            self._blanks[kind] = torch.empty_strided(
                [as_torch(s, sizes) for s in kind.known],
                [self._stride] * kind.rank,
                dtype=TO_TORCH[kind.dtype],
                device="meta",
            )
        return self._blanks[kind]

    def twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor of the same type, shape, strides and device."""
        if (
            type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer, StoredTensor)
            or tensor.layout is not torch.strided
        ):
            raise Declined(f"tensor subclass or layout {type(tensor).__name__}, {tensor.layout}")
        with self.fake:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )

    def _leaf(self, tensor: torch.Tensor) -> torch.Tensor:
        """The twin of a tensor met for the first time: a weight, or a constant of the program."""
        found = self._weights.get(id(tensor))
        value = found[1] if found is not None else self._same_storage(tensor)
        if value is None:
            held = next(
                (
                    f"{p}.{n}" if p else n
                    for p, m in self.model.named_modules()
                    for n, t in m.__dict__.items()
                    if t is tensor
                ),
                "",
            )
            value = self.build.constant(tensor, held or "lifted_tensor")
        twin = self.twin(tensor)
        for t in (tensor, twin):
            self.hold(t, value)
            self.aliases.given(id(t))
        self._twins[id(tensor)] = twin
        return twin

    def _same_storage(self, tensor: torch.Tensor) -> Weight | None:
        """The weight whose ``.data`` this is."""
        if not _has_storage(tensor):
            return None
        if self._storages is None:
            self._storages = {_storage(t): w for t, w in self._weights.values() if _has_storage(t)}
        return self._storages.get(_storage(tensor))

    def output(self, leaf: Any) -> int | tuple[Any]:
        """What stands for ``leaf`` of the result: the position of a graph output, or the constant
        itself."""
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in self._values:
                self._leaf(leaf)
            self._views.refresh(id(leaf))
            self.build.graph.outputs.append(self._stops.crossed(self._values[id(leaf)]))
            return len(self.build.graph.outputs) - 1
        if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            leaf = leaf.node.guard_float("", 0) if isinstance(leaf, torch.SymFloat) else int(leaf)
        if leaf is None or isinstance(
            leaf, (bool, int, float, complex, str, torch.dtype, torch.device)
        ):
            return (leaf,)
        raise Declined(f"forward returns a {type(leaf).__name__}")

    def _read(self, x: Any) -> tuple[Any, Any]:
        """An argument as the fake operator takes it, and as the graph does."""
        if isinstance(x, torch.Tensor):
            key = id(x)
            twin = x if key in self._values else self._leaf(x)
            self._views.refresh(key)
            return self._twins.get(key, twin), self._values[key]
        if type(x) in (list, tuple):
            pairs = [self._read(v) for v in x]
            return [a for a, _ in pairs], [b for _, b in pairs]
        if isinstance(x, (torch.SymInt, torch.SymFloat)):
            if not isinstance(x.node, SizeNode):
                return x, size_of(x)
            expression = expression_of(x)
            return x.node.hint, expression
        if isinstance(x, torch.SymBool):
            return bool(x), bool(x)
        return x, x

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not torch.is_inference_mode_enabled():
            raise Declined("forward leaves inference mode")
        if not isinstance(func, torch._ops.OpOverload):
            raise Declined(f"higher-order operator {func}")
        if func.namespace == "prim":
            if func._schema.name == "prim::device":
                return args[0].device
            raise Declined(f"operator {func}")
        if func is torch.ops.aten._assert_async.msg and asserts_sizes(str(args[1])):
            self.decisions.asserts_sizes = True
            return None
        if func is torch.ops.aten._assert_async.msg and (said := asserted_at(str(args[1]))):
            self.decisions.assert_that(self._read(args[0])[1], "==", True, said)
            return None
        if (parts := decomposition(func)) is not None:
            with self:
                return parts(*args, **(kwargs or {}))
        fakes, values = self._read(args)
        pairs = {k: self._read(v) for k, v in (kwargs or {}).items()}
        own, named = {k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}
        try:
            made = func(*fakes, **own)
        except (DataDependentOutputException, DynamicOutputShapeException):
            try:
                return self._known(func, values, named)
            except LookupError as why:
                if func in _READS or func is torch.ops.aten.is_nonzero.default:
                    return self._number(func, fakes, values, named, str(why))
                if self.decisions.by_example:
                    return self._by_example(func, fakes, own, values, named)
                made = self._sized(func, fakes, own)
        mutable = func._schema.is_mutable
        if isinstance(made, torch.SymInt):
            number = self._call(func, values, named, TensorType("i64", ()))
            number.producer.attrs["symbol"] = size_of(made)
            return made
        if not isinstance(made, (torch.Tensor, list, tuple)):
            if (made is None or type(made) in (bool, int, float)) and not mutable:
                return made  # fake tensors know small constants
            raise Declined(f"{func} returns {type(made).__name__}")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is torch.ops.aten.lift_fresh.default:
            func = torch.ops.aten.lift_fresh_copy.default  # as torch.export spells it
        alias = first is not None and may_alias(func)
        seen = [
            alias and shares(m, fakes[0])
            for m in (made if isinstance(made, (list, tuple)) else [made])
        ]
        if not mutable:
            view = (
                first is not None
                and not first.is_inference()
                and any(r.alias_info is not None for r in func._schema.returns)
            )
            made = self._own(made, view)
        if (
            func is torch.ops.aten.detach.default
            and isinstance(values[0], Value)
            and values[0] is self._last
            and _creates(values[0])
        ):
            # torch's own, around the result of a factory: not the user's detach
            made = self.shown(made, values[0])
            self.aliases.made(id(made), id(first))
            self._views.made(id(made), ViewStep(id(first), func, (), {}, values[0].type))
            return made
        recorded = self._call(func, values, named, made)
        if mutable:
            if first is None or made is not fakes[0]:
                raise Declined(f"{func} writes to something else than its first tensor")
            tensors = [
                t
                for t in pytree.tree_leaves((fakes, [a for a, _ in pairs.values()]))
                if isinstance(t, torch.Tensor)
            ]
            self.aliases.wrote(func, id(first), id(first), [t.dtype for t in tensors])
            before = self._values[id(first)].type
            if recorded.dtype != before.dtype or type_of(made) != self._example(before):
                raise Declined(f"{func} changes the shape of its tensor")
            recorded.type = before
            self._wrote(id(first), recorded)
            return first
        self._last = recorded if isinstance(recorded, Value) else None
        results = [recorded] if isinstance(recorded, Value) else recorded
        types = [v.type for v in results]
        several = isinstance(made, (list, tuple))
        given = list(made) if several else [made]
        for i, (tensor, value) in enumerate(zip(given, results, strict=True)):
            if isinstance(tensor, torch.Tensor):
                tensor = given[i] = self.shown(tensor, value)
                self.aliases.made(id(tensor), id(first) if seen[i] else None)
                if seen[i]:
                    self._views.made(
                        id(tensor),
                        ViewStep(
                            id(first),
                            func,
                            tuple(values[1:]),
                            named,
                            types if several else types[0],
                            i,
                        ),
                    )
        if (
            results
            and results[0].producer is not None
            and results[0].producer.op == results[0].producer.origin.target
        ):
            self.unknown.append((results, func))
        return type(made)(given) if several else given[0]

    def _wrote(self, key: int, value: Value) -> None:
        """A write in place has made ``value`` of the tensor ``key``."""
        root = self._views.root(key)
        if not torch.is_grad_enabled():
            self._views.refresh(root)
        before = self._values[root]
        self._values[key] = value
        self._views.wrote(key)
        if not torch.is_grad_enabled() and carries_gradient(before):
            # What is written where no gradients are recorded leaves those that there are
            self._views.refresh(root)
            self._values[root] = self._carried(self._values[root], before)
            self._views.wrote(root)

    def _example(self, kind: TensorType) -> TensorType:
        """``kind`` at the sizes of the example."""
        sizes = self.build.sizes
        if sizes is None or kind.static:
            return kind
        return TensorType(kind.dtype, tuple(sizes.value(s) for s in kind.known))

    def _known(self, func: Any, values: Any, kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns where fake tensors cannot tell: plain data as it is, tensors as
        constants of the program.

        Raises LookupError where it does not follow from constants.
        """
        if func is torch.ops.aten.item.default and _asserted(values[0]):
            return True  # the other answer raises
        made = from_constants(func, values, kwargs, self.build.graph, self.build.sizes)
        return pytree.tree_map(lambda x: self._leaf(x) if isinstance(x, torch.Tensor) else x, made)

    def _number(self, func: Any, fakes: Any, values: Any, named: dict[str, Any], why: str) -> Any:
        """What reading one value gives: a whole number as a symbol, a truth as it is in the
        example, which is asserted."""
        kind = fakes[0]
        truth = func is torch.ops.aten.is_nonzero.default or kind.dtype == torch.bool
        if not truth and (kind.is_floating_point() or kind.is_complex()):
            raise Declined(f"{func} {why}")
        if not truth and not self.decisions.by_example:
            made = self._sized(func, fakes, {})
            number = self._call(func, values, named, TensorType("i64", ()))
            number.producer.attrs["symbol"] = size_of(made)
            return made
        sizes = self.build.sizes
        try:
            found = self.decisions.real(func, values, named, sizes)
        except LookupError as unknown:
            raise Declined(f"{func} {unknown}") from unknown
        if truth:
            self.decisions.assert_that(values[0], "==", bool(found), _source())
            return bool(found)
        assert sizes is not None
        own = sizes.of_values(int(found))
        number = self._call(func, values, named, TensorType("i64", ()))
        number.producer.attrs["symbol"] = own
        return as_torch(own, sizes)

    def _by_example(
        self, func: Any, fakes: Any, own: dict[str, Any], values: Any, named: dict[str, Any]
    ) -> Any:
        """What ``func`` returns where its size depends on values: tensors of the size that they
        have in the example, which a symbol stands for."""
        sizes = self.build.sizes
        assert sizes is not None
        made = self._sized(func, fakes, own)
        try:
            real = self.decisions.real(func, values, named, sizes)
        except LookupError as unknown:
            raise Declined(f"{func} {unknown}") from unknown
        several = isinstance(made, (list, tuple))
        others = self._at_others(func, values, named)
        symbols: dict[str, Any] = {}
        twins, types = [], []
        pairs = list(zip(*((made, real) if several else ([made], [real])), strict=True))
        for i, (fake, tensor) in enumerate(pairs):
            shape: list[Any] = list(tensor.shape)
            for d, s in enumerate(fake.shape):
                if isinstance(s, torch.SymInt):
                    text = str(s.node.expr)
                    symbols[text] = symbols.get(text) or sizes.of_values(shape[d])
                    shape[d] = symbols[text]
                elif any(len(at) <= i or list(at[i])[d : d + 1] != [s] for at in others):
                    shape[d] = sizes.of_values(shape[d])
            types.append(TensorType(FROM_TORCH[tensor.dtype], tuple(shape)))
            with self.fake:
                twins.append(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device))
        self.build.sizes = None
        try:
            recorded = self._call(func, values, named, types if several else types[0])
        finally:
            self.build.sizes = sizes
        results = recorded if several else [recorded]
        shown = [self.shown(t, v) for t, v in zip(twins, results, strict=True)]
        for tensor in shown:
            self.aliases.made(id(tensor))
        return type(made)(shown) if several else shown[0]

    def _at_others(self, func: Any, values: Any, named: dict[str, Any]) -> list[list[Any]]:
        """The shapes of the results of ``func`` where the sizes that are open have other values;
        none where no size is."""
        sizes = self.build.sizes
        leaves = [v for v in pytree.tree_leaves((values, named)) if isinstance(v, Value)]
        if sizes is None or all(v.type.static for v in leaves):
            return []
        found: list[list[Any]] = []
        for more in (1, 4):
            bindings = {n: s + more for n, s in sizes.example.items()}

            def blank(x: Any, bindings: dict[str, int] = bindings) -> Any:
                if isinstance(x, Value):
                    shape = [evaluate(s, bindings) for s in x.shape]
                    with self.fake:
                        return torch.empty(shape, dtype=TO_TORCH[x.dtype])
                return number(x, bindings) if isinstance(x, Sym) else x

            args, kwargs = pytree.tree_map(blank, (values, named))
            try:
                made = self._sized(func, args, kwargs)
            except Exception:  # sizes that the operator does not take: nothing is known of them
                found.append([])
                continue
            several = made if isinstance(made, (list, tuple)) else [made]
            found.append([t.shape for t in several])
        return found

    def _sized(self, func: Any, fakes: Any, kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns where its size, or the whole number that it reads, depends on
        values: a symbol stands for that."""
        if self.build.sizes is not None and not self.decisions.by_example:
            raise SizesOfValues("sizes that depend on values")
        if self.fake.shape_env is None:
            self.fake.shape_env = ShapeEnv(
                allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False
            )
        sizes = self.fake.shape_env
        closed = sizes.settings
        sizes.settings = replace(
            closed, allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True
        )
        try:
            return func(*fakes, **kwargs)
        finally:
            sizes.settings = closed

    def _own(self, made: Any, normal: bool) -> Any:
        """``made`` with tensors of its own where the operator handed its operand back.

        A view of a weight must be a normal tensor (``normal``): torch's view kernels refuse an
        inference tensor there."""
        if isinstance(made, (list, tuple)):
            return type(made)(self._own(m, normal) for m in made)
        if not isinstance(made, torch.Tensor) or not (normal or id(made) in self._values):
            return made
        with torch.inference_mode(not normal), self.fake:
            return torch.empty_strided(
                made.shape, made.stride(), dtype=made.dtype, device=made.device
            )

    def _call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Any) -> Any:
        """Record a call that the user's code is at."""
        place = CallSite(*self.scopes[-1], _source())
        args, kwargs = self._stops.read(args), self._stops.read(kwargs)
        recorded = self.build.call(func, args, kwargs, made, _base(func), place)
        self._stops.made(recorded)
        return recorded

    def _stopped(self, value: Value) -> Value:
        place = CallSite(*self.scopes[-1], _source())
        target = torch.ops.aten.detach.default
        made: Value = self.build.call(target, (value,), {}, value.type, "detach", place)
        return made

    # -- gradients of forward's own ----------------------------------------------------------------

    def value_of(self, tensor: torch.Tensor) -> Value | None:
        """What ``tensor`` stands for, if anything."""
        value = self._values.get(id(tensor))
        if value is not None:
            self._views.refresh(id(tensor))
            value = self._stops.crossed(self._values[id(tensor)])
        return value

    def blank(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor like it, at the sizes of the example call."""
        return self._twins.get(id(tensor), tensor)

    def carried(self, tensor: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
        """``tensor``, whose gradient goes to ``carrier``."""
        value, to = self.value_of(tensor), self.value_of(carrier)
        assert value is not None
        assert to is not None
        return self._face(tensor, self._carried(value, to))

    def _face(self, like: torch.Tensor, value: Value) -> torch.Tensor:
        """A new tensor for ``value``, which is of the type and shape of ``like``."""
        blank = self.blank(like)
        with self.fake:
            twin = torch.empty_strided(
                blank.shape, blank.stride(), dtype=blank.dtype, device=blank.device
            )
        face = self.shown(twin, value)
        self.aliases.made(id(face))
        return face

    def _carried(self, value: Value, carrier: Value) -> Value:
        return self._own_operator("gradient_to", [value, carrier], {})

    def _own_operator(self, name: str, operands: list[Value], attrs: dict[str, Any]) -> Value:
        """Record an operator of the table's own, whose result is like its first operand."""
        scope, kind = self.scopes[-1]
        origin = Origin("irprune", name, (), scope, _source(), kind)
        made = [(self.build.unique(name), operands[0].type)]
        return self.build.graph.add(name, [*operands], attrs, made, origin).out

    def dropped(self, module: nn.Module, result: Any) -> torch.Tensor | None:
        """What ``module``, which gave back its input as ``result``, gives where it is stochastic
        depth in training; else None."""
        value = self.value_of(result) if isinstance(result, torch.Tensor) else None
        found = stochastic_depth(module, value.rank) if value is not None else None
        if value is None or found is None:
            return None
        attrs = {"p": found[0], "mode": found[1], "training": False}
        return self._face(result, self._own_operator("drop_path", [value], attrs))

    def replace(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """From now on ``tensor`` stands for what ``other`` does."""
        self._values[id(tensor)] = self._values[id(other)]

    def note(self, text: str) -> None:
        """Tell the user, with the line that forward is at."""
        line = f"{text} ({_source()})"
        if line not in self.build.graph.notes:
            self.build.graph.notes.append(line)


_READS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


def _asserted(value: Any) -> bool:
    """Whether ``value`` is what ``torch._check_tensor_all`` reads."""
    node = value.producer if isinstance(value, Value) else None
    return node is not None and node.origin.target == "aten._is_all_true.default"


def _has_storage(t: torch.Tensor) -> bool:
    return t.device.type != "meta" and t.numel() > 0 and not isinstance(t, StoredTensor)


def _storage(t: torch.Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.shape, t.stride(), t.dtype


@cache
def _base(func: Any) -> str:
    return str(functional(func)._schema.name.split("::")[1])


def _creates(value: Value) -> bool:
    node = value.producer
    return node is not None and (
        not any(v is not None for v in node.inputs)
        or node.origin.target.split(".")[1].endswith("_like")
    )


def _source() -> str:
    """``file:line`` of the innermost frame of the user's, or of the innermost layer where all of
    ``forward`` is torch's."""
    frame = sys._getframe(2)
    layer = ""
    while frame is not None and frame.f_code is not _forward.__code__:
        file = frame.f_code.co_filename
        if not file.startswith(TORCH):
            if not file.startswith(HERE):
                return f"{file}:{frame.f_lineno}"
        elif not layer and file.startswith(LAYERS) and not file.endswith("/module.py"):
            layer = f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return layer


# -- surroundings ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _scopes(model: nn.Module, recorder: _Recorder, asked: Asked) -> Iterator[None]:
    """The recorder knows which of the model's modules is running; ``asked`` are those that asked
    for their mode."""
    names = {
        id(m): (n, f"{type(m).__module__}.{type(m).__qualname__}")
        for n, m in reversed(list(model.named_modules()))
    }

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            recorder.scopes.append(names[id(module)])

    def leave(module: nn.Module, args: Any, result: Any) -> Any:
        if id(module) not in names:
            return None
        dropped = None
        if id(module) in asked and len(args) == 1 and result is args[0]:
            dropped = recorder.dropped(module, result)
        recorder.scopes.pop()
        return dropped

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
