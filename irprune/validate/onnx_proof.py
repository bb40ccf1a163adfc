"""The proof for ONNX: the file that came in, silenced, against the file that goes out, on onnxruntime. It needs no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx

from irprune.capture.onnx_file import Loader
from irprune.emit.onnx import Emitter
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.validate.onnx_oracle import silenced_model
from irprune.validate.onnx_run import difference, random_inputs, run_model, session
from irprune.validate.onnx_widen import widen, widened_inputs
from irprune.validate.tolerance import FLOAT32
from irprune.validate.verdict import Proof

__all__ = ["prove_onnx"]


def prove_onnx(graph: Graph, cut: Graph, seed: int = 0) -> Proof:
    """Compare the model of the ``cut`` graph with the analysed ``graph`` whose choice it was cut by. Halves are computed in float32.

    Raises IrpruneError where an operator that mixes what was dropped has no ONNX form of its silencing, and where onnxruntime does
    not run the model.
    """
    assert graph.kept is not None
    began = time.perf_counter()
    inputs = random_inputs(graph, seed=seed)
    silenced, apart = silenced_model(graph, graph.kept, inputs)
    emitter = Emitter(cut)
    model, data = emitter.emit(), emitter.data
    if halves := any(v.dtype in ("f16", "bf16") for v in graph.values()):
        loads = _loads(model, data, silenced, apart)
        apart, data, inputs = widen(silenced, apart), widen(model, data), widened_inputs(inputs)
    try:
        theirs = run_model(silenced, inputs, optimise=False, data=apart)
    except IrpruneError as error:
        raise IrpruneError(f"no proof is possible: {error.what} that came in", graph.name,
                           f"{error.hint}; proof=False (--no-proof) gives the pruned model unproven") from error
    ours = run_model(model, inputs, data=data)
    proof = Proof(difference(ours, theirs), FLOAT32)
    if halves:
        proof.notes.append("halves are computed in float32" + ("" if loads else "; onnxruntime has no kernels for them here"))
    if proof.max_error > FLOAT32:
        # onnxruntime's optimiser rounds quantised values at other places, and folds a Pad with zeros into a MaxPool, which pads with
        # the least number: what counts is the file as it is written
        optimised = proof.max_error
        proof.max_error = difference(run_model(model, inputs, optimise=False, data=data), theirs)
        if proof.passed:
            proof.notes.append(f"of the file as written: onnxruntime's optimiser changes the outputs by {optimised:.1e}")
    floats = [np.asarray(x) for x in theirs if np.asarray(x).dtype.kind == "f" and np.asarray(x).size > 1]
    proof.vacuous = bool(floats) and all((x == x.flat[0]).all() for x in floats)
    proof.seconds = time.perf_counter() - began
    return proof


def _loads(model: onnx.ModelProto, data: Mapping[str, Loader], silenced: onnx.ModelProto, apart: Mapping[str, Loader]) -> bool:
    """Whether onnxruntime loads ``model``. Raises IrpruneError where it loads the original and not what became of it."""
    try:
        session(model, data=data)
    except IrpruneError:
        try:
            session(silenced, optimise=False, data=apart)
        except IrpruneError:
            return False
        raise
    return True
