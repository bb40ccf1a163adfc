"""Gradients that forward gives itself: ``torch.autograd.Function`` with its own ``backward``, hooks
on tensors, activation checkpointing.

What a ``backward`` does is measured on random numbers. Where it gives the gradient of what
``forward`` computes, that is recorded as it is. Where it multiplies the gradient, element by
element (straight-through estimators, reversal, surrogates), the graph says so: the result carries
on its gradient to the input times the factor. What is left is said in the notes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.autograd.function import _is_setup_context_defined, _SingleLevelFunction
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import _disable_current_modes

from irprune.errors import gist
from irprune.frontend.torch.gradient_stops import carries_gradient
from irprune.ir.graph import Value

__all__ = ["Recording", "functions_named", "hooks_of_model", "own_gradients", "real_tensors"]

_CLOSE = 1e-3  # float32 gradients of the same function, by other ways


class Recording(Protocol):
    """What a recorder offers to what records gradients."""

    def value_of(self, tensor: torch.Tensor) -> Value | None:
        """What ``tensor`` stands for, if anything."""

    def blank(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor like it, at the sizes of the example call."""

    def carried(self, tensor: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
        """``tensor``, whose gradient goes to ``carrier``."""

    def replace(self, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """From now on ``tensor`` stands for what ``other`` does."""

    def note(self, text: str) -> None:
        """Tell the user, with the line that forward is at."""


class _Context:
    """Stands for the ``ctx`` of a Function."""

    def __init__(self, args: Sequence[Any]) -> None:
        self.saved_tensors: tuple[Any, ...] = ()
        self.needs_input_grad = tuple(_is_float(a) for a in args)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None: ...

    def mark_dirty(self, *tensors: Any) -> None: ...

    def mark_non_differentiable(self, *tensors: Any) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


@dataclass(frozen=True)
class _Plain:
    """The gradient is that of what forward computes."""


@dataclass(frozen=True)
class _Scaled:
    """The gradient of each input, by position, is that of the result times a factor: a number, or
    None where backward gives it."""

    factors: dict[int, float | None]


@dataclass(frozen=True)
class _Other:
    """Something else."""

    why: str


_Judgement = _Plain | _Scaled | _Other


def _is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _forward(kind: Any, context: _Context, args: Sequence[Any]) -> Any:
    if not _is_setup_context_defined(kind.setup_context):  # type: ignore[no-untyped-call]
        return kind.forward(context, *args)
    made = kind.forward(*args)
    kind.setup_context(context, tuple(args), made)
    return made


@contextlib.contextmanager
def own_gradients(recording: Recording) -> Iterator[None]:
    """What forward says of gradients reaches ``recording``."""
    functions = _Functions(recording)
    plain_checkpoint = checkpointing._checkpoint_without_reentrant_generator
    register_hook = torch.Tensor.register_hook
    requires_grad: Any = torch._C.TensorBase.requires_grad

    def hooked(tensor: torch.Tensor, hook: Callable[[Any], Any]) -> Any:
        if recording.value_of(tensor) is None or isinstance(tensor, torch.nn.Parameter):
            return register_hook(tensor, hook)  # type: ignore[no-untyped-call]
        functions.hook(tensor, hook)
        return _NoHandle()

    def answer(tensor: torch.Tensor) -> bool:
        value = recording.value_of(tensor) if type(tensor) is FakeTensor else None
        if value is None:
            return bool(requires_grad.__get__(tensor))
        return torch.is_grad_enabled() and carries_gradient(value, of_inputs=False)

    def once(*args: Any, **kwargs: Any) -> Iterator[None]:
        recording.note("activation checkpointing is not kept, gradients are the same")
        yield

    @classmethod  # type: ignore[misc]
    def apply(cls: Any, *args: Any) -> Any:
        return functions.call(cls, args)

    _SingleLevelFunction.apply = apply  # type: ignore[attr-defined]
    checkpointing._checkpoint_without_reentrant_generator = once
    torch.Tensor.register_hook = hooked  # type: ignore[method-assign]
    torch.Tensor.requires_grad = property(answer, requires_grad.__set__)  # type: ignore[assignment]
    try:
        yield
    finally:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]
        checkpointing._checkpoint_without_reentrant_generator = plain_checkpoint
        torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]
        del torch.Tensor.requires_grad


