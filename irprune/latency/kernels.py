"""One operator as a model of one node, timed on onnxruntime."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from irprune.latency.operators import Operator
from irprune.run.session import session

__all__ = ["kernel_times", "measure", "one_node"]

LAYOUT = ("ReorderInput", "ReorderOutput")  # operators that only change the layout
# Of each model: so many runs or seconds, whichever is over first, and no fewer than the last
_RUNS, _SECONDS, _LEAST = (
    12,
    0.03,
    5,
)


def one_node(operator: Operator, a: int, b: int) -> onnx.ModelProto:
    """``operator`` at the sizes ``a`` and ``b``, weights drawn, in float32."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32), "w")

    inputs, weights, attributes = {}, [], {}
    if operator.kind == "matrix":
        batch, rows, fixed = operator.fixed
        lead = () if batch == 1 else (batch,)
        inputs["x"] = (*lead, rows, a)
        if fixed:
            weights.append(weight(*lead, a, b))
        else:
            inputs["w"] = (*lead, a, b)
        name = "MatMul"
    else:
        batch, groups, image, kernel, stride, padding, dilation = operator.fixed
        attributes = {
            "kernel_shape": kernel,
            "strides": stride,
            "pads": (*padding, *padding),
            "dilations": dilation,
        }
        name = "Conv"
        if operator.kind == "depthwise":
            channels, attributes["group"] = a, a
            weights.append(weight(a * b, 1, *kernel))
        elif operator.kind == "conv_transpose":
            name, channels, attributes["group"] = "ConvTranspose", -(-a // groups) * groups, groups
            weights.append(weight(channels, b, *kernel))
        else:
            channels, attributes["group"] = a * groups, groups
            weights.append(weight(b * groups, a, *kernel))
        inputs["x"] = (batch, channels, *image)
    node = helper.make_node(name, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(inputs["x"]))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(operator: Operator, a: int, b: int, device: str = "cpu", threads: int = 0) -> float:
    """Seconds of one call: the quickest of several, which is the one that nothing else on the
    machine has slowed.

    On a CPU the kernel alone, by the runtime's own profile, without the change of layout at the
    ends of so small a model; with one thread no more than by that thread's own clock, which stands
    still while other programs run. On other devices the whole call with its data on the device."""
    model = one_node(operator, a, b)
    random = np.random.default_rng(0)
    feed = {
        i.name: random.standard_normal(
            [d.dim_value for d in i.type.tensor_type.shape.dim], dtype=np.float32
        )
        for i in model.graph.input
    }
    with tempfile.TemporaryDirectory(prefix="irprune-") as folder:
        path = Path(folder) / "one.onnx"
        path.write_bytes(model.SerializeToString())
        if device == "cpu":
            running = session(path, "cpu", str(Path(folder) / "profile"), threads)
            took = _repeat(
                lambda: running.run(None, feed),
                time.thread_time if threads == 1 else time.perf_counter,
            )
            runs = [
                (sum(run.values()), sum(t for (_, name), t in run.items() if name not in LAYOUT))
                for run in kernel_times(running, ())
            ]
            runs = [(every, mine) for every, mine in runs if mine]
            share = statistics.median(mine / every for every, mine in runs)
            return min(took * share, *(mine for _, mine in runs))
        running = session(path, device, "", threads)
        bound = running.io_binding()
        for k, v in feed.items():
            bound.bind_ortvalue_input(k, _on_device(v))
        bound.bind_output("y", "cuda")
        return _repeat(lambda: running.run_with_iobinding(bound), time.perf_counter)


def _on_device(array: Any) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)


def _repeat(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The least of several times, after a warm-up."""
    call()
    best, began = float("inf"), clock()
    for turn in range(_RUNS):
        if turn >= _LEAST and clock() - began > _SECONDS:
            break
        start = clock()
        call()
        best = min(best, clock() - start)
    return best


def kernel_times(
    running: Any, without: Sequence[str] = LAYOUT
) -> list[dict[tuple[str, str], float]]:
    """Seconds by (node, operator) of each run of a session with a profile, ``without`` some
    operators; ends the profile."""
    file = Path(running.end_profiling())
    runs: list[dict[tuple[str, str], float]] = [{}]
    for event in json.loads(file.read_text()):
        if event.get("name") == "model_run":
            runs.append({})
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["args"].get("op_name", "")
            if name not in without:
                key = (event["name"], name)
                runs[-1][key] = runs[-1].get(key, 0.0) + event["dur"] * 1e-6
    file.unlink(missing_ok=True)
    return runs
