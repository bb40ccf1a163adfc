"""The proof: the original with its dropped channels silenced, against the emitted module, on random
inputs.

The first pass takes the weights as they are, in float32, or in float64 where the model is, and
compares the captured graph, uncut, with the user's own ``forward``. Where float32 rounding leaves a
doubt, or random numbers are no inputs of the model, oracle and module run once more in float64. The
second pass has random numbers for weights (``random_weights_proof``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from irprune.base.tolerance import CANCELLED, FLOAT32, FLOAT64
from irprune.errors import IrpruneError, OtherOutcome, gist, option
from irprune.frontend.torch.source import torch_source
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import asserts_values, flat_tensors, redraw, to_device
from irprune.run.interpret import evaluate, named_types
from irprune.run.one_type import computing_in
from irprune.run.oracle import silenced
from irprune.run.precision import full_float32
from irprune.run.stored_tensor import moved
from irprune.validate.affected_outputs import reached_of
from irprune.validate.judge import Call, forward_of
from irprune.validate.proof_result import Proof, is_constant, is_nan
from irprune.validate.random_weights_proof import CutRunner, prove_with_random_weights
from irprune.validate.run_failure import REFUSED, Stopped, stopping

__all__ = ["Proof", "Remake", "prove"]


@dataclass(frozen=True)
class Remake:
    """How a graph is cut as the one that is proven was, with other weights or less of a choice.

    Args:
        graph: Cuts a copy of a graph.
        module: Makes the module of a cut graph.
    """

    graph: Callable[[Graph], Graph]
    module: Callable[[Graph], torch.nn.Module]

    def __call__(self, graph: Graph) -> torch.nn.Module:
        """The module of ``graph`` after its cut."""
        return self.module(self.graph(graph))


def prove(
    graph: Graph,
    module: torch.nn.Module,
    remake: Remake,
    device: torch.device | None = None,
    seed: int = 0,
) -> Proof:
    """Compare ``module`` with the analysed ``graph`` whose choice it was cut by.

    ``remake`` cuts a copy of the graph: once with random weights, and where float64 decides."""
    began = time.perf_counter()
    with full_float32(), torch.random.fork_rng():
        where = device or torch.device("cpu")
        first = _First(graph, module, remake, where, seed)
        try:
            proof = first.proof()
            if proof.max_error <= proof.tolerance and proof.captured:
                _prove_again(proof, graph, remake, where, seed, own=first.own)
        except Stopped as stopped:
            proof = Proof(float("inf"), FLOAT32, stops=str(stopped))
        except OtherOutcome as other:
            raise IrpruneError(
                f"what is cut changes which way forward goes: {other.what}",
                graph.name,
                f"cut less ({option('ratio')}), or keep what the branch goes by ({option('keep')})",
            ) from other
        if proof.second_pass is not None:
            proof.vacuous = bool(proof.second_pass.nothing)
            proof.random_weights = first.constant
    proof.seconds = time.perf_counter() - began
    return proof


def _prove_again(
    proof: Proof, graph: Graph, remake: Remake, device: torch.device, seed: int, own: bool
) -> None:
    """The second pass. Where the judge alone differs, it is asked whether the capture does."""

    def run(subject: Graph, again: torch.nn.Module, call: Call, dtype: torch.dtype) -> Any:
        return _cut(subject, again, remake, call, device, dtype)

    def wide(subject: Graph, call: Call) -> Any:
        return _wide(subject, remake, _inputs(subject, call, device, torch.float64)[2])

    cut = CutRunner(remake, run, wide)
    prove_with_random_weights(proof, graph, cut, device, own, seed)


class _First:
    """The pass with the weights as they are."""

    def __init__(
        self,
        graph: Graph,
        module: torch.nn.Module,
        remake: Remake,
        device: torch.device,
        seed: int,
    ) -> None:
        self.graph, self.module, self.remake = graph, module, remake
        self.device, self.seed = device, seed
        # whether the example's own numbers are the inputs: with others forward may go another way
        self.own = asserts_values(graph)
        self.constant = False  # whether the outputs say nothing

    def proof(self) -> Proof:
        source = torch_source(self.graph)
        example = (source.args, source.kwargs)
        drawn = example if self.own else redraw(source.args, source.kwargs, self.seed)
        own = _own_type(self.graph)
        theirs = self._silenced(drawn, own)
        with stopping():
            ours = self._module(drawn, own)
        double = own == torch.float64
        proof = Proof(
            relative_error(ours, theirs),
            FLOAT64 if double else FLOAT32,
            "float64" if double else "float32",
        )
        self.constant = is_constant(self._reached(theirs))
        if source.module is not None:
            outputs, proof.capture_error = _captured(self.graph, example, self.seed)
            proof.passes += 2
            self.constant = self.constant or is_constant(self._reached(outputs))
        # Random numbers left the model's domain
        self.own |= any(bool(t.isnan().any()) for t in theirs)
        if self.own or not proof.max_error <= proof.tolerance:
            try:
                ours, theirs = self._both(example if self.own else drawn, torch.float64)
            except REFUSED as refused:
                proof.notes.append(f"float64 is not possible here: {gist(refused)}")
                if not self.own:
                    return proof
                ours, theirs = self._both(example, torch.float32)
            else:
                proof.float32_error = None if self.own or double else proof.max_error
                proof.tolerance, proof.dtype = FLOAT64, "float64"
            share = CANCELLED if proof.dtype == "float64" else 0.0
            proof.max_error = relative_error(ours, theirs, share)
            told = self._reached(theirs)
            self.constant = is_constant(told) or is_nan(told)
            proof.passes += 2
        return proof

    def _reached(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return reached_of(self.graph, outputs, torch_source(self.graph).outputs)

    def _both(self, call: Call, dtype: torch.dtype) -> tuple[list[torch.Tensor], ...]:
        """Outputs of the module and of the silenced original, both in ``dtype`` and with the same
        random numbers."""
        theirs = self._silenced(call, dtype)
        return self._module(call, dtype), theirs

    def _silenced(self, call: Call, dtype: torch.dtype) -> list[torch.Tensor]:
        graph = self.graph
        assert graph.kept is not None
        _, _, inputs = _inputs(graph, call, self.device, dtype)
        torch.manual_seed(self.seed)
        return torch_source(graph).results(silenced(graph, graph.kept, inputs, dtype))

    def _module(self, call: Call, dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(self.seed)
        return _cut(self.graph, self.module, self.remake, call, self.device, dtype)


def _captured(graph: Graph, call: Call, seed: int) -> tuple[list[torch.Tensor], float]:
    """What the user's ``forward`` gives, in the model's own types and on its device, and the error
    of the uncut graph against it."""
    expected = forward_of(graph, call, seed)
    return expected, relative_error(_graph_results(graph, call, seed), expected)


def _graph_results(graph: Graph, call: Call, seed: int) -> list[torch.Tensor]:
    """What the uncut graph gives."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        source = torch_source(graph)
        return source.results(evaluate(graph, source.tensors(*call)))


