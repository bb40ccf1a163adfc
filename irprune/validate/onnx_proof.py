"""The proof for ONNX: the file that came in, silenced, against the file that goes out, on
onnxruntime. It needs no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import onnx
from numpy.typing import NDArray

from irprune.analysis.sizes import fits, shown_sizes
from irprune.base.tolerance import FLOAT32, FLOAT64
from irprune.errors import CheckFailed, IrpruneError, option
from irprune.frontend.onnx.file import Loader
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.run.session import PRECISE
from irprune.run.tried_sizes import tried_sizes
from irprune.validate.affected_outputs import reached_of
from irprune.validate.onnx_double import doubled
from irprune.validate.onnx_forced_branches import drive, drives, emitted
from irprune.validate.onnx_oracle import silenced_model
from irprune.validate.onnx_random_weights_proof import Remake, prove_with_random_weights
from irprune.validate.onnx_read_back import misread
from irprune.validate.onnx_run import NoPlace, run_model, session
from irprune.validate.onnx_sizes import plausible
from irprune.validate.onnx_unrounded import unrounded
from irprune.validate.onnx_vanishing_outputs import faint_error, in_float64
from irprune.validate.onnx_widen import widen, widened_inputs
from irprune.validate.proof_result import Proof, in_every_branch, is_constant, is_nan
from irprune.validate.saturation import changed_by_saturation, products_saturate

__all__ = ["prove_onnx"]

Array = NDArray[Any]


def prove_onnx(graph: Graph, cut: Graph, remake: Remake | None = None, seed: int = 0) -> Proof:
    """Compare the model of the ``cut`` graph with the analysed ``graph`` whose choice it was cut
    by.

    Halves are computed in float32, and quantised models without rounding to integers, so that
    neither this machine's kernels nor a number that falls to the next integer decides. A second
    pass has random numbers for weights: ``remake(model)`` analyses a model and makes the same cut,
    or gives None. Raises IrpruneError where an operator that mixes what was dropped has no ONNX
    form of its silencing, where onnxruntime does not run the model, and where the disk has no place
    for what is compared.

    Where branches of Ifs were cut, the proof is made with each of them taken as well."""
    try:
        proof = _proven(graph, cut, remake, seed)
        branches = [
            _proven(drive(graph, taken), drive(cut, taken), remake, seed) for taken in drives(graph)
        ]
    except NoPlace as full:
        raise IrpruneError(
            f"the proof has {full}",
            graph.name,
            "make room there, or name another folder by the environment's TMPDIR; "
            f"{option('proof', 'False')} gives the pruned model unproven",
        ) from full
    return in_every_branch(proof, branches)


def _proven(graph: Graph, cut: Graph, remake: Remake | None, seed: int) -> Proof:
    began = time.perf_counter()
    if other := misread(graph):
        proof = Proof(float("inf"), FLOAT32)
        proof.stops = f"'{other}' of the file is not read as the onnx package reads it"
        return proof
    proof, sizes, theirs = _compared(graph, cut, seed)
    if proof.stops:
        proof.seconds = time.perf_counter() - began
        return proof
    told = reached_of(graph, theirs)
    constant = is_constant(told, integers=False) or is_nan(told)
    proof.vacuous = constant
    if proof.max_error <= proof.tolerance and remake is not None:
        others = _others(graph, sizes, proof, seed)
        prove_with_random_weights(proof, graph, remake, others or sizes, seed)
        if proof.second_pass is not None:
            proof.vacuous, proof.random_weights = bool(proof.second_pass.nothing), constant
        elif others:  # its own weights are all that there is: they must do at both sizes
            try:
                again, _ = _compared_at(graph, cut, others, seed)
            except IrpruneError as error:
                raise CheckFailed(
                    f"the pruned file does not run at {proof.other_sizes}, where the file that came in does",
                    graph.name,
                    error.hint,
                ) from error
            proof.passes += again.passes
            if again.stops:
                proof.stops = again.stops
            if not again.max_error <= again.tolerance:
                proof.max_error, proof.tolerance = again.max_error, again.tolerance
                proof.dtype, proof.of_graphs = again.dtype, again.of_graphs
    if (
        proof.of_graphs and proof.second_pass is None
    ):  # the file itself was compared in float32 alone
        proof.max_error = proof.float32_error or proof.max_error
        proof.tolerance, proof.dtype, proof.float32_error = FLOAT32, "float32", None
    proof.seconds = time.perf_counter() - began
    return proof


_TRIED = 5  # sizes, where the file does not say which
_TRIED_OTHERS = 6


def _others(
    graph: Graph, sizes: Mapping[str, int], proof: Proof, seed: int
) -> dict[str, int] | None:
    """Other sizes at which onnxruntime runs the file that came in; None where no size is open, or
    where it runs at none that are tried, which ``proof`` then says."""
    first = ""
    for tried in tried_sizes(graph, sizes, fits, _TRIED_OTHERS):
        shown = shown_sizes(graph, tried)
        try:
            inputs = random_inputs(graph, tried, seed=seed)
            model, data = silenced_model(graph, Selection({}), inputs)
            data = widen(model, data) if graph.has_half_floats else data
            run_model(model, widened_inputs(inputs), optimise=False, data=data)
        except IrpruneError:
            first = first or shown
            continue
        proof.passes += 1
        proof.other_sizes = shown
        return tried
    if first:
        proof.notes.append(
            f"proven at one size, {shown_sizes(graph, sizes)}: onnxruntime does not run the file "
            f"that came in at others (tried first at {first})"
        )
    return None


def _refused(graph: Graph, error: IrpruneError, sizes: Mapping[str, int]) -> IrpruneError:
    """What to say where onnxruntime does not run the original, first at ``sizes``."""
    tried = shown_sizes(graph, sizes)
    at = f" (tried first at {tried})" if tried else ""
    refused = error.what.endswith("the model")
    advice = f"give example inputs ({option('args')}) of sizes that it takes; "
    return IrpruneError(
        f"no proof is possible: {error.what}{' that' if refused else ', in the model that'} came in{at}",
        graph.name,
        f"{error.hint}; {advice * bool(tried)}{option('proof', 'False')} gives the pruned model unproven",
    )


def _compared(graph: Graph, cut: Graph, seed: int) -> tuple[Proof, dict[str, int], list[Array]]:
    """The first pass, the sizes that it was made at, and what the original gives."""
    failed: tuple[IrpruneError, dict[str, int]] | None = None
    for sizes in islice(plausible(graph), _TRIED):
        try:
            proof, theirs = _compared_at(graph, cut, sizes, seed)
        except _OriginalRefused as error:
            failed = failed or (error, sizes)
        else:
            return proof, sizes, theirs
    assert failed is not None
    raise _refused(graph, *failed)


class _OriginalRefused(IrpruneError):
    """onnxruntime does not run the model that came in."""


def _compared_at(
    graph: Graph, cut: Graph, sizes: Mapping[str, int], seed: int
) -> tuple[Proof, list[Array]]:
    """The first pass at ``sizes``, and what the original gives. Raises _OriginalRefused where
    onnxruntime does not run that."""
    assert graph.kept is not None
    inputs = random_inputs(graph, sizes, seed=seed)
    silenced, apart = silenced_model(graph, graph.kept, inputs)
    model, data = emitted(cut)
    if halves := graph.has_half_floats:
        loads = _loads(model, data, silenced, apart)
        apart, data, inputs = widen(silenced, apart), widen(model, data), widened_inputs(inputs)
    try:
        theirs = run_model(silenced, inputs, optimise=False, data=apart)
    except IrpruneError as error:
        raise _OriginalRefused(error.what, error.where, error.hint) from error
    proof = Proof(0.0, FLOAT32)
    try:
        ours = run_model(model, inputs, data=data)
    except IrpruneError as stopped:
        proof.max_error, proof.stops = float("inf"), str(stopped)
        return proof, theirs
    if halves:
        proof.notes.append(
            "halves are computed in float32"
            + ("" if loads else "; onnxruntime has no kernels for them here")
        )
    whole, small = unrounded(silenced), unrounded(model)
    if whole is not None and small is not None:
        theirs, ours = (
            run_model(whole, inputs, optimise=False, data=apart),
            run_model(small, inputs, optimise=False, data=data),
        )
        proof.notes += [
            "quantised values are computed in float32, without rounding",
            *_saturation(graph, model, inputs, data),
        ]
        proof.passes += 2
    proof.max_error = relative_error(ours, theirs)
    if proof.max_error > FLOAT32 and small is None:
        # onnxruntime's optimiser folds a Pad with zeros into a MaxPool, which pads with the least
        # number: where it changes the file
        # that came in as well, what counts is the file as it is written
        optimised, written = (
            proof.max_error,
            relative_error(run_model(model, inputs, optimise=False, data=data), theirs),
        )
        if written <= FLOAT32 and _changed_by_optimiser(graph, inputs) > FLOAT32:
            proof.max_error = written
            proof.notes.append(
                f"as written: onnxruntime's optimiser changes the outputs by {optimised:.1e}, before the cut too"
            )
    plain = not halves and small is None
    doubt = plain and proof.max_error > FLOAT32
    faint = faint_error(graph, inputs, ours, theirs) if doubt else None
    if faint is not None and faint <= FLOAT32:
        said = f"the outputs all but vanish: onnxruntime's differ by {faint:.1e} of the original's"
        doubt = not _graphs_decide(proof, graph, cut, theirs, inputs, said)
    if doubt and not _float64_decides(proof, theirs, (silenced, apart), (model, data), inputs):
        _graphs_decide(proof, graph, cut, theirs, inputs)
    return proof, theirs


Model = tuple[onnx.ModelProto, Mapping[str, Loader]]
_ROUNDS = 100.0  # how much less float32 may round in one of two models than they differ by


def _float64_decides(
    proof: Proof, theirs: list[Array], whole: Model, small: Model, inputs: Mapping[str, Array]
) -> bool:
    """Let ``proof`` be made in float64 on onnxruntime, where it has kernels for that, and where
    float32 rounds the silenced original ``whole``, which gave ``theirs``, by about as much as it
    differs from ``small``: then the model is badly conditioned, and no fault need be the reason.
    Returns whether it is."""
    wide = widened_inputs(inputs, onnx.TensorProto.DOUBLE)
    found = []
    for message, held in (whole, small):
        made = doubled(message, held)
        if made is None:
            return False
        try:
            found.append(run_model(made[0], wide, optimise=False, data=made[1]))
        except IrpruneError:
            return False
    rounding = relative_error(theirs, found[0])
    if not rounding * _ROUNDS >= proof.max_error:
        return True  # what they differ by is no rounding
    _decided(proof, relative_error(found[1], found[0]), _badly_conditioned(rounding))
    return True


def _graphs_decide(
    proof: Proof,
    graph: Graph,
    cut: Graph,
    theirs: list[Array],
    inputs: Mapping[str, Array],
    said: str = "",
) -> bool:
    """Let ``proof`` be made in float64 in torch, of the graphs and not of the files, where float32
    on onnxruntime rounds the silenced original by about as much as the two differ. Returns whether
    torch runs them. The second pass is then the one that compares the files."""
    found = in_float64(graph, cut, inputs)
    if found is None:
        return False
    whole, small = found
    rounding = relative_error(theirs, whole)
    if rounding * _ROUNDS >= proof.max_error:
        _decided(proof, relative_error(small, whole), said or _badly_conditioned(rounding))
        proof.of_graphs = True
    return True


def _decided(proof: Proof, error: float, said: str) -> None:
    proof.float32_error, proof.max_error = proof.max_error, error
    proof.tolerance, proof.dtype = FLOAT64, "float64"
    proof.passes += 2
    proof.notes.append(said)


def _badly_conditioned(rounding: float) -> str:
    return (
        f"badly conditioned: float32 rounds the outputs of the silenced original by {rounding:.1e}"
    )


def _saturation(
    graph: Graph, model: onnx.ModelProto, inputs: Mapping[str, Array], data: Mapping[str, Loader]
) -> list[str]:
    """What to say where this machine's kernels saturate for the model that came in, or the one that
    goes out."""
    if not products_saturate():
        return []
    whole, apart = silenced_model(graph, Selection({}), inputs)
    if any(v.dtype in ("f16", "bf16") for v in graph.values()):
        apart = widen(whole, apart)
    before, after = (
        changed_by_saturation(whole, inputs, apart),
        changed_by_saturation(model, inputs, data),
    )
    advice = "quantise with reduce_range=True"
    if before is None or after is None:
        return [
            f"products of u8 with s8 saturate in onnxruntime on this processor and may do so in this model: {advice}"
        ]
    if max(before, after) <= FLOAT32:
        return []
    return [
        f"products of u8 with s8 saturate in onnxruntime on this processor, which changes the outputs by {before:.1e} before the cut "
        f"and by {after:.1e} after it: {advice}, or run with {' = '.join(PRECISE)}"
    ]


def _changed_by_optimiser(graph: Graph, inputs: Mapping[str, Array]) -> float:
    """By how much onnxruntime's optimiser changes the outputs of the model that came in; halves are
    computed in float32."""
    model, data = silenced_model(graph, Selection({}), inputs)
    if graph.has_half_floats:
        data = widen(model, data)
    return relative_error(
        run_model(model, inputs, data=data), run_model(model, inputs, optimise=False, data=data)
    )


def _loads(
    model: onnx.ModelProto,
    data: Mapping[str, Loader],
    silenced: onnx.ModelProto,
    apart: Mapping[str, Loader],
) -> bool:
    """Whether onnxruntime loads ``model``. Raises IrpruneError where it loads the original and not
    what became of it."""
    try:
        session(model, data=data)
    except IrpruneError:
        try:
            session(silenced, optimise=False, data=apart)
        except IrpruneError:
            return False
        raise
    return True
