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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from irprune.base.garbage import without_collection
from irprune.frontend.torch.build import (
    Builder,
    decompositions,
    open_dataclasses,
    type_of,
)
from irprune.frontend.torch.decisions import Decisions
from irprune.frontend.torch.declined import Declined, SizesOfValues
from irprune.frontend.torch.dynamic import NOTHING_OPEN, Dynamic, WrongSizes
from irprune.frontend.torch.gradient_stops import (
    without_idle_stops,
)
from irprune.frontend.torch.hit_loops import HitLoops
from irprune.frontend.torch.lengths import lengths_left_open
from irprune.frontend.torch.means import with_means
from irprune.frontend.torch.own_backward import hooks_of_model, own_gradients
from irprune.frontend.torch.recorder import Recorder
from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.source import TorchSource
from irprune.frontend.torch.tracing_flags import (
    as_exported,
    as_run,
    formatted,
    idle_conversions,
    taken_branches,
    unchecked,
)
from irprune.frontend.torch.train_mode import (
    Asked,
    lost_in_training,
    modes_watched,
    with_rates,
)
from irprune.frontend.torch.user_line import run_forward, user_line
from irprune.ir.graph import Graph, Node
from irprune.ir.open_sizes import OpenSizes
from irprune.ops.registry import lookup
from irprune.ops.torch.views import NotInvertible
from irprune.run.inputs import asserts_values

__all__ = ["trace"]


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    plain: bool = False,
    dynamic: str = "none",
    by_example: bool = False,
    loops: HitLoops | None = None,
) -> Graph:
    """The graph of one call of ``model`` in eval mode.

    ``by_example``: where forward goes by sizes that depend on values, it goes as the example does;
    with ``loops``, those over what a mask hits go over all of it.

    Code that asks whether it is being captured hears what ``torch.export`` would answer; ``plain``:
    what a plain call would. ``dynamic`` says which sizes of the inputs are left open
    (``irprune.frontend.torch.dynamic``); where forward cannot run on such sizes, fewer are. The
    model, its modes and its attributes are as before afterwards. Raises Declined, or whatever
    ``forward`` raises."""
    if why := _composites_are_split():
        raise Declined(why)
    wish = Dynamic.read(dynamic)
    seen = _CaptureState(by_example=by_example, loops=loops)
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
class _CaptureState:
    """What the captures of one call found, and how the next is to be made.

    Args:
        asserted: forward is a pruned module's, which checks sizes that depend on values.
        by_example: such sizes are those of the example where forward goes by them.
        by_no_values: a forward that goes by such a size is not captured, as soon as that shows.
        loops: those that go over all that a mask can hit.
    """

    asserted: bool = False
    by_example: bool = False
    by_no_values: bool = False
    loops: HitLoops | None = None


def _narrowed(
    model: nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    plain: bool,
    wish: Dynamic,
    seen: _CaptureState,
) -> Graph:
    """The graph with the sizes open that ``wish`` says, or as many of them as forward runs on."""
    first: Exception | None = None
    for fewer in wish.narrower():
        try:
            return _trace(model, *call, plain, fewer, first, seen)
        except (Declined, WrongSizes):
            raise
        except SizesOfValues as unknown:
            found = None if seen.by_example else _going_by_none(model, call, plain, fewer, first)
            if found is not None:
                return found
            if fewer.is_none:
                raise
            first = first or unknown
        except Exception as failed:  # by an open size, or whatever sizes there are
            if fewer.is_none:
                raise
            first = first or failed
    raise AssertionError("the last one has no open size")


def _going_by_none(
    model: nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    plain: bool,
    wish: Dynamic,
    first: Exception | None,
) -> Graph | None:
    """The graph with sizes that depend on values beside open ones, where forward goes by none of
    the former; None where it does."""
    try:
        graph = _trace(
            model, *call, plain, wish, first, _CaptureState(by_example=True, by_no_values=True)
        )
    except Exception:  # what follows says why
        return None
    return None if asserts_values(graph) else graph


@cache
def _composites_are_split() -> str:
    """ "" if torch hands composite operators whole to a dispatch mode under inference mode, else
    what it does instead."""
    probe = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    try:
        nodes = _trace(probe, (torch.zeros(2, 2),), {}).nodes
    except Exception as why:  # a torch that this does not fit; torch.export serves then
        return f"this version of torch does not let calls be recorded: {type(why).__name__}: {why}"
    entries = [lookup(node) for node in nodes]
    if len(nodes) == len(probe) and all(e is not None and e.nn_layer is not None for e in entries):
        return ""
    seen = " ".join(node.origin.target for node in nodes)
    return f"this version of torch splits composite operators: {seen}"


def _trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plain: bool = False,
    dynamic: Dynamic = NOTHING_OPEN,
    failed: Exception | None = None,
    seen: _CaptureState | None = None,
) -> Graph:
    """``failed`` is why more sizes could not be left open; ``seen`` learns what is found."""
    seen = seen or _CaptureState()
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

    sizes = OpenSizes(user_line, unique) if seen.by_example or not dynamic.is_none else None
    build.sizes = sizes
    if sizes is not None:
        sizes.by_no_values = seen.by_no_values
    if seen.loops is not None:
        seen.loops.loops.clear()
    decisions = Decisions(graph, build.unique, seen.by_example, seen.loops)
    recorder = Recorder(build, fake, model, decisions)
    inputs: list[int | tuple[Any]] = []
    with contextlib.ExitStack() as around:
        around.enter_context(without_collection())
        around.enter_context(evaluating(model))
        left = around.enter_context(attributes_kept(model))
        around.enter_context(as_run() if plain else as_exported())
        around.enter_context(unchecked())
        around.enter_context(formatted())
        around.enter_context(idle_conversions())
        around.enter_context(taken_branches())
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
        if sizes is not None:
            around.enter_context(lengths_left_open(model))
        with recorder, _scopes(model, recorder, asked), own_gradients(recorder):
            try:
                result = run_forward(model, twins, twin_kwargs)
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
    graph.notes += [
        f"forward changes {name!r}; the change is not part of the pruned model"
        for name in recorder.aliases.changed()
    ]
    missing = dict.fromkeys(
        target
        for node, target in recorder.unknown
        if any(v.users or v in graph.outputs for v in node)
    )
    if known := decompositions(missing):
        raise Declined("torch decomposes " + ", ".join(sorted(map(str, known))))
    without_idle_stops(graph)
    with_means(graph)
    graph.notes += hooks_of_model(model)
    if any(True for _ in lost_in_training(model, asked, graph)):
        same = with_rates(graph, _in_training(model, args, kwargs))
        graph.notes += lost_in_training(model, asked, graph, same)
    outputs = dynamic.settle(graph, sizes, failed, decisions.settle, outputs)
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
    recorder = Recorder(build, fake, model, Decisions(build.graph, build.unique, False))
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
                run_forward(model, twins, twin_kwargs)
        except Exception:  # forward may want labels, or more than one sample
            return []
    return build.graph.nodes


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


# -- surroundings ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _scopes(model: nn.Module, recorder: Recorder, asked: Asked) -> Iterator[None]:
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
