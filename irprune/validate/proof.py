"""The proof: the original with its dropped channels silenced, against the emitted module, on random
inputs.

And the captured graph, uncut, against the user's own ``forward``: what both the oracle and the
module come from. That is four forward passes, three of the original and one of the cut model. Where
it leaves a question, oracle and module run once more, in float64: where float32 rounding leaves a
doubt; where outputs are constant and would agree whatever was cut (with weights drawn at random);
where random numbers are no inputs of the model (with the example's own)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from irprune.base.tolerance import FLOAT32, FLOAT64
from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.source import torch_source
from irprune.ir.dtype import is_float, is_half, is_real
from irprune.ir.graph import Graph, Weight
from irprune.ops.arrays import as_numpy, as_tensor
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, over_tensors, redraw
from irprune.run.interpret import evaluate
from irprune.run.oracle import silenced
from irprune.run.other_sizes import other_sizes, resized
from irprune.run.precision import full_float32
from irprune.validate.proof_result import Proof, is_constant, is_nan
from irprune.validate.random_weights import seeds, with_random_numbers

__all__ = ["Proof", "prove"]


Remake = Callable[[Graph], tuple[Graph, torch.nn.Module]]
Call = tuple[Sequence[Any], dict[str, Any]]


def prove(
    graph: Graph,
    module: torch.nn.Module,
    remake: Remake,
    device: torch.device | None = None,
    seed: int = 0,
) -> Proof:
    """Compare ``module`` with the analysed ``graph`` whose choice it was cut by.

    ``remake(graph)`` cuts a copy of the graph and gives the cut graph and its module; it is called
    only where float64 decides."""
    began = time.perf_counter()
    with full_float32(), torch.random.fork_rng():
        where = device or torch.device("cpu")
        proof = _proven(graph, module, remake, where, seed)
        if proof.passed and torch_source(graph).module is not None:
            _prove_elsewhere(proof, graph, module, remake, where, seed)
    proof.seconds = time.perf_counter() - began
    return proof


def _proven(
    graph: Graph, module: torch.nn.Module, remake: Remake, device: torch.device, seed: int
) -> Proof:
    source = torch_source(graph)
    example, drawn = (
        (source.args, source.kwargs),
        redraw(source.args, source.kwargs, seed),
    )
    ours, theirs = _run(graph, module, remake, drawn, device, torch.float32, seed)
    proof = Proof(relative_error(ours, theirs), FLOAT32)
    constant = is_constant(theirs)
    if source.module is not None:
        outputs, proof.capture_error = _captured(graph, example, seed)
        proof.passes += 2
        constant = constant or is_constant(outputs)
    strange = any(bool(t.isnan().any()) for t in theirs)  # random numbers left the model's domain
    doubtful = not strange and proof.max_error > FLOAT32
    if doubtful or strange or constant:
        call, shake = (example if strange else drawn), constant and not doubtful
        before = (outputs if source.module is not None else []) if strange else theirs
        subject = _shaken(graph, seed) if shake else graph
        again = remake(subject)[1] if shake else module
        try:
            ours, theirs = _run(subject, again, remake, call, device, torch.float64, seed)
        except (RuntimeError, NotImplementedError) as refused:
            proof.notes.append(f"float64 is not possible here: {str(refused).splitlines()[0]}")
            if doubtful:
                return proof
            ours, theirs = _run(subject, again, remake, call, device, torch.float32, seed)
        else:
            proof.float32_error = None if strange else proof.max_error
            proof.tolerance, proof.dtype = FLOAT64, "float64"
        proof.max_error, proof.random_weights = relative_error(ours, theirs), shake
        same = not before or relative_error(theirs, before) <= FLOAT32  # whatever the weights
        constant = is_constant(theirs) or is_nan(theirs)
        proof.vacuous = same and constant and not doubtful
        proof.passes += 2
    return proof


def _prove_elsewhere(
    proof: Proof,
    graph: Graph,
    module: torch.nn.Module,
    remake: Remake,
    device: torch.device,
    seed: int,
) -> None:
    """Prove once more at the first other sizes that the user's ``forward`` takes, where sizes are
    open; ``proof`` gets the larger errors."""
    source = torch_source(graph)
    tried: list[str] = []
    for sizes in other_sizes(graph):
        call = resized(graph, source.inputs, (tuple(source.args), dict(source.kwargs)), sizes)
        shown = ", ".join(
            f"{v.name} {'x'.join(map(str, x.shape))}"
            for v, x in zip(graph.inputs, source.tensors(*call), strict=True)
        )
        try:
            expected = _expected(graph, call, seed)
        except Exception:  # whatever forward raises: these are not sizes that it takes
            tried.append(shown)
            continue
        drawn = redraw(*call, seed)
        ours, theirs = _run(graph, module, remake, drawn, device, torch.float32, seed)
        error = relative_error(ours, theirs)
        if not error <= proof.tolerance:
            ours, theirs = _run(graph, module, remake, call, device, torch.float64, seed)
            error = relative_error(ours, theirs)
        proof.max_error = max(proof.max_error, error)
        proof.capture_error = max(
            proof.capture_error or 0.0, relative_error(_found(graph, call, seed), expected)
        )
        proof.other_sizes = shown
        proof.passes += 4
        return
    if tried:
        proof.notes.append(f"proven at one size: forward refuses {'; '.join(tried[:3])}")


def _captured(graph: Graph, call: Call, seed: int) -> tuple[list[torch.Tensor], float]:
    """What the user's ``forward`` gives, in the model's own types and on its device, and the error
    of the uncut graph against it."""
    expected = _expected(graph, call, seed)
    return expected, relative_error(_found(graph, call, seed), expected)


def _expected(graph: Graph, call: Call, seed: int) -> list[torch.Tensor]:
    """What the user's ``forward`` gives. The model stays as it is."""
    model = torch_source(graph).module
    assert model is not None
    # Forward may write to them, and to its arguments
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with torch.random.fork_rng(), evaluating(model), attributes_kept(model):
        torch.manual_seed(seed)
        args, kwargs = over_tensors((tuple(call[0]), call[1]), torch.clone)
        return flat_tensors(torch.func.functional_call(model, buffers, args, kwargs))


