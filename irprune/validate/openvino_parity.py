"""What OpenVINO makes of its files, beside what onnxruntime makes of the ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irprune.analysis.sizes import example_symbols, fits
from irprune.base.tolerance import PARITY
from irprune.emit.bridge.openvino_files import openvino
from irprune.errors import IrpruneError, gist
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.run.session import run_session, session
from irprune.run.tried_sizes import tried_sizes
from irprune.validate.read_back import ReadBack

__all__ = ["compare_openvino"]

# Integers are rounded by other kernels: a step of 1 in 255 at each of several layers
_QUANTISED = 0.1
_TRIED = 3  # other sizes, where some are open


def compare_openvino(path: Path, file: Path, graph: Graph, quantised: bool) -> ReadBack:
    """Run ``path``, an ``.xml`` of OpenVINO, on the CPU beside the ONNX file that it was made of,
    at the example's sizes and, where sizes are open, at others that onnxruntime runs."""
    package = openvino()
    by = f"OpenVINO {package.__version__.split('-')[0]} beside onnxruntime"
    tolerance = _QUANTISED if quantised else PARITY
    try:
        core = package.Core()
        compiled = core.compile_model(
            core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
    except Exception as refused:  # classes of its own
        return ReadBack(path.name, by, differs=f"it does not compile: {gist(refused)}")
    running = session(str(file), "cpu")
    names = [v.name for v in running.get_inputs()]
    sizes = example_symbols(graph)
    worst, seen = 0.0, 0
    for tried in (sizes, *tried_sizes(graph, sizes, fits, _TRIED)) if sizes else ({},):
        feed = _feed(graph, names, tried)
        try:
            expected = list(run_session(running, feed).values())
        except IrpruneError:
            if not seen:
                raise
            continue  # the file does not run at these sizes
        try:
            found = compiled([feed[n] for n in names])
        except Exception as refused:
            return ReadBack(path.name, by, differs=f"it does not run: {gist(refused)}")
        results = [np.asarray(found[i]) for i in range(len(expected))]
        worst = max(worst, relative_error(results, expected))
        seen += 1
        if seen == 2:
            break
    return ReadBack(path.name, by, worst, tolerance=tolerance)


def _feed(
    graph: Graph, names: list[str], sizes: Mapping[str, int]
) -> dict[str, NDArray[np.generic]]:
    own = random_inputs(graph, sizes)
    if set(names) <= own.keys():
        return {n: own[n] for n in names}
    return dict(zip(names, own.values(), strict=True))
