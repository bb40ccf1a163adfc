"""The command line: numbers on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Result, refused

from irprune.demo.digits import DigitNet


def test_help_and_version_are_quick_and_name_every_command(call: Callable[..., Result]) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for name in (
        "prune",
        "inspect",
        "explain",
        "opt",
        "validate",
        "evaluate",
        "bench",
        "ops",
        "passes",
        "demo",
    ):
        assert f"\n  {name} " in out
        assert call(name, "--help")[0] == 0
    made = subprocess.run(
        [sys.executable, "-m", "irprune", "--version"], capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == "0.1.0"
    code = "import sys, irprune.cli as c; c.run(['--help']); print('torch' in sys.modules, 'onnx' in sys.modules, file=sys.stderr)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stderr.strip()
        == "False False"
    )


def test_prune_writes_a_folder_and_prints_the_report(
    call: Callable[..., Result], net: str, tmp_path: Path
) -> None:
    code, out, err = call("prune", net, "-o", tmp_path / "out", "--ratio", "0.5")
    assert code == 0
    assert "parameters" in out and "exact: error" in out and "equal: error" in out
    assert "pruning Net" in err and f"wrote {tmp_path / 'out'}" in err and "wrote" not in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.py",
        "model.py.sha256",
        "weights.safetensors",
        "model.pt2",
        "model.onnx",
        "plan.json",
        "report.json",
        "report.html",
    }
    again = call("prune", net, "-o", tmp_path / "out")  # irprune's own folder may be replaced
    assert again[0] == 0


def test_prune_prints_json(call: Callable[..., Result], net: str) -> None:
    code, out, _ = call(
        "prune",
        net,
        "--json",
        "--macs",
        "0.6",
        "--scope",
        "global",
        "--round-to",
        "2",
        "--keep",
        "head*",
    )
    data = json.loads(out)
    assert code == 0 and 0.3 < data["macs"]["after"] / data["macs"]["before"] <= 0.6
    assert data["proof"]["passed"] and data["output"] is None and data["seconds"]["capture"] > 0
    kept = {g["name"]: g["kept"] for g in data["groups"]}
    # The head reads the residual width
    assert all(n % 2 == 0 for n in kept.values()) and kept["stem.weight:0"] == 8


def test_prune_writes_onnx_programs_and_plans(
    call: Callable[..., Result], net: str, tmp_path: Path
) -> None:
    for name in ("m.onnx", "m.pt2", "plan.json"):
        assert call("prune", net, "-o", tmp_path / name)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".py" and p.is_file()) == [
        "m.onnx",
        "m.pt2",
        "plan.json",
    ]
    assert torch.export.load(str(tmp_path / "m.pt2")).module()(torch.randn(5, 6)).shape == (5, 4)
    code, out, _ = call(
        "prune", net, "--plan", tmp_path / "plan.json", "-o", tmp_path / "again.onnx", "--json"
    )
    assert code == 0 and json.loads(out)["proof"]["passed"]
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    whole = call("prune", tmp_path / "m.onnx", "-o", tmp_path / "small.onnx", "--json")
    assert (
        whole[0] == 0
        and json.loads(whole[1])["params"]["after"] < json.loads(whole[1])["params"]["before"]
    )


def test_inspect_folds_repeated_blocks(call: Callable[..., Result], net: str) -> None:
    code, out, _ = call("inspect", net)
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert (
        "12 x3" in lines["blocks.0..2.up.weight:0"]
        and "MLP width" in lines["blocks.0..2.up.weight:0"]
    )
    assert "stem.*:0, blocks.0..2.up.weight:1" in lines["stem.weight:0"]
    assert "graph output" in lines["head.weight:0"] and "graph input 'x'" in lines["stem.weight:1"]
    data = json.loads(call("inspect", net, "--json")[1])
    group = next(g for g in data["groups"] if g["name"] == "blocks.0..2.up.weight:0")
    assert (group["size"], group["count"], group["params"], group["macs"]) == (
        12,
        3,
        8 + 1 + 8,
        2 * 5 * 8,
    )
    every = json.loads(call("inspect", net, "--all", "--json")[1])
    assert [g["name"] for g in every["groups"] if "up" in g["name"]] == [
        f"blocks.{i}.up.weight:0" for i in range(3)
    ]


def test_explain_shows_the_chain_with_source_lines(call: Callable[..., Result], net: str) -> None:
    code, out, _ = call("explain", net, "blocks.0.up.weight:0")
    assert (
        code == 0
        and "12 channels of group blocks.0.up.weight:0 (MLP width), coupled with 2 other places"
        in out
    )
    assert (
        out.index("linear  in blocks.0.up")
        < out.index("gelu")
        < out.index("linear  in blocks.0.down")
    )
    assert "net.py:13" in out
    data = json.loads(call("explain", net, "blocks.0.up.weight:0", "--json")[1])
    chain = next(c for c in data["dimensions"][0]["chains"] if c["to"] == "blocks.0.down.weight:1")
    assert [s["op"] for s in chain["steps"]] == ["linear", "gelu", "linear"]
    frozen = call("explain", net, "head.weight:0")[1]
    assert "frozen: graph output" in frozen and "linear  in head" in frozen
    residual = call("explain", net, "stem.weight")[1]
    assert "with blocks.0..2.down.weight:0" in residual and "stem.weight:1" in residual


def test_validate_compares_every_output(
    call: Callable[..., Result], net: str, tmp_path: Path
) -> None:
    assert call("prune", net, "-o", tmp_path / "out")[0] == 0
    code, out, _ = call("validate", tmp_path / "out", tmp_path / "out" / "model.onnx")
    assert code == 0 and out.startswith("output")
    code, out, err = call("validate", net, tmp_path / "out" / "model.onnx", "--json")
    data = json.loads(out)
    assert code == 1 and not data["passed"] and data["max_error"] > 1e-2
    assert err.startswith("irprune: output 'output' differs by") and len(err.splitlines()) == 1
    assert call("validate", net, tmp_path / "out" / "model.onnx", "--tolerance", "100")[0] == 0


def test_prune_finds_the_smallest_model_that_keeps_a_metric(
    call: Callable[..., Result], net: str, tmp_path: Path
) -> None:
    (tmp_path / "score.py").write_text(
        "from torch import nn\n\ndef size(model: nn.Module) -> float:\n"
        "    return float(sum(p.numel() for p in model.parameters()))\n"
        "\ndef fails(model: nn.Module) -> float:\n    raise ValueError('no data')\n"
    )
    score = f"{tmp_path / 'score.py'}:size"
    wanted = ("--max-drop", "30%", "--minimise", "params", "--points", "4")
    code, out, err = call("prune", net, "--eval", score, *wanted, "-o", tmp_path / "out", "--json")
    found = json.loads(out)["trials"]
    assert code == 0 and found["metric"] == "size" and len(found["trials"]) <= 5
    assert found["original"] * 0.7 <= found["best"] < found["original"] * 0.8
    assert "trial    left" in err and "passes" in err
    assert call("validate", net, tmp_path / "out", "--eval", score, "--max-drop", "31%")[0] == 0
    code, _, err = call("validate", net, tmp_path / "out", "--eval", score, "--max-drop", "1%")
    assert code == 1 and "size is worse by 2" in err and "1.00% is allowed" in err
    fails = f"{tmp_path / 'score.py'}:fails"
    code, _, err = call("prune", net, "--eval", fails, "--max-drop", "1%")
    assert code == 2 and "fails() fails: ValueError: no data" in err and "score.py:7" in err
    refused(call("prune", net, "--max-drop", "1%"), 2, "--max-drop needs", "give --eval, or --cal")


def test_validate_measures_agreement(call: Callable[..., Result], net: str, tmp_path: Path) -> None:
    assert call("prune", net, "-o", tmp_path / "out")[0] == 0
    both = (net, tmp_path / "out" / "model.onnx")
    code, out, _ = call("validate", *both, "--metric", "cosine", "--samples", "2", "--json")
    data = json.loads(out)
    assert code == 0 and data["a"] == pytest.approx(1) and data["b"] < 1 and data["samples"] == 10
    assert call("validate", *both, "--metric", "snr", "--target-metric", "300")[0] == 1
    refused(call("validate", *both, "--metric", "snr", "--max-drop", "1%"), 2, "--target-metric")
    assert call("validate", net, net, "--metric", "auto", "--max-drop", "0")[0] == 0


def test_bench_measures_and_compares(call: Callable[..., Result], net: str, tmp_path: Path) -> None:
    assert call("prune", net, "-o", tmp_path / "out")[0] == 0
    code, out, err = call(
        "bench", net, "--against", tmp_path / "out", "--seconds", "0.02", "--json"
    )
    data = json.loads(out)
    assert code == 0 and "timing" in err
    assert data["a"]["params"] > data["b"]["params"] and data["a"]["macs"] > data["b"]["macs"]
    assert data["speedup"] == pytest.approx(data["a"]["median_s"] / data["b"]["median_s"])
    assert (
        data["a"]["file_bytes"] is None
        and data["b"]["file_bytes"] == (tmp_path / "out" / "weights.safetensors").stat().st_size
    )
    code, out, _ = call(
        "bench", tmp_path / "out" / "model.onnx", "--seconds", "0.02", "--threads", "1"
    )
    assert code == 0 and "onnxruntime" in out and "median" in out


def test_demo_runs_the_whole_pipeline(call: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    code, out, err = call("demo", "--epochs", "2", "-o", tmp_path / "digits", "--json")
    data = json.loads(out)
    assert code == 0 and torch.get_num_threads() == threads
    assert data["report"]["proof"]["passed"] and data["report"]["parity"]["passed"]
    assert (
        data["accuracy_before"] > 0.5
        and data["accuracy_repaired"] > 0.5
        and data["file_after"] < 0.4 * data["file_before"]
    )
    assert data["report"]["params"]["before"] == sum(
        p.numel() for p in DigitNet(24, 2).parameters()
    )
    assert "training" in err and "fine-tuning" in err
    assert {"original.onnx", "model.onnx", "model.py", "report.html"} <= {
        p.name for p in (tmp_path / "digits").iterdir()
    }
    code, out, _ = call("demo", "--epochs", "1", "-o", tmp_path / "digits")
    assert code == 0
    for text in (
        "accuracy",
        "MACs per image",
        "parameters",
        "ONNX file",
        "latency",
        "proof",
        "repair",
        "parity",
        "times faster",
        "exact: error",
        "equal: error",
        "CPUExecutionProvider",
    ):
        assert text in out
