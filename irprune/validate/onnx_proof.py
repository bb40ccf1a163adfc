"""The proof for ONNX: the file that came in, silenced, against the file that goes out, on
onnxruntime. It needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from irprune.base.tolerance import FLOAT32
from irprune.emit.onnx.emitter import Emitter
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Loader
from irprune.ir.dtype import is_half
from irprune.ir.graph import Graph
from irprune.ir.kept import Kept
from irprune.ops.registry import lookup
from irprune.validate.onnx_oracle import silenced_model
from irprune.validate.onnx_run import difference, random_inputs, run_model, session
from irprune.validate.onnx_shaken import shaken_model
from irprune.validate.onnx_widen import widen, widened_inputs
from irprune.validate.proof_result import Proof

__all__ = ["prove_onnx"]

Array = NDArray[Any]
Remake = Callable[[onnx.ModelProto], "tuple[Graph, Graph] | None"]


def prove_onnx(graph: Graph, cut: Graph, remake: Remake | None = None, seed: int = 0) -> Proof:
    """Compare the model of the ``cut`` graph with the analysed ``graph`` whose choice it was cut
    by. Halves are computed in float32.

    Where the outputs are constant and would agree whatever was cut, both are made once more from
    weights with random numbers on top: ``remake(model)`` analyses a model and makes the same cut,
    or gives None. Raises IrpruneError where an operator that mixes what was dropped has no ONNX
    form of its silencing, and where onnxruntime does not run the model."""
    began = time.perf_counter()
    proof = _compared(graph, cut, seed)
    if proof.vacuous and proof.max_error <= proof.tolerance and remake is not None:
        again = remake(shaken_model(graph, seed))
        if again is not None:
            passes = proof.passes
            proof = _compared(*again, seed)
            proof.random_weights, proof.passes = True, passes + proof.passes
    proof.seconds = time.perf_counter() - began
    return proof


def _compared(graph: Graph, cut: Graph, seed: int) -> Proof:
    assert graph.kept is not None
    inputs = random_inputs(graph, seed=seed)
    silenced, apart = silenced_model(graph, graph.kept, inputs)
    emitter = Emitter(cut)
    model, data = emitter.emit(), emitter.data
    if halves := any(is_half(v.dtype) for v in graph.values()):
        loads = _loads(model, data, silenced, apart)
        apart, data, inputs = widen(silenced, apart), widen(model, data), widened_inputs(inputs)
    try:
        theirs = run_model(silenced, inputs, optimise=False, data=apart)
    except IrpruneError as error:
        raise IrpruneError(
            f"no proof is possible: {error.what} that came in",
            graph.name,
            f"{error.hint}; proof=False (--no-proof) gives the pruned model unproven",
        ) from error
    ours = run_model(model, inputs, data=data)
    proof = Proof(difference(ours, theirs), FLOAT32)
    if halves:
        proof.notes.append(
            "halves are computed in float32"
            + ("" if loads else "; onnxruntime has no kernels for them here")
        )
    if proof.max_error > FLOAT32:
        # onnxruntime's optimiser rounds quantised values at other places, and folds a Pad with
        # zeros into a MaxPool, which pads with
        # the least number: where it changes the file that came in as well, what counts is the file
        # as it is written
        optimised, written = (
            proof.max_error,
            difference(run_model(model, inputs, optimise=False, data=data), theirs),
        )
        if written <= FLOAT32 and (
            _quantised(graph) or _changed_by_optimiser(graph, inputs) > FLOAT32
        ):
            proof.max_error = written
            proof.notes.append(
                f"as written: onnxruntime's optimiser changes the outputs by {optimised:.1e}, before the cut too"
            )
    floats = [
        np.asarray(x) for x in theirs if np.asarray(x).dtype.kind == "f" and np.asarray(x).size > 1
    ]
    proof.vacuous = bool(floats) and all((x == x.flat[0]).all() for x in floats)
    return proof


def _quantised(graph: Graph) -> bool:
    return any((entry := lookup(n)) is not None and entry.rounds for n in graph.nodes)


def _changed_by_optimiser(graph: Graph, inputs: Mapping[str, Array]) -> float:
    """By how much onnxruntime's optimiser changes the outputs of the model that came in; halves are
    computed in float32."""
    model, data = silenced_model(graph, Kept({}), inputs)
    if any(is_half(v.dtype) for v in graph.values()):
        data = widen(model, data)
    return difference(
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