@contextlib.contextmanager
def functions_named(found: dict[str, None]) -> Iterator[None]:
    """Functions run as what their forward computes; what is lost of gradients is put into
    ``found``: their names, and hooks on tensors that forward makes."""
    register_hook = torch.Tensor.register_hook

    def hooked(tensor: torch.Tensor, hook: Callable[[Any], Any]) -> Any:
        if type(tensor) is not FakeTensor or isinstance(tensor, torch.nn.Parameter):
            return register_hook(tensor, hook)  # type: ignore[no-untyped-call]
        found[HOOK] = None
        return _NoHandle()

    @classmethod  # type: ignore[misc]
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is checkpointing.CheckpointFunction:
            return args[0](*args[2:])
        found[cls.__qualname__] = None
        return _forward(cls, _Context(args), args)

    _SingleLevelFunction.apply = apply  # type: ignore[attr-defined]
    torch.Tensor.register_hook = hooked  # type: ignore[method-assign]
    try:
        yield
    finally:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]
        torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]


HOOK = "register_hook"  # stands for hooks on tensors among the names of Functions


class _NoHandle:
    """What ``register_hook`` gives under capture."""

    def remove(self) -> None: ...


class _Functions:
    """Calls of Functions under capture."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._judged: dict[Any, _Judgement] = {}

    def call(self, kind: Any, args: Sequence[Any]) -> Any:
        """What ``kind.apply(*args)`` gives."""
        recording = self._recording
        if kind is checkpointing.CheckpointFunction:
            recording.note("activation checkpointing is not kept, gradients are the same")
            return args[0](*args[2:])
        trained = torch.is_grad_enabled() and any(map(self._trained, args))
        judged = self._judge(kind, args) if trained else _Plain()
        context = _Context(args)
        if not isinstance(judged, _Scaled):
            if isinstance(judged, _Other):
                recording.note(
                    f"the backward of {kind.__qualname__} is not kept, gradients are those of its "
                    f"forward: {judged.why}"
                )
            return _forward(kind, context, args)
        with torch.no_grad():
            made = _forward(kind, context, args)
            traced: Any = ()
            if None in judged.factors.values():
                traced = kind.backward(context, torch.ones_like(made))
                traced = traced if isinstance(traced, tuple) else (traced,)
        carrier = None
        for i, factor in judged.factors.items():
            by = traced[i] if factor is None else factor
            term = args[i] if factor == 1 else args[i] * by
            carrier = term if carrier is None else carrier + term
        return made.detach() if carrier is None else recording.carried(made, carrier)

    def hook(self, tensor: torch.Tensor, hook: Callable[[Any], Any]) -> None:
        """``tensor.register_hook(hook)``: kept where the hook multiplies by a number."""
        recording = self._recording
        if not torch.is_grad_enabled():
            return
        factor: float | None = None
        with real_tensors():
            gradient = _spread(recording.blank(tensor))
            try:
                made = hook(gradient.clone())
                if made is not None:
                    factor = _constant(made / gradient)
            except Exception:  # whatever the hook raises on numbers of no meaning
                made = gradient
        if made is None:
            recording.note("a hook that looks at the gradient of a tensor is not kept")
        elif factor is None:
            recording.note("a hook that changes the gradient of a tensor is not kept")
        elif factor != 1:
            recording.replace(tensor, recording.carried(tensor, tensor * factor))

    def _trained(self, x: Any) -> bool:
        value = self._recording.value_of(x) if _is_float(x) else None
        if value is None:
            return isinstance(x, torch.nn.Parameter)
        return carries_gradient(value)

    def _judge(self, kind: Any, args: Sequence[Any]) -> _Judgement:
        key = kind, tuple(map(self._like, args))
        if key not in self._judged:
            with real_tensors():
                try:
                    self._judged[key] = _judged(kind, [self._real(a) for a in args])
                # a backward raises what it likes on numbers of no meaning
                except Exception as failed:
                    self._judged[key] = _Other(f"it fails on random numbers, {gist(failed)}")
        return self._judged[key]

    def _like(self, x: Any) -> Any:
        """What is the same for arguments that are judged alike."""
        if not isinstance(x, torch.Tensor):
            return id(x)
        return tuple(self._recording.blank(x).shape), x.dtype

    def _real(self, x: Any) -> Any:
        """Numbers in place of a tensor without values, and of an open size."""
        if isinstance(x, (torch.SymInt, torch.SymFloat)):
            return x.node.hint
        if not isinstance(x, torch.Tensor):
            return x
        if not isinstance(x, FakeTensor):
            return x.detach().clone()
        blank = self._recording.blank(x)
        return _spread(blank) if _is_float(blank) else torch.zeros(blank.shape, dtype=blank.dtype)


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """Torch as it is outside of a capture, with random numbers of its own."""
    with (
        unset_fake_temporarily(),
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=()),
    ):
        torch.manual_seed(0)
        yield


def _spread(like: torch.Tensor) -> torch.Tensor:
    """Random numbers of three orders of magnitude, so that they lie on both sides of bounds."""
    made = torch.randn(like.shape, dtype=torch.float64)
    steps = torch.arange(made.numel()).reshape(made.shape) % 3 - 1
    return (made * 10.0**steps).to(like.dtype)


def _judged(kind: Any, args: Sequence[Any]) -> _Judgement:
    """What the backward of ``kind`` does, told on the numbers ``args``."""
    places = [i for i, a in enumerate(args) if _is_float(a)]

    def grads(run: Callable[[list[Any]], Any], by: Any) -> tuple[Any, list[torch.Tensor]]:
        own = [a.clone().requires_grad_() if i in places else a for i, a in enumerate(args)]
        leaves = [own[i] for i in places]
        # not leaves themselves: forward may write to them
        made = run([a.clone() if i in places else a for i, a in enumerate(own)])
        results = [t for t in pytree.tree_leaves(made) if _is_float(t)]
        derived = [t for t in results if t.requires_grad]
        seeds = [by(t) for t in derived]
        found = (
            torch.autograd.grad(derived, leaves, seeds, allow_unused=True)
            if derived
            else [None] * len(leaves)
        )
        return results, [
            torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)
        ]

    def drawn(t: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(t.numel())
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)

    def apply(own: list[Any]) -> Any:
        return super(_SingleLevelFunction, kind).apply(*own)

    results, wanted = grads(apply, drawn)
    try:
        plain = grads(lambda own: _forward(kind, _Context(own), own), drawn)[1]
    except RuntimeError:  # forward writes in place, or has no derivative
        plain = []
    if plain and all(map(_close, plain, wanted)):
        return _Plain()
    if len(results) != 1:
        return _Other("it has several results")
    factors: dict[int, float | None] = {}
    scales = grads(apply, torch.ones_like)[1]
    for i, scale, gradient in zip(places, scales, wanted, strict=True):
        if not bool(gradient.any()) and not bool(scale.any()):
            continue
        if scale.shape != results[0].shape or not _close(scale * drawn(results[0]), gradient):
            return _Other("it does not work element by element")
        factors[i] = _constant(scale)
    return _Scaled(factors)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.detach().double().nan_to_num(), b.detach().double().nan_to_num()
    scale = float(torch.maximum(a.abs().max(), b.abs().max())) if a.numel() else 0.0
    return a.shape == b.shape and float((a - b).abs().max() if a.numel() else 0) <= _CLOSE * scale


def _constant(x: torch.Tensor) -> float | None:
    """The one number in ``x``; None where there are several."""
    flat = x.detach().double().reshape(-1)
    if not flat.numel() or not bool(((flat - flat[0]).abs() <= 1e-6 * flat[0].abs()).all()):
        return None
    return float(x.reshape(-1)[0])


def hooks_of_model(model: torch.nn.Module) -> Iterator[str]:
    """What hooks on the gradients of modules and parameters are left out, one line for each."""
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            yield f"a backward hook of {name or type(model).__name__!r} is not kept"
    for name, p in model.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            yield f"a hook on the gradient of {name!r} is not kept"
