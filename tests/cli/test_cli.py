"""The command line: numbers on stdout, talk on stderr, exit codes, one clear line for each mistake,
nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from irprune.cli import run
from irprune.demo.digits import DigitNet

NET = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, wide):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, wide), nn.Linear(wide, width), nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(8, 12) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build():
    return Net()


def example_inputs():
    return (torch.randn(5, 6),)


def with_nan():
    net = Net()
    with torch.no_grad():
        net.head.weight[1, 1] = float("nan")
    return net


class Branch(nn.Module):
    def forward(self, x):
        if float(x.sum()) > 0:
            return x
        return -x


def branch():
    return Branch()


class Cond(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: -x, (x,))


def cond():
    return Cond()


def fails():
    raise RuntimeError("no such\\nweights")


def needs(path):
    return Net()
"""

Result = tuple[int, str, str]


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in a wide terminal and give its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_it(*argv: object) -> Result:
        capfd.readouterr()
        code = run([str(a) for a in argv])
        out, err = capfd.readouterr()
        return code, out, err

    return run_it


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:build"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[set[str]]:
    """What lies in the folder must be the same afterwards."""
    before = {p.name for p in tmp_path.rglob("*") if "__pycache__" not in str(p)}
    yield before
    assert {p.name for p in tmp_path.rglob("*") if "__pycache__" not in str(p)} - {
        "net.py"
    } == before - {"net.py"}


def refused(result: Result, code: int, *texts: str) -> None:
    """Exit code, nothing on stdout, one line on stderr beside the talk, with the texts in it."""
    assert result[0] == code, result
    assert result[1] == ""
    lines = [x for x in result[2].splitlines() if not x.startswith("pruning ")]
    assert len(lines) == 1 and lines[0].startswith("irprune"), result[2]
    for text in texts:
        assert text in lines[0], lines[0]


def line_of(text: str) -> int:
    """Where ``text`` stands in the user's file."""
    return next(i for i, line in enumerate(NET.splitlines(), 1) if text in line)


# -- what works ------------------------------------------------------------------------------------


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


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--ratio", "1.5"], ["ratio is 1.5", "from 0 to 1"]),
        (["--ratio", "-1"], ["ratio is -1.0"]),
        (["--ratio", "half"], ["'half' is no share"]),
        (["--scope", "everywhere"], ["'everywhere' is not one of", "isomorphic"]),
        (["--importance", "beauty"], ["beauty", "magnitude"]),
        (["--keep", "nothing*"], ["'nothing*' matches no weight", "near matches"]),
        (["--ratio-of", "stem*"], ["has no number behind the ="]),
        (["--ratio-of", "stemm*=0.2"], ["'stemm*' matches no", "stem"]),
        (["--round-to", "0"], ["round_to is 0"]),
        (["--ratio", "0.5", "--macs", "0.5"], ["--ratio 0.5 and --macs 0.5 are both given"]),
        (["--macs", "-2"], ["macs"]),
        (
            ["--input", "5x7"],
            ["forward fails on the example input", "net.py:", "give --input of the shapes"],
        ),
        (["--input", "5,6"], ["is no shape", "1x3x224x224"]),
        (["--plan", "gone.json"], ["the plan cannot be read", "gone.json"]),
        (["--no-such-option"], ["No such option"]),
        (["--device", "abacus"], ["'abacus' is not one of"]),
    ],
)
def test_bad_options_exit_with_2(
    call: Callable[..., Result],
    net: str,
    tmp_path: Path,
    there: set[str],
    argv: list[str],
    texts: list[str],
) -> None:
    refused(call("prune", net, "-o", tmp_path / "out", *argv), 2, *texts)


