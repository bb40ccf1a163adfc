"""The proof of gradients: those of the cut module against those of the silenced original, and those
of the captured graph against the user's own ``forward``.

The outputs are weighted with random numbers and derived by every parameter and every floating-point
input, in eval mode and in float64 where forward runs in it. What the cut keeps of a parameter must
have the gradient that it has in the silenced original."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from irprune.base.tolerance import GRADIENT, GRADIENT32, GRADIENT_FLOOR, GRADIENT_FLOOR32
from irprune.errors import first_line
from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.source import torch_source
from irprune.ir.graph import Graph, Weight
from irprune.ops.arrays import as_tensor
from irprune.run.inputs import asserts_values, flat_tensors, over_tensors, redraw, to_device
from irprune.run.interpret import evaluate, symbols_of
from irprune.run.one_type import computing_in
from irprune.run.oracle import silencer
from irprune.run.precision import full_float32
from irprune.run.stored_tensor import read, read_whole
from irprune.run.take import kept_indices, take
from irprune.validate.run_failure import REFUSED

__all__ = ["Gradients", "is_cheap", "prove_gradients"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
Found = dict[str, torch.Tensor]

_MACS, _PARAMS, _NODES = 3e8, 1e7, 1000  # about a second of one processor


def is_cheap(graph: Graph, macs: float) -> bool:
    """Whether the proof of gradients takes no more than about a second; ``macs`` is what one call
    of the model costs."""
    params = sum(
        torch.Size(int(n) for n in w.shape if isinstance(n, int)).numel()
        for w in graph.weights.values()
    )
    return macs <= _MACS and params <= _PARAMS and len(graph.nodes) <= _NODES


@dataclass(frozen=True)
class Gradients:
    """What was measured, relative to the largest magnitude of a gradient of each tensor.

    Args:
        error: the largest error of the cut module against the silenced original.
        worst: the tensor that it is at.
        tolerance: what is allowed.
        dtype: the type that it was computed in.
        differing: the tensors at which the captured graph has another gradient than forward.
        notes: what could not be compared, and why.
    """

    error: float
    worst: str
    tolerance: float
    dtype: str
    differing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def prove_gradients(
    graph: Graph, module: torch.nn.Module, device: torch.device | None = None, seed: int = 0
) -> Gradients | str:
    """Compare the gradients of ``module`` with those of the analysed ``graph`` that it was cut
    from, silenced. A text says why there is nothing to compare."""
    where = device or torch.device("cpu")
    with full_float32(), torch.random.fork_rng(), torch.enable_grad():
        try:
            return _proven(graph, module, where, torch.float64, seed)
        except (*REFUSED, TypeError) as refused:
            why = first_line(refused)
        try:
            found = _proven(graph, module, where, torch.float32, seed)
        except (*REFUSED, TypeError):
            return f"gradients are not compared: {why}"
        if isinstance(found, str):
            return found
        told = f"gradients are compared in float32, to {GRADIENT32:.0e}: {why}"
        return replace(found, notes=(*found.notes, told))


def _proven(
    graph: Graph, module: torch.nn.Module, device: torch.device, dtype: torch.dtype, seed: int
) -> Gradients | str:
    source = torch_source(graph)
    assert graph.kept is not None
    example = (source.args, source.kwargs)
    drawn = example if asserts_values(graph) else redraw(*example, seed)
    call = to_device(drawn, device, dtype)
    tolerance = GRADIENT if dtype == torch.float64 else GRADIENT32
    silent = _of_graph(graph, call, dtype, seed, silence=True)
    if not any(bool(g.any()) for g in silent.values()):
        return "gradients are not compared: the outputs depend on no parameter by a derivative"
    weights = {w.name: w for w in graph.weights.values()}
    expected = {
        name: take(g, kept_indices(weights[name], graph.kept)) if name in weights else g
        for name, g in silent.items()
    }
    # What is 0 but for rounding, as of a bias before a softmax, has no error relative to itself
    least = GRADIENT_FLOOR if dtype == torch.float64 else GRADIENT_FLOOR32
    floor = least * max(float(g.abs().max()) for g in silent.values() if g.numel())
    ours = _of_module(graph, module, call, dtype, seed)
    error, worst = _largest(ours, expected, floor)
    differing: list[str] = []
    notes: list[str] = []
    if source.module is not None:
        try:
            forward = _of_forward(graph, call, dtype, seed)
        except Exception as failed:  # whatever the user's own backward raises
            notes.append(f"gradients of forward itself are not compared: {first_line(failed)}")
        else:
            own = _of_graph(graph, call, dtype, seed)
            differing = [
                name
                for name, g in own.items()
                if not _largest({name: forward.get(name, g)}, {name: g}, floor)[0] <= tolerance
            ]
    name = str(dtype).removeprefix("torch.")
    return Gradients(error, worst, tolerance, name, tuple(differing), tuple(notes))


def _largest(ours: Mapping[str, torch.Tensor], theirs: Found, floor: float) -> tuple[float, str]:
    """The largest error relative to the largest magnitude of a tensor, but not below ``floor``, and
    the tensor that it is at."""
    worst = (0.0, "")
    for name, b in theirs.items():
        a = ours.get(name)
        if a is None or not b.numel():
            continue
        a, b = torch.view_as_real(a) if a.is_complex() else a, b
        b = torch.view_as_real(b) if b.is_complex() else b
        if a.shape != b.shape:
            return float("inf"), name
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        if not bool(torch.isfinite(b).all()):
            continue  # the original has no gradient there
        scale = max(floor, float(torch.maximum(a.abs().max(), b.abs().max())))
        error = float((a - b).abs().max()) / scale if scale > 0 else 0.0
        if not error <= worst[0]:
            worst = (error, name)
    return worst


def _derived(
    outputs: Sequence[torch.Tensor], leaves: Mapping[str, torch.Tensor], seed: int
) -> Found:
    """The gradients of ``leaves``, 0 where there is none, of the outputs weighted at random."""
    total: Any = None
    for i, y in enumerate(outputs):
        if not y.requires_grad:
            continue
        y = torch.view_as_real(y) if y.is_complex() else y
        generator = torch.Generator().manual_seed(seed + i)
        by = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
        term = (y * by).sum().double()
        total = term if total is None else total + term
    if total is None:
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    total.backward()  # not grad(): checkpoints of the old kind refuse that
    return {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}


def _leaf(t: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A copy that gradients flow to, complex and whole numbers in their own type."""
    own = read(t.detach()).to(device, dtype if t.is_floating_point() else t.dtype, copy=True)
    return own.requires_grad_(own.is_floating_point() or own.is_complex())


