"""irprune beside onnxsim's pruner, on the same ONNX files at ratio 0.5: each file and each pruner in a process of its own.

    python tools/bench.py --against onnxsim

Parameters are counted in the files that come out. ``heads`` is how many attention heads (or kv groups)
the captured model has before and after. The error is that of the proof: the pruned file against the silenced original; onnxsim
does not say what it dropped, so there is none for it, only whether onnxruntime loads and runs the file. Seconds include imports,
reading and writing the file, without the proof.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

__all__ = ["CASES", "HEAD", "beside_onnxsim", "line"]

CASES = ("resnet50", "densenet121", "shufflenetv2", "efficientnet", "vit_b16", "swin_t", "gpt2", "unet", "lstm_tagger", "llama")
HEAD = ("file", "left", "left by onnxsim", "MACs", "MACs by onnxsim", "heads", "heads by onnxsim", "runs", "error", "s", "s by onnxsim")


def export(case: str, path: Path) -> None:
    """Write the case as the exporter of torch does."""
    import torch

    import models

    torch.manual_seed(0)
    found = models.get(case)
    model = found.build().eval()
    args, kwargs = found.example_inputs()
    torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False).save(str(path), external_data=False)


def ours(source: Path, out: Path) -> dict[str, Any]:
    """Prune by irprune; the time is that of the call with its imports."""
    began = time.perf_counter()
    import irprune

    pruned = irprune.prune(str(source), ratio=0.5, proof=False)
    pruned.onnx(str(out))
    return {"seconds": time.perf_counter() - began}


def proven(source: Path, out: Path) -> dict[str, Any]:
    """The same with the proof, not timed: the error of the pruned file against the silenced original."""
    import irprune

    del out
    return {"error": irprune.prune(str(source), ratio=0.5, proof=True).report.proof.max_error}


def theirs(source: Path, out: Path) -> dict[str, Any]:
    """Prune by onnxsim: channels, then attention heads, as its own documentation chains them."""
    began = time.perf_counter()
    import onnx
    from onnxsim import pruning

    model = pruning.apply_structured_pruning(str(source), 0.5)
    model = pruning.apply_attention_head_pruning(model, 0.5)
    onnx.save(model, str(out))
    return {"seconds": time.perf_counter() - began}


def counted(source: Path, out: Path) -> dict[str, Any]:
    """Parameters, MACs and heads of a file, and whether onnxruntime runs it."""
    from irprune.api import capture
    from irprune.cost import cost
    from irprune.ir.kind import kinds
    from irprune.passes.infer_axes import InferAxes
    from irprune.validate.onnx_run import random_inputs, run_model

    del out
    graph = capture(str(source))
    InferAxes().run(graph)
    spent = cost(graph)
    found = {"params": spent.params, "macs": spent.macs,
             "heads": sum(int(a.size) for a, kind in kinds(graph).items() if kind in ("heads", "kv groups") and isinstance(a.size, int))}
    run_model(str(source), random_inputs(graph))
    return found | {"runs": True}


def apart(step: str, source: Path, out: Path, limit: float = 600) -> dict[str, Any]:
    """``step`` in a process of its own; {"failed": why} where it fails."""
    command = [sys.executable, "-W", "ignore", __file__, step, str(source), str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return dict(json.loads(lines[-1]))


def beside_onnxsim(names: Sequence[str] = CASES) -> list[dict[str, Any]]:
    """One row per case."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            source, mine, other = (Path(folder) / f"{name}{end}.onnx" for end in ("", "-ours", "-theirs"))
            row: dict[str, Any] = {"file": name, "export": apart("export", source, source)}
            row |= {"before": apart("counted", source, source), "proof": apart("proven", source, mine)}
            row |= {"ours": apart("ours", source, mine), "theirs": apart("theirs", source, other)}
            row |= {"ours_left": apart("counted", mine, mine), "theirs_left": apart("counted", other, other)}
            rows.append(row)
    return rows


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row."""
    before = row["before"]

    def share(side: str, key: str) -> str:
        left = row[side]
        return f"{left[key] / before[key]:.0%}" if key in left and before.get(key) else left.get("failed", "-")[:40]

    def heads(side: str) -> str:
        return f"{before.get('heads', 0)} -> {row[side]['heads']}" if before.get("heads") and "heads" in row[side] else "-"

    runs = "/".join("yes" if row[s].get("runs") else "no" for s in ("ours_left", "theirs_left"))
    error = row["proof"].get("error")
    seconds = tuple(f"{row[s]['seconds']:.1f}" if "seconds" in row[s] else row[s]["failed"][:40] for s in ("ours", "theirs"))
    left = tuple(share(side, key) for key in ("params", "macs") for side in ("ours_left", "theirs_left"))
    return (row["file"], *left, heads("ours_left"), heads("theirs_left"), runs, "-" if error is None else f"{error:.1e}", *seconds)


def _main() -> None:
    step, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if step == "export":
        sys.path.insert(0, str(HERE.parent))
        export(source.stem, out)
        print(json.dumps({"bytes": out.stat().st_size}))
        return
    print(json.dumps({"ours": ours, "theirs": theirs, "counted": counted, "proven": proven}[step](source, out)))


if __name__ == "__main__":
    _main()
