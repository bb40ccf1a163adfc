"""Functions run on several processes of a gloo group, each on one thread."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Ended", "on_ranks", "torchrun"]

SECONDS = 240  # for starting torch in each process on a busy machine

_CHILD = """
import faulthandler, os, pickle, sys
from datetime import timedelta
import torch
import torch.distributed as dist

place, rank, size, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "group"
sys.path[:0] = sys.argv[5:]
faulthandler.enable()
torch.set_num_threads(1)
with open(f"{place}/work", "rb") as file:
    work, args = pickle.load(file)
if group:
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
made = work(*args)
with open(f"{place}/{rank}.part", "wb") as file:
    pickle.dump(made, file)
os.replace(f"{place}/{rank}.part", f"{place}/{rank}")
if group:
    dist.destroy_process_group()
"""


class Ended:
    """How a rank ended: what it gave, None where it did not; its exit code; what it said. torch may
    abort on its way out of a group whose other ranks are gone, after what is given."""

    def __init__(self, value: Any, code: int, said: str) -> None:
        self.value, self.code, self.said = value, code, said

    def __repr__(self) -> str:
        return f"Ended({self.value!r}, {self.code}, {self.said!r})"


def on_ranks(
    size: int, work: Callable[..., Any], *args: Any, group: bool | None = None
) -> list[Ended]:
    """``work(*args)`` in ``size`` processes, which are a group where they are several or ``group``
    says so. ``work`` is a function of a test module's top level."""
    grouped = size > 1 if group is None else group
    with tempfile.TemporaryDirectory() as place:
        Path(place, "work").write_bytes(pickle.dumps((work, args)))
        command = [sys.executable, "-c", _CHILD, place]
        rest = [str(size), "group" if grouped else "alone", *filter(None, sys.path)]
        running = [
            subprocess.Popen(
                [*command, str(rank), *rest],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(size)
        ]
        try:
            said = [p.communicate(timeout=SECONDS)[1] for p in running]
        finally:
            for p in running:
                p.kill()
        return [
            Ended(
                _given(Path(place, str(r))),
                p.returncode,
                text,
            )
            for r, (p, text) in enumerate(zip(running, said, strict=True))
        ]


def _given(file: Path) -> Any:
    return pickle.loads(file.read_bytes()) if file.exists() else None


def torchrun(size: int, arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node size`` with ``arguments``."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(size), *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