def _watched(call: Call, leaves: dict[str, torch.Tensor]) -> Call:
    """``call`` with floating-point tensors that are put into ``leaves``; forward gets copies, which
    it may write to."""
    count = 0

    def watch(t: torch.Tensor) -> torch.Tensor:
        nonlocal count
        if not t.is_floating_point():
            return t.clone()
        leaf = t.detach().clone().requires_grad_()
        leaves[f"input {count}"] = leaf
        count += 1
        return leaf.clone()

    made: Call = over_tensors(call, watch)
    return made


def _device_of(call: Call) -> torch.device:
    return next((t.device for t in flat_tensors(call)), torch.device("cpu"))


def _of_graph(
    graph: Graph, call: Call, dtype: torch.dtype, seed: int, silence: bool = False
) -> Found:
    """Gradients of the uncut graph, with what is dropped silenced where ``silence`` says so."""
    device = _device_of(call)
    leaves: dict[str, torch.Tensor] = {}
    held: dict[Weight, torch.Tensor] = {}
    for w in graph.weights.values():
        if w.kind == "parameter":
            held[w] = _leaf(as_tensor(w.load()), device, dtype)
            if held[w].requires_grad:
                leaves[w.name] = held[w]
    source = torch_source(graph)
    inputs = source.tensors(*_watched(call, leaves))
    torch.manual_seed(seed)
    hook = None
    if silence:
        assert graph.kept is not None
        hook = silencer(graph.kept, device, symbols_of(graph, inputs))
    made = evaluate(graph, inputs, dtype=dtype, hook=hook, device=device, weights=held)
    return _derived(source.results(made), leaves, seed)


def _of_module(
    graph: Graph, module: torch.nn.Module, call: Call, dtype: torch.dtype, seed: int
) -> Found:
    """Gradients of the module that goes out."""
    device = _device_of(call)
    # not .to() of the module, which makes complex numbers real
    moved = read_whole(copy.deepcopy(module))._apply(  # type: ignore[no-untyped-call]
        lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype)
    )
    leaves: dict[str, torch.Tensor] = {}
    for name, p in moved.named_parameters():
        if p.is_floating_point() or p.is_complex():
            leaves[name] = p.requires_grad_()
    args, kwargs = _watched(call, leaves)
    torch.manual_seed(seed)
    with computing_in(graph, dtype):
        return _derived(flat_tensors(moved(*args, **kwargs)), leaves, seed)


def _of_forward(graph: Graph, call: Call, dtype: torch.dtype, seed: int) -> Found:
    """Gradients of the user's own forward. The model stays as it is."""
    model = torch_source(graph).module
    assert model is not None
    device = _device_of(call)
    leaves: dict[str, torch.Tensor] = {}
    shared: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) not in shared:
            shared[id(p)] = _leaf(p, device, dtype)
            if shared[id(p)].requires_grad:
                leaves[name] = shared[id(p)]
        state[name] = shared[id(p)]
    for name, b in model.named_buffers():
        state[name] = b.to(device, dtype if b.is_floating_point() else b.dtype, copy=True)
    with evaluating(model), attributes_kept(model), torch.enable_grad():
        args, kwargs = _watched(call, leaves)
        torch.manual_seed(seed)
        around = _Derivation(model)
        stated = {f"model.{name}": t for name, t in state.items()}
        with computing_in(graph, dtype):
            found: Found = torch.func.functional_call(
                around, stated, (args, kwargs, leaves, seed), strict=False
            )
        return found


class _Derivation(torch.nn.Module):
    """Forward and backward of a module in one call, since checkpoints run forward again in
    backward, which must find the same parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, args: Any, kwargs: dict[str, Any], leaves: Mapping[str, torch.Tensor], seed: int
    ) -> Found:
        return _derived(flat_tensors(self.model(*args, **kwargs)), leaves, seed)
