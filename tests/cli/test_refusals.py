"""What the command line refuses: options, models, outputs; and what a failure leaves behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from command_line import Result, line_of, refused


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
                [
                    sys.executable,
                    "-m",
                    "irprune",
                    "prune",
                    net,
                    "-o",
                    str(disk / output),
                    "--no-calibration",
                ],
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
        command.append("--no-calibration")
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