def _inputs(
    graph: Graph, call: Call, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any, list[torch.Tensor]]:
    """The arguments of ``call`` on ``device`` and in ``dtype``, and what they hand to the graph."""
    args, kwargs = to_device((tuple(call[0]), call[1]), device, dtype)
    return args, kwargs, torch_source(graph).tensors(args, kwargs)


def _cut(
    graph: Graph,
    module: torch.nn.Module,
    remake: Remake,
    call: Call,
    device: torch.device,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """Outputs of ``module``, which is that of the cut ``graph``, in ``dtype``."""
    args, kwargs, inputs = _inputs(graph, call, device, dtype)
    subject = module
    if any(
        p.device != device or (p.is_floating_point() and p.dtype != dtype)
        for p in (*module.parameters(), *module.buffers())
    ):
        # What is complex stays so
        subject = moved(module, device, dtype)
    state = torch.get_rng_state()
    try:
        with torch.no_grad(), computing_in(graph, dtype):
            return flat_tensors(subject(*args, **kwargs))
    except REFUSED:
        if dtype != torch.float64 and not named_types(graph):
            raise
        torch.set_rng_state(state)
        return _wide(graph, remake, inputs, dtype)


def _own_type(graph: Graph) -> torch.dtype:
    """The type of the first pass: that of the model where it is float64 throughout, else float32,
    in which halves are computed too."""
    kinds = {w.dtype for w in graph.weights.values() if w.kind == "parameter"}
    kinds |= {v.dtype for v in graph.inputs}
    return torch.float64 if "f64" in kinds and not kinds & {"f32", "f16", "bf16"} else torch.float32


def _wide(
    graph: Graph, remake: Remake, inputs: list[torch.Tensor], dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """Outputs of the cut graph in ``dtype``, for a forward that names a type itself (casts,
    autocast): its casts are made wide."""
    return torch_source(graph).results(evaluate(remake.graph(graph), inputs, dtype=dtype))
