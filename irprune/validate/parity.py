"""Parity: the emitted module against the emitted ONNX file on onnxruntime, every output, and who really ran each node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irprune.errors import IrpruneError, gist
from irprune.validate.tolerance import PARITY

__all__ = ["PRECISE", "Parity", "compare_arrays", "providers_for", "run_session", "session"]

# onnxruntime's optimiser makes u8 of weights in s8 where the processor's products of u8 with s8 saturate; elsewhere it changes nothing
PRECISE = ("session.x64quantprecision", "1")


@dataclass
class Parity:
    """``max_error`` over all outputs, relative to each output's largest magnitude; ``nodes`` counts the nodes each provider ran."""

    max_error: float
    provider: str
    nodes: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    tolerance: float = PARITY

    @property
    def passed(self) -> bool:
        return self.max_error <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        ran = ", ".join(f"{n} nodes on {p}" for p, n in self.nodes.items())
        outputs = f"{len(self.outputs)} output{'s' * (len(self.outputs) != 1)}"
        return (f"{'equal' if self.passed else 'DIFFERENT'}: error {self.max_error:.1e} over {outputs}, "
                f"tolerance {self.tolerance:.0e} ({ran or self.provider})")


def providers_for(device: str) -> list[str]:
    """The execution providers for ``auto``, ``cpu`` or ``cuda``. Raises IrpruneError where CUDA is asked for and absent."""
    import onnxruntime

    have = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in have):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in have:
        raise IrpruneError("onnxruntime has no CUDAExecutionProvider here", "", "install onnxruntime-gpu, or say --device cpu")
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def session(path: str | Path, device: str = "auto", profile: str = "", threads: int = 0, exact: bool = False) -> Any:
    """An onnxruntime session; ``exact`` keeps CUDA from rounding products to TF32, and a CPU from saturating products of u8 with s8.

    Raises IrpruneError for a file that it refuses.
    """
    if exact:
        try:
            return _session(path, device, profile, threads, exact, precise=True)
        except IrpruneError:
            pass  # onnxruntime 1.31 makes u8 of weights beside s8 too, for which QGemm has no kernel
    return _session(path, device, profile, threads, exact, precise=False)


def _session(path: str | Path, device: str, profile: str, threads: int, exact: bool, precise: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry(*PRECISE)
    if threads:
        options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers = providers_for(device)
    if "CUDAExecutionProvider" in providers and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # the CUDA libraries that pip packages bring
    settings = [{"use_tf32": "0"} if exact and p == "CUDAExecutionProvider" else {} for p in providers]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers, provider_options=settings)
    except IrpruneError:
        raise
    except Exception as refused:  # onnxruntime has exceptions of its own for every kind of refusal
        raise IrpruneError(f"onnxruntime refuses the model: {gist(refused)}", str(path),
                           "check the file with onnx.checker.check_model(path, full_check=True)") from refused


def run_session(running: Any, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every output by name. Raises IrpruneError where the inputs do not fit."""
    names = [o.name for o in running.get_outputs()]
    try:
        return dict(zip(names, running.run(names, dict(feed)), strict=True))
    except Exception as refused:  # onnxruntime's own exceptions
        raise IrpruneError(f"onnxruntime fails on the input: {gist(refused)}", "",
                           "give --input of the names, shapes and types that the model takes") from refused


def compare_arrays(ours: Sequence[NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """The relative error of each output; infinite where shapes or NaNs differ."""
    return {name: _error(np.asarray(a), np.asarray(b)) for (name, b), a in zip(theirs.items(), ours, strict=True)}


def _error(a: NDArray[Any], b: NDArray[Any]) -> float:
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(b) else np.float64
    x, y = a.astype(wide), b.astype(wide)
    if not np.array_equal(np.isnan(x), np.isnan(y)):
        return float("inf")
    with np.errstate(invalid="ignore"):
        gap = np.where((x == y) | np.isnan(x), 0.0, np.abs(x - y))
    finite = np.abs(x[np.isfinite(x)])
    scale = float(finite.max()) if finite.size else 1.0
    return float(gap.max() / max(scale, 1e-12))


def measure(path: str | Path, feed: Mapping[str, NDArray[Any]], expected: Sequence[NDArray[Any]], device: str = "auto") -> Parity:
    """Run the file on ``feed`` and compare each output with ``expected``, which is in the file's order of outputs."""
    with tempfile.TemporaryDirectory() as folder:
        running = session(path, device, profile=str(Path(folder) / "profile"), exact=True)
        outputs = run_session(running, feed)
        nodes = _ran_on(Path(running.end_profiling()))
    if len(outputs) != len(expected):
        raise IrpruneError(f"{len(outputs)} outputs in the file, {len(expected)} from the module", str(path), "report this as a bug")
    errors = compare_arrays(expected, outputs)
    provider = max(nodes, key=lambda p: nodes[p]) if nodes else running.get_providers()[0]
    return Parity(max(errors.values(), default=0.0), provider, nodes, errors)


def _ran_on(profile: Path) -> dict[str, int]:
    """How many nodes each provider ran, from onnxruntime's own profile."""
    ran: dict[str, set[str]] = {}
    for event in json.loads(profile.read_text()):
        provider = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and provider:
            ran.setdefault(provider, set()).add(event["name"])
    return {p: len(names) for p, names in sorted(ran.items())}