@pytest.mark.parametrize("command", ["prune", "inspect", "bench"])
def test_bad_models_exit_with_2(
    call: Callable[..., Result], net: str, tmp_path: Path, command: str
) -> None:
    file = net.removesuffix(":build")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_bytes(
        b"this is no model at all, but it is long enough to be read"
    )
    (tmp_path / "empty.pt2").write_bytes(b"")
    (tmp_path / "text.pt2").write_bytes(b"neither is this")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "raises.py").write_text("x = 0\nx = 1 / x\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    for model, texts in [
        ("gone.onnx", ["no such file (gone.onnx)", "check the path"]),
        ("gone.py:build", ["no such file"]),
        ("nowhere", ["no such model"]),
        (tmp_path / "empty.onnx", ["the file is empty"]),
        (tmp_path / "empty.pt2", ["the file is empty"]),
        (tmp_path / "text.onnx", ["text.onnx"]),
        (tmp_path / "text.pt2", ["not a program of torch.export"]),
        (f"{file}:gone", ["no 'gone' here", "build"]),
        (tmp_path, ["no model.py here"]),
        (file, ["no callable is named", "net.py:build"]),
        (
            f"{file}:fails",
            ["fails() fails: RuntimeError: no such", f"net.py:{line_of('raise RuntimeError')}"],
        ),
        (f"{file}:needs", ["needs() cannot be called", "'path'"]),
        (f"{tmp_path / 'broken.py'}:build", ["invalid syntax", "broken.py"]),
        (
            f"{tmp_path / 'raises.py'}:build",
            ["cannot be imported: ZeroDivisionError", "raises.py:2"],
        ),
    ]:
        refused(call(command, model), 2, *texts)
    if command != "bench":
        refused(
            call(command, f"{file}:branch", "--input", "3"),
            2,
            "cannot be captured",
            "torch.export says",
            "torch.fx says",
            f"net.py:{line_of('if float(x.sum()) > 0')}",
            "take out of forward",
        )
        if command == "bench":  # it exports the module itself; prune holds the way by a guard
            refused(
                call(command, f"{file}:cond", "--input", "3"),
                2,
                "'cond' is not inlined",
                f"net.py:{line_of('torch.cond')}",
                "torch.cond",
            )
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def test_what_torch_logs_of_a_refusal_is_not_shown(net: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "irprune", "prune", net, "--input", "5x7"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2 and made.stdout == ""
    assert [line.split()[0] for line in made.stderr.splitlines()] == ["pruning", "irprune:"], (
        made.stderr
    )


def test_nan_weights_exit_with_2(
    call: Callable[..., Result], net: str, tmp_path: Path, there: set[str]
) -> None:
    refused(
        call("prune", net.replace(":build", ":with_nan"), "-o", tmp_path / "out"),
        2,
        "NaN",
        "head.weight",
    )


def test_no_arguments_and_wrong_commands_exit_with_2(call: Callable[..., Result], net: str) -> None:
    refused(call("prune"), 2, "Missing argument 'MODEL'")
    refused(call("polish", net), 2, "No such command 'polish'")
    refused(
        call("explain", net, "no.such.weight"),
        2,
        "no weight or value 'no.such.weight'",
        "near matches",
    )
    refused(call("explain", net, "stem.weight:7"), 2, "has no dimension '7'")
    refused(call("validate", net, "gone.onnx"), 2, "no such file (gone.onnx)")


def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    call: Callable[..., Result], net: str, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("text")
    for output, text in (
        ("thesis", "not a folder that irprune wrote"),
        ("folder.onnx", "the output is a folder"),
        ("file", "not a folder that irprune wrote"),
    ):
        result = call("prune", net, "-o", tmp_path / output)
        refused(result, 2, text)
        assert "pruning" not in result[2]
    refused(call("prune", net, "-o", tmp_path / "file" / "x.onnx"), 2, "cannot write")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    refused(call("demo", "-o", tmp_path / "thesis"), 2, "not a folder that irprune wrote")


@pytest.mark.parametrize("output", ["out", "m.onnx", "m.pt2"])
def test_a_full_disk_leaves_nothing(
    call: Callable[..., Result],
    net: str,
    tmp_path: Path,
    there: set[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.replace", full)
    refused(
        call("prune", net, "-o", tmp_path / output),
        2,
        "the disk is full",
        "nothing was left behind",
    )


@pytest.mark.skipif(
    not Path("/dev/shm").exists() or os.geteuid() != 0, reason="needs a small disk of its own"
)
def test_a_really_full_disk_leaves_nothing(net: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        for output in ("out", "m.onnx"):
            made = subprocess.run(
                [sys.executable, "-m", "irprune", "prune", net, "-o", str(disk / output)],
                capture_output=True,
                text=True,
            )
            assert made.returncode == 2, made
            assert "the disk is full" in made.stderr
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(
    not Path("/dev/shm").exists() or os.geteuid() != 0, reason="needs a small disk of its own"
)
def test_an_old_output_outlives_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    from irprune.testing.works import made_file

    net = str(tmp_path / "in.onnx")
    onnx.save(made_file(False), net)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")

    def prune() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "irprune", "prune", net, "-o", str(disk / "out.onnx")]
        return subprocess.run(command, capture_output=True, text=True)

    try:
        assert prune().returncode == 0
        old = (disk / "out.onnx").read_bytes()
        room = os.statvfs(disk)
        filled = room.f_bavail * room.f_bsize - 4096
        (disk / "other").write_bytes(b"\0" * filled)
        for words, options in (("the disk is full", "rw"), ("read-only", "ro")):
            subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)
            made = prune()
            said = [line for line in made.stderr.splitlines() if line.startswith("irprune:")]
            assert made.returncode == 2 and len(said) == 1 and words in said[0].lower(), made.stderr
            assert "Traceback" not in made.stderr
            assert (disk / "out.onnx").read_bytes() == old
            assert sorted(p.name for p in disk.iterdir()) == ["other", "out.onnx"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_failed_proof_exits_with_1_and_writes_nothing(
    call: Callable[..., Result],
    net: str,
    tmp_path: Path,
    there: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from irprune.passes import slice as slicing

    real = slicing.take
    monkeypatch.setattr(
        slicing,
        "take",
        lambda array, indices: real(
            array, [None if i is None else i[::-1].copy() for i in indices[:1]] + list(indices[1:])
        ),
    )
    refused(call("prune", net, "-o", tmp_path / "out"), 1, "the proof fails", "--no-proof")


def test_onnx_that_differs_exits_with_1_and_writes_nothing(
    call: Callable[..., Result],
    net: str,
    tmp_path: Path,
    there: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from irprune.validate import module_parity

    real = module_parity.measure
    monkeypatch.setattr(
        module_parity,
        "measure",
        lambda path, feed, expected, device: real(path, feed, [e + 1 for e in expected], device),
    )
    for output in ("out", "m.onnx"):
        refused(
            call("prune", net, "-o", tmp_path / output), 1, "the ONNX file differs from the module"
        )


def test_models_that_give_nothing_but_nan_are_not_equal(
    call: Callable[..., Result], net: str, tmp_path: Path, there: set[str]
) -> None:
    import numpy as np
    import torch

    from irprune.api.load import load_model

    (x,) = load_model(net).args
    np.save(tmp_path / "nan.npy", np.full(tuple(x.shape), np.nan, np.float32))
    there.add("nan.npy")
    assert isinstance(x, torch.Tensor)
    code, _, err = call("validate", net, net, "--input", tmp_path / "nan.npy")
    assert code == 1 and "nothing but NaN" in err


def test_an_interrupt_is_told(
    call: Callable[..., Result], net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("irprune.api.prune", stop)
    assert call("prune", net)[0] == 130