def _found(graph: Graph, call: Call, seed: int) -> list[torch.Tensor]:
    """What the uncut graph gives."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        source = torch_source(graph)
        return source.results(evaluate(graph, source.tensors(*call)))


def _run(
    graph: Graph,
    module: torch.nn.Module,
    remake: Remake,
    call: Call,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of the module and of the silenced original, both in ``dtype`` and with the same
    random numbers."""
    assert graph.kept is not None
    args, kwargs = over_tensors(
        (tuple(call[0]), call[1]),
        lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device),
    )
    inputs = torch_source(graph).tensors(args, kwargs)
    torch.manual_seed(seed)
    theirs = torch_source(graph).results(silenced(graph, graph.kept, inputs, dtype))
    torch.manual_seed(seed)
    if dtype == torch.float64 and any(
        is_real(n.attrs.get("dtype", "")) and n.attrs["dtype"] != "f64" for n in graph.nodes
    ):
        return _wide(graph, remake, inputs), theirs
    moved = module
    if any(
        p.device != device or (p.is_floating_point() and p.dtype != dtype)
        for p in (*module.parameters(), *module.buffers())
    ):
        moved = copy.deepcopy(module).to(device, dtype)
    try:
        with torch.no_grad():
            ours = flat_tensors(moved(*args, **kwargs))
    except RuntimeError:
        if dtype != torch.float64 and not _casts_to_half(graph):
            raise
        torch.manual_seed(seed)
        ours = _wide(graph, remake, inputs, dtype)
    return ours, theirs


def _casts_to_half(graph: Graph) -> bool:
    """Whether forward casts to 16 bits, as one does that brings its inputs to the type of its
    weights."""
    return any(is_half(n.attrs.get("dtype") or "") for n in graph.nodes)


def _wide(
    graph: Graph, remake: Remake, inputs: list[torch.Tensor], dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """Outputs of the cut graph in ``dtype``, for a forward that names a type itself (casts,
    autocast): its casts are made wide."""
    return torch_source(graph).results(evaluate(remake(graph)[0], inputs, dtype=dtype))


def _shaken(graph: Graph, seed: int) -> Graph:
    """A copy of the graph with random numbers added to its parameters, so that zero-initialised
    layers pass something on."""
    twin = graph.copy()
    own = seeds(twin, seed)
    for weight in twin.weights.values():
        if weight.kind == "parameter" and is_float(weight.dtype):
            weight.load = _Shaken(weight, own[weight.name])
    return twin


class _Shaken:
    """A weight's loader with random numbers on top; the same every time."""

    def __init__(self, weight: Weight, seed: int) -> None:
        self.weight, self.load, self.seed = weight, weight.load, seed

    def __call__(self) -> torch.Tensor:
        array = as_tensor(self.load())
        made = with_random_numbers(self.weight, as_numpy(array), self.seed)
        return as_tensor(made).to(array.device)
