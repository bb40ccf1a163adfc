"""The dispatch mode that records each ATen call of a running ``forward``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from irprune.frontend.torch.build import (
    Builder,
    CallSite,
    decomposition,
    type_of,
)
from irprune.frontend.torch.by_value import ByValue
from irprune.frontend.torch.decisions import Decisions, asserted_at, asserts_sizes, short_line
from irprune.frontend.torch.declined import Declined
from irprune.frontend.torch.gradient_stops import (
    carries_gradient,
)
from irprune.frontend.torch.result_types import call, fake_like
from irprune.frontend.torch.size_nodes import SizeNode, expression_of
from irprune.frontend.torch.sizes import size_of
from irprune.frontend.torch.train_mode import (
    stochastic_depth,
)
from irprune.frontend.torch.user_line import user_line
from irprune.frontend.torch.views import ViewStep, shares
from irprune.ir.graph import Origin, TensorType, Value
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Sym
from irprune.ops.torch.dispatched import (
    PLACES,
    STOP_GRADIENT,
    as_exported,
    asserts,
    functional,
    goes_over_elements,
    like_another,
    picks,
    reads_number,
    reads_truth,
    reshapes_in_place,
)
from irprune.ops.torch.mask_writes import as_choice
from irprune.ops.torch.views import may_alias

__all__ = ["Recorder"]


class Recorder(ByValue, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds a node for every ATen call."""

    def __init__(
        self, build: Builder, fake: FakeTensorMode, model: nn.Module, decisions: Decisions
    ) -> None:
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        ByValue.__init__(self, build, fake, model, decisions)
        self.scopes: list[tuple[str, str | None]] = [
            ("", f"{type(model).__module__}.{type(model).__qualname__}")
        ]
        self.unknown: list[
            tuple[list[Value], Any]
        ] = []  # results and overload of operators that the table lacks
        self._last: Value | None = None

    def output(self, leaf: Any) -> int | tuple[Any]:
        """What stands for ``leaf`` of the result: the position of a graph output, or the constant
        itself, which may be an open size, or a number made of such."""
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in self._values:
                self._leaf(leaf)
            self._views.refresh(id(leaf))
            self.build.graph.outputs.append(self._stops.crossed(self._values[id(leaf)]))
            return len(self.build.graph.outputs) - 1
        if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            sizes = self.build.sizes
            if sizes is not None and (open_size := _of_inputs(leaf, sizes)) is not None:
                return (open_size,)
            with sizes.because("forward returns it") if sizes is not None else nullcontext():
                wide = isinstance(leaf, torch.SymFloat)
                kind = bool if isinstance(leaf, torch.SymBool) else int
                leaf = leaf.node.guard_float("", 0) if wide else kind(leaf)
        if leaf is None or isinstance(
            leaf, (bool, int, float, complex, str, torch.dtype, torch.device)
        ):
            return (leaf,)
        raise Declined(f"forward returns a {type(leaf).__name__}")

    def _at_known_masks(self, func: Any, args: Any) -> Any:
        """The arguments of an index, with positions in place of masks that follow from constants;
        None where there are none."""
        if not picks(func):
            return None
        places: list[Any] = []
        known = False
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            try:
                at = self._known(PLACES, [self._read(index)[1]], {})
            except LookupError:  # as large as the values say
                places.append(index)
                continue
            known = True
            with self:
                places += at.unbind(1)
        return (args[0], places) if known else None

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
        if asserts(func) and asserts_sizes(str(args[1])):
            self.decisions.asserts_sizes = True
            return None
        if asserts(func) and (said := asserted_at(str(args[1]))):
            self.decisions.assert_that(self._read(args[0])[1], "==", True, said)
            return None
        if (parts := decomposition(func)) is not None:
            with self:
                return parts(*args, **(kwargs or {}))
        if (choose := as_choice(func, args)) is not None:
            with self:
                return choose()
        if reshapes_in_place(func) and self.aliases.is_own(id(args[0])):
            return self._viewed_in_place(func, args)
        fakes, values = self._read(args)
        if (elements := self._elements(func, values)) is not None:
            with self:
                every = torch.arange(elements, device=args[0].device)
                return func(every.view(-1, *args[0].shape[1:]))
        pairs = {k: self._read(v) for k, v in (kwargs or {}).items()}
        own, named = {k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}
        try:
            made = call(self.fake, func, fakes, own)
        except (DataDependentOutputException, DynamicOutputShapeException):
            try:
                return self._known(func, values, named)
            except LookupError as why:
                if reads_number(func) or reads_truth(func):
                    return self._number(func, fakes, values, named, str(why))
                if (placed := self._at_known_masks(func, args)) is not None:
                    with self:
                        return func(*placed)
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
        func = as_exported(func)
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
            func is STOP_GRADIENT
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

    def _viewed_in_place(self, func: Any, args: Any) -> Any:
        """The tensor itself, with another shape: what it was goes on as another tensor, of which it
        is a view from now on."""
        first = args[0]
        was = self._face(first, self._read(first)[1])
        self.aliases.made(id(was), id(first))
        self._views.renamed(id(first), id(was))
        with self:
            made = functional(func)(was, *args[1:])
        with torch._C._DisableTorchDispatch():  # the metadata alone: neither holds anything
            first.data = made
        self._values[id(first)] = self._values[id(made)]
        if id(made) in self._twins:
            self._twins[id(first)] = self._twins[id(made)]
        self._views.again(id(first), id(made))
        return first

    def _elements(self, func: Any, values: Any) -> int | None:
        """How many elements a loop goes over that is captured over all of them; None for any other
        operator."""
        loops = self.decisions.loops
        if loops is None or not goes_over_elements(func) or any(values[1:]):
            return None
        return loops.elements(values[0], short_line(user_line()))

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

    def _own(self, made: Any, normal: bool) -> Any:
        """``made`` with tensors of its own where the operator handed its operand back.

        A view of a weight must be a normal tensor (``normal``): torch's view kernels refuse an
        inference tensor there."""
        if isinstance(made, (list, tuple)):
            return type(made)(self._own(m, normal) for m in made)
        if not isinstance(made, torch.Tensor) or not (normal or id(made) in self._values):
            return made
        with torch.inference_mode(not normal):
            return fake_like(self.fake, made)

    def _call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Any) -> Any:
        """Record a call that the user's code is at."""
        place = CallSite(*self.scopes[-1], user_line())
        args, kwargs = self._stops.read(args), self._stops.read(kwargs)
        recorded = self.build.call(func, args, kwargs, made, _base(func), place)
        self._stops.made(recorded)
        return recorded

    def _stopped(self, value: Value) -> Value:
        place = CallSite(*self.scopes[-1], user_line())
        made: Value = self.build.call(STOP_GRADIENT, (value,), {}, value.type, "detach", place)
        return made

    # -- gradients of forward's own ----------------------------------------------------------------

    def carried(self, tensor: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
        """``tensor``, whose gradient goes to ``carrier``."""
        value, to = self.value_of(tensor), self.value_of(carrier)
        assert value is not None
        assert to is not None
        return self._face(tensor, self._carried(value, to))

    def _face(self, like: torch.Tensor, value: Value) -> torch.Tensor:
        """A new tensor for ``value``, which is of the type and shape of ``like``."""
        face = self.shown(fake_like(self.fake, self.blank(like)), value)
        self.aliases.made(id(face))
        return face

    def _carried(self, value: Value, carrier: Value) -> Value:
        return self._own_operator("gradient_to", [value, carrier], {})

    def _own_operator(self, name: str, operands: list[Value], attrs: dict[str, Any]) -> Value:
        """Record an operator of the table's own, whose result is like its first operand."""
        scope, kind = self.scopes[-1]
        origin = Origin("irprune", name, (), scope, user_line(), kind)
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
        line = f"{text} ({user_line()})"
        if line not in self.build.graph.notes:
            self.build.graph.notes.append(line)


def _of_inputs(leaf: Any, sizes: OpenSizes) -> Sym | None:
    """``leaf`` as a size made of those of inputs; None for a truth value, a stride, and a size that
    a node tells."""
    if isinstance(leaf, torch.SymBool) or type(leaf.node) is not SizeNode:
        return None
    found = expression_of(leaf)
    return found if isinstance(found, Sym) and sizes.is_of_inputs(found) else None


@cache
def _base(func: Any) -> str:
    return str(functional(func)._schema.name.split("::")[1])


def _creates(value: Value) -> bool:
    node = value.producer
    return node is not None and (
        not any(v is not None for v in node.inputs) or like_another(node.origin.target)
    )
