"""Which value of the graph each tensor of a running ``forward`` stands for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)

from irprune.frontend.torch.build import (
    Aliases,
    Builder,
    type_of,
)
from irprune.frontend.torch.declined import Declined
from irprune.frontend.torch.gradient_stops import (
    GradientStops,
)
from irprune.frontend.torch.result_types import fake_like
from irprune.frontend.torch.size_nodes import SizeNode, as_torch, expression_of, stride
from irprune.frontend.torch.sizes import size_of
from irprune.frontend.torch.source import Entry
from irprune.frontend.torch.views import Views
from irprune.ir.graph import TensorType, Value, Weight
from irprune.ops.dtypes import TO_TORCH
from irprune.run.stored_tensor import StoredTensor, read

__all__ = ["TensorTable"]


class TensorTable:
    """Tensors of a call on fake tensors, by what they stand for. Weights stay in the model: each
    gets a fake twin when it is first read.

    Args:
        build: The graph that is recorded.
        fake: The mode in which its tensors have no values.
        model: Whose ``forward`` runs.
    """

    def __init__(self, build: Builder, fake: FakeTensorMode, model: nn.Module) -> None:
        self.build, self.fake, self.model = build, fake, model
        self.aliases = Aliases()
        self.state: dict[str, Entry] = {}
        self._values: dict[int, Value] = {}
        self._views = Views(self._values, self._call)
        self._stops = GradientStops(self._stopped)
        self._twins: dict[int, torch.Tensor] = {}
        self._held: list[torch.Tensor] = []  # keeps ids from being taken again
        self._storages: dict[tuple[Any, ...], Weight] | None = None
        self._weights: dict[int, tuple[torch.Tensor, Weight]] = {}
        if build.sizes is not None:
            self._stride = stride(build.sizes)
        self._blanks: dict[tuple[TensorType, bool], torch.Tensor] = {}
        self._declare()

    def _call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Any) -> Any:
        """Record a call; given by the recorder."""
        raise NotImplementedError

    def _stopped(self, value: Value) -> Value:
        """``value`` as what no gradient goes through; given by the recorder."""
        raise NotImplementedError

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
        """A tensor on the meta device of open sizes; one serves all of a type, another those that
        are views of weights, which are no inference tensors."""
        key = kind, torch.is_inference_mode_enabled()
        if key not in self._blanks:
            sizes = self.build.sizes
            assert sizes is not None
            self._blanks[key] = torch.empty_strided(
                [as_torch(s, sizes) for s in kind.known],
                [self._stride] * kind.rank,
                dtype=TO_TORCH[kind.dtype],
                device="meta",
            )
        return self._blanks[key]

    def twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor of the same type, shape, strides and device."""
        if (
            type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer, StoredTensor)
            or tensor.layout is not torch.strided
        ):
            raise Declined(f"tensor subclass or layout {type(tensor).__name__}, {tensor.layout}")
        return fake_like(self.fake, tensor)

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
        state = value.name if isinstance(value, Weight) and value.kind == "buffer" else ""
        for t in (tensor, twin):
            self.hold(t, value)
            self.aliases.given(id(t), state)
        self._twins[id(tensor)] = twin
        return twin

    def _same_storage(self, tensor: torch.Tensor) -> Weight | None:
        """The weight whose ``.data`` this is."""
        if not _has_storage(tensor):
            return None
        if self._storages is None:
            self._storages = {_storage(t): w for t, w in self._weights.values() if _has_storage(t)}
        return self._storages.get(_storage(tensor))

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

    def _example(self, kind: TensorType) -> TensorType:
        """``kind`` at the sizes of the example."""
        sizes = self.build.sizes
        if sizes is None or kind.static:
            return kind
        return TensorType(kind.dtype, tuple(sizes.value(s) for s in kind.known))

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


def _has_storage(t: torch.Tensor) -> bool:
    return t.device.type != "meta" and t.numel() > 0 and not isinstance(t, StoredTensor)


def _storage(t: torch.Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.shape, t.stride(), t.dtype
