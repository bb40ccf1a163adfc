"""The proof for ONNX: the file that came in, silenced, against the file that goes out, on onnxruntime. It needs no torch."""

from __future__ import annotations

import time

import numpy as np

from irprune.emit.onnx import Emitter
from irprune.ir.graph import Graph
from irprune.ops.registry import lookup
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_run import difference, random_inputs, run_model
from irprune.validate.tolerance import FLOAT32
from irprune.validate.verdict import Proof

__all__ = ["prove_onnx"]


def prove_onnx(graph: Graph, cut: Graph, seed: int = 0) -> Proof:
    """Compare the model of the ``cut`` graph with the analysed ``graph`` whose choice it was cut by.

    Raises IrpruneError where an operator that mixes what was dropped has no ONNX form of its silencing.
    """
    assert graph.kept is not None
    began = time.perf_counter()
    inputs = random_inputs(graph, seed=seed)
    theirs = silenced_onnx(graph, graph.kept, inputs)
    emitter = Emitter(cut)
    model = emitter.emit()
    ours = run_model(model, inputs, data=emitter.data)
    if any((entry := lookup(n)) is not None and entry.family in ("quant", "qlinear") for n in graph.nodes):
        # onnxruntime's optimiser rounds quantised values at other places: both sides run as they are written, once it is seen to load
        ours = run_model(model, inputs, optimise=False, data=emitter.data)
    proof = Proof(difference(ours, theirs), FLOAT32)
    floats = [np.asarray(x) for x in theirs if np.asarray(x).dtype.kind == "f" and np.asarray(x).size > 1]
    proof.vacuous = bool(floats) and all((x == x.flat[0]).all() for x in floats)
    proof.seconds = time.perf_counter() - began
    return proof
