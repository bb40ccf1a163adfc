"""Outputs are whole after a kill, through a link, beside another writer, over the input."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import irprune
from irprune.base import atomic_write as writing
from irprune.base.atomic_write import atomic_write, replace_folder, write_text
from irprune.emit.onnx import file as onnx_file
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import locations
from irprune.testing.kills import KINDS, Kind, runs


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_a_killed_writer_leaves_the_old_or_the_new(kind: Kind, tmp_path: Path) -> None:
    assert len(list(runs(kind, tmp_path, 10, seed=1))) == 10


def test_numbers_of_another_version_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: data that lies under one name in every version."""

    def named(file: Path, name: str, end: str) -> str:
        file.replace(file.with_name(f"{name}.0000000000000000.data"))
        return f"{name}.0000000000000000.data"

    monkeypatch.setattr(onnx_file, "content_name", named)
    with pytest.raises(AssertionError, match="numbers of another"):
        list(runs(KINDS[1], tmp_path, 200, seed=0))


def folder_of(path: Path, text: str) -> None:
    with replace_folder(path) as draft:
        (draft / "report.json").write_text(text)


def test_without_an_exchange_a_killed_writer_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_exchange", lambda a, b: False)
    path = tmp_path / "out"
    folder_of(path, "one")
    folder_of(path, "two")
    assert (path / "report.json").read_text() == "two"
    dead = tmp_path / ".out.irprune-dead"  # killed between the two renames
    (dead / "new").mkdir(parents=True)
    path.replace(dead / "old")
    with pytest.raises(RuntimeError), replace_folder(path):
        raise RuntimeError
    assert (path / "report.json").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_draft_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_write(path) as first:
        with atomic_write(path) as second:
            assert first.exists()
            (second / path.name).write_text("second")
        (first / path.name).write_text("first")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_a_draft_that_another_writer_is_removing_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer holds the lock between the making of a draft and its locking, takes it for
    left over and removes it a moment later."""
    path, seen = tmp_path / "out.txt", list[str]()
    make = tempfile.mkdtemp

    def made_and_locked(prefix: str, dir: Path) -> str:
        draft = make(prefix=prefix, dir=dir)
        if not seen:
            held.append(os.open(draft, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        seen.append(draft)
        return draft

    held = list[int]()
    monkeypatch.setattr(tempfile, "mkdtemp", made_and_locked)
    with atomic_write(path) as draft:
        shutil.rmtree(seen[0])
        os.close(held[0])
        (draft / path.name).write_text("whole")
    assert path.read_text() == "whole" and len(seen) == 2


def write_many(kind: Kind, path: Path, first: int) -> None:
    for version in range(first, first + 60, 2):
        kind.write(path, version)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_two_writers_leave_one_whole_output(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.place
    spawn = multiprocessing.get_context("fork")
    both = [spawn.Process(target=write_many, args=(kind, path, k)) for k in (1, 2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert kind.version(path) in (59, 60)
    assert len(list(tmp_path.iterdir())) == kind.files


def test_an_output_through_a_link_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for number, kind in enumerate(KINDS):
        name = f"{number}{kind.place}"
        link, real = tmp_path / name, tmp_path / "real" / f"its-{name}"
        kind.write(real, 1)
        link.symlink_to(real)
        kind.write(link, 2)
        assert link.is_symlink()
        assert kind.version(real) == 2
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def external(path: Path) -> Path:
    """A model of two layers with its weights beside it."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 32), "w2": (16, 64)}
    held = [
        numpy_helper.from_array(rng.standard_normal(s).astype("f4"), n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w2"], ["y"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 16])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], held),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    place = f"{path.name}.data"
    onnx.save(model, path, save_as_external_data=True, location=place, size_threshold=0)
    return path


def test_the_output_may_be_the_input(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx")
    pruned = irprune.prune(path)
    pruned.onnx(path)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", *locations(path)}
    other = pruned.onnx(tmp_path / "other.onnx")  # what was read is still there
    for a, b in zip(
        onnx.load(str(path)).graph.initializer, onnx.load(str(other)).graph.initializer, strict=True
    ):
        assert np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


def test_data_of_another_model_is_left_alone(tmp_path: Path) -> None:
    """``<name>.data`` is removed only where the model that is replaced reads it."""
    path = external(tmp_path / "m.onnx")
    (tmp_path / "out.onnx.data").write_bytes(b"somebody's own")
    pruned = irprune.prune(path)
    pruned.onnx(tmp_path / "out.onnx")
    pruned.onnx(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == b"somebody's own"


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(IrpruneError, match="the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


LIMITED = """
import resource
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from irprune.base.atomic_write import atomic_write
from irprune.errors import IrpruneError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_write(Path("out.safetensors")) as draft:
        save_file({"a": np.zeros(1000)}, draft / "out.safetensors")
except IrpruneError as said:
    print(said)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_limit_that_a_writer_in_rust_meets_is_one_line(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, capture_output=True, text=True
    )
    assert made.stdout.startswith("a file would be larger than"), made
    assert "ulimit -f" in made.stdout
    assert list(tmp_path.iterdir()) == []


def test_folders_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    if not writing._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system has no exchange")
    assert (tmp_path / "a" / "is").read_text() == "b"
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(OSError):
        writing._exchange(tmp_path / "a", tmp_path / "b")
