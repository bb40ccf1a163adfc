"""Writers that are killed at random moments, and what must lie on the disk then.

A process writes one version of an output after the other: an ONNX file, an ONNX file with external
data, a folder, a checkpoint of a schedule. It is killed (SIGKILL) at a moment drawn at random. Then
the output must be whole and of one version (no structure may read another's numbers), and after the
next run nothing else may lie beside it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from irprune.base.atomic_write import replace_folder
from irprune.choice.plan import Plan
from irprune.emit.onnx.file import without_arrays, write_model
from irprune.run.ranks import ALONE
from irprune.training.checkpoint import Checkpoint

__all__ = ["KINDS", "Kind", "runs"]

LARGEST = 0.03  # seconds that a writer lives at most: several versions
ROWS = 4096  # numbers in each of the tensors


def network(version: int) -> onnx.ModelProto:
    """A sum of three weights, named and filled by ``version``."""
    names = [f"v{version}_w{i}" for i in range(3)]
    nodes = [
        helper.make_node("Add", ["x", names[0]], ["a"]),
        helper.make_node("Add", ["a", names[1]], ["b"]),
        helper.make_node("Add", ["b", names[2]], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        f"v{version}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS])],
    )
    graph.initializer.extend(without_arrays(n, TensorProto.FLOAT, (ROWS,)) for n in names)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_file(path: Path, version: int, outside: bool = False) -> None:
    """An ONNX file of ``version``, its weights in it or beside it."""
    model = network(version)
    arrays = {t.name: (lambda: np.full(ROWS, version, np.float32)) for t in model.graph.initializer}
    write_model(model, arrays, path, outside=() if outside else None)


def file_version(path: Path) -> int:
    """The version of an ONNX file. Raises AssertionError where its parts are of several."""
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    version = int(model.graph.name.removeprefix("v"))
    for tensor in model.graph.initializer:
        assert tensor.name.startswith(f"v{version}_"), f"{tensor.name} in version {version}"
        assert (numpy_helper.to_array(tensor) == version).all(), (
            f"numbers of another than {version}"
        )
    return version


def write_folder(path: Path, version: int) -> None:
    """A folder of four files of ``version``."""
    with replace_folder(path) as draft:
        for name in ("report.json", "model.py", "plan.json"):
            (draft / name).write_text(str(version))
        write_file(draft / "model.onnx", version, outside=True)


def folder_version(path: Path) -> int:
    """The version of a folder. Raises AssertionError where its files are of several."""
    version = file_version(path / "model.onnx")
    told = {int((path / n).read_text()) for n in ("report.json", "model.py", "plan.json")}
    assert told == {version}, f"files of {sorted(told)} beside version {version}"
    return version


def write_checkpoint(path: Path, version: int) -> None:
    """A checkpoint of one step, whose plan and state are of ``version``."""
    plan = Plan("0" * 16, f"v{version}", ())
    Checkpoint(path, {}).write(ALONE, [plan], {"w": torch.full((ROWS,), float(version))})


def checkpoint_version(path: Path) -> int:
    """The version of a checkpoint. Raises AssertionError where plan and state are of several."""
    held = Checkpoint(path, {}).read(ALONE)
    (plan,), state = held.plans, held.state
    version = int(plan.model.removeprefix("v"))
    assert state is not None
    assert bool((state["w"] == version).all()), f"numbers of another than {version}"
    return version


@dataclass(frozen=True)
class Kind:
    """A kind of output: the name of a path for it, how a version is written there and read, how
    many files lie ``around`` it, and how many within where it is a folder whose files are replaced
    one by one."""

    name: str
    write: Callable[[Path, int], None]
    version: Callable[[Path], int]
    files: int = 1
    place: str = "out.onnx"
    within: int = 0


KINDS = (
    Kind("file", write_file, file_version),
    Kind("file with data", lambda p, v: write_file(p, v, outside=True), file_version, 2),
    Kind("folder", write_folder, folder_version, place="out"),
    Kind("checkpoint", write_checkpoint, checkpoint_version, place="out", within=2),
)


def killed(kind: Kind, path: Path, first: int, seconds: float) -> None:
    """Let a process write versions from ``first`` on, and kill it after ``seconds``."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(told, b".")
            for version in range(first, first + 10_000):
                kind.write(path, version)
        finally:
            os._exit(1)
    os.read(ready, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(ready)
    os.close(told)


def _files(kind: Kind, folder: Path) -> list[str]:
    """What lies in ``folder``, and within the output where that counts."""
    inner = sorted((folder / kind.place).iterdir()) if kind.within else []
    return [p.name for p in (*sorted(folder.iterdir()), *inner)]


def runs(kind: Kind, folder: Path, kills: int, seed: int) -> Iterator[dict[str, object]]:
    """Kill ``kills`` writers of ``kind``; yields for each what was found."""
    moments = random.Random(f"{kind.name} {seed}")
    path = folder / kind.place
    version = 1
    kind.write(path, version)
    for _ in range(kills):
        killed(kind, path, version + 1, moments.uniform(0, LARGEST))
        left = len(_files(kind, folder)) > kind.files + kind.within
        found = kind.version(path)
        assert found >= version, f"version {version} was there, {found} is"
        version = found + 1
        kind.write(path, version)  # the next run
        assert kind.version(path) == version
        beside = _files(kind, folder)
        assert len(beside) == kind.files + kind.within, f"left over: {beside}"
        yield {"kind": kind.name, "moved on": found > version - 1, "drafts": left}
