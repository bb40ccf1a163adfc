"""The onnxruntime session: every model that irprune runs on onnxruntime runs through here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from irprune.errors import IrpruneError, gist, option
from irprune.ir.dtype import ELEMENT_TYPES

__all__ = ["PRECISE", "providers_for", "run_session", "run_type", "session"]

# onnxruntime's optimiser makes u8 of weights in s8 where the processor's products of u8 with s8
# saturate; elsewhere it changes nothing.
PRECISE = ("session.x64quantprecision", "1")

_TYPES = {
    f"tensor({ {'f32': 'float', 'f64': 'double', 'str': 'string'}.get(t.name, t.array) })": t.name
    for t in ELEMENT_TYPES.values()
}


def run_type(text: str) -> str:
    """The short name of an element type as a session writes it (``tensor(float)``); ``text``
    itself for what is no tensor."""
    return _TYPES.get(text, text)


def providers_for(device: str) -> list[str]:
    """The execution providers for ``auto``, ``cpu`` or ``cuda``. Raises IrpruneError where CUDA is
    asked for and absent."""
    import onnxruntime

    have = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in have):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in have:
        raise IrpruneError(
            "onnxruntime has no CUDAExecutionProvider here",
            "",
            f"install onnxruntime-gpu, or say {option('device', 'cpu')}",
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def session(
    model: str | Path | bytes,
    device: str = "auto",
    profile: str = "",
    threads: int = 0,
    exact: bool = False,
    optimise: bool = True,
    precise: bool = False,
    mapped: bool = False,
) -> Any:
    """An onnxruntime session.

    Args:
        model: the path of a file, or a model's message itself.
        device: ``auto``, ``cpu`` or ``cuda``.
        profile: where onnxruntime writes its profile; none where it is empty.
        threads: how many compute one operator; 0 for onnxruntime's own choice.
        exact: keep CUDA from rounding products to TF32 and, where onnxruntime can, a CPU from
            saturating products of u8 with s8.
        optimise: whether onnxruntime may change the model before it runs.
        precise: insist on products that do not saturate, which only the optimiser can give.
        mapped: leave weights beside the file as they lie there, which the system maps; otherwise
            onnxruntime holds those of products again, in an order that it multiplies faster in.

    Raises:
        IrpruneError: for a model that onnxruntime refuses, with its own words.
    """
    made = partial(_session, model, device, profile, threads, exact, optimise, mapped)
    if exact and not precise:
        try:
            return made(True)
        except IrpruneError:
            # onnxruntime 1.31 makes u8 of weights beside s8 too, for which QGemm has no kernel
            pass
    return made(precise)


def _session(
    model: str | Path | bytes,
    device: str,
    profile: str,
    threads: int,
    exact: bool,
    optimise: bool,
    mapped: bool,
    precise: bool,
) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised, and told by irprune
    if precise:
        options.add_session_config_entry(*PRECISE)
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers = providers_for(device)
    if "CUDAExecutionProvider" in providers and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # the CUDA libraries that pip packages bring
    settings = [
        {"use_tf32": "0"} if exact and p == "CUDAExecutionProvider" else {} for p in providers
    ]
    given = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(
            given, options, providers=providers, provider_options=settings
        )
    except Exception as refused:  # onnxruntime has exceptions of its own for every kind of refusal
        if missing := _missing_kernel(str(refused), given, providers):
            raise IrpruneError(
                missing,
                "" if isinstance(model, bytes) else str(model),
                "compute that layer in float32 (module.float()), or on a device whose provider has it",
            ) from refused
        raise IrpruneError(
            "onnxruntime refuses the model",
            "" if isinstance(model, bytes) else str(model),
            gist(refused),
        ) from refused


_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '(.*)'")


def _missing_kernel(said: str, model: str | bytes, providers: Sequence[str]) -> str:
    """Where onnxruntime ``said`` that it has no kernel for a node of ``model``: which operator, of
    which element type; "" where it said something else."""
    import onnx

    found = _NO_KERNEL.search(said)
    if found is None:
        return ""
    if isinstance(model, bytes):
        whole = onnx.load_from_string(model)
    else:
        whole = onnx.load(model, load_external_data=False)
    graph = whole.graph
    node = next((n for n in graph.node if n.name == found[2]), None)
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    known |= {t.name: t.data_type for t in graph.initializer}
    types = [known[x] for x in node.input if known.get(x)] if node is not None else []
    of = f" of {onnx.TensorProto.DataType.Name(types[-1]).lower()}" if types else ""
    own = "CPU provider" if providers == ["CPUExecutionProvider"] else " and ".join(providers)
    return f"onnxruntime's {own} has no kernel for {found[1]}{of} ('{found[2]}')"


def run_session(running: Any, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every output by name. Raises IrpruneError where the inputs do not fit."""
    names = [o.name for o in running.get_outputs()]
    try:
        return dict(zip(names, running.run(names, dict(feed)), strict=True))
    except Exception as refused:  # onnxruntime's own exceptions
        raise IrpruneError(
            f"onnxruntime fails on the input: {gist(refused)}",
            "",
            f"give {option('args')} of the names, shapes and types that the model takes",
        ) from refused
