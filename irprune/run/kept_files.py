"""What has been worked out over calibration data, in files, so that a run that was killed goes on
behind it: sums over rows, repaired weights, and what the chunks of the data need at a place of the
graph.

They lie in the folder beside the journal of the run (``irprune.base.journal``). A file is there
whole or not at all. The first rank keeps what all ranks have in common; each keeps its own chunks,
which on a file system that the ranks share are found by any number of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from irprune.base.atomic_write import no_room
from irprune.base.journal import current as current_journal
from irprune.errors import IrpruneError, gist
from irprune.run.ranks import Ranks
from irprune.run.ranks import current as current_ranks

__all__ = ["KeptFiles", "kept_files", "let_go_of_sums", "save", "within_part", "within_step"]

Place = tuple[int, ...]  # numbers of nodes, of as many graphs as are walked together

_VALUES, _PLACES = "values", "places"
_step: ContextVar[str] = ContextVar("irprune_step", default="")


@contextlib.contextmanager
def within_step(*about: str) -> Iterator[None]:
    """What is kept inside belongs to a step of the run, a repair of a cut that ``about`` tells from
    all others. What was kept of other steps is let go of."""
    journal, digest = current_journal(), _digest(*about)
    if journal is not None and journal.folder is not None and current_ranks().leads:
        for other in journal.folder.glob("step-*"):
            if other.name != f"step-{digest}":
                shutil.rmtree(other, ignore_errors=True)
    token = _step.set(f"step-{digest}")
    try:
        yield
    finally:
        _step.reset(token)


@contextlib.contextmanager
def within_part(name: str) -> Iterator[None]:
    """What is kept inside belongs to a part of the step, one of several that follow each other."""
    token = _step.set(_step.get() and f"{_step.get()}/{name}")
    try:
        yield
    finally:
        _step.reset(token)


def kept_files(
    kind: str, about: Callable[[], tuple[str, ...]] = tuple, of_step: bool = False
) -> KeptFiles | None:
    """The files of the run under way, of one ``kind``, for what ``about`` tells apart; None where
    the run is not kept. Those ``of_step`` belong to the step, and outside of any there are none."""
    journal, step = current_journal(), _step.get()
    if journal is None or journal.folder is None or (of_step and not step):
        return None
    folder = journal.folder / step if of_step else journal.folder
    return KeptFiles(folder / f"{kind}-{_digest(*about())}", current_ranks())


def let_go_of_sums() -> None:
    """Remove what is needed no more where all that is worked out over the data is kept: sums and
    chunks."""
    journal = current_journal()
    if journal is None or journal.folder is None:
        return
    current_ranks().gather(None)
    if current_ranks().leads:
        for folder in (*journal.folder.glob("readings-*"), *journal.folder.rglob(_PLACES)):
            shutil.rmtree(folder, ignore_errors=True)


class KeptFiles:
    """Values by name, and chunks by place, in ``folder``. All of ``ranks`` call the methods in the
    same order.

    Raises IrpruneError where the folder cannot be written or read."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks

    # -- what all ranks have in common -------------------------------------------------------------

    def get(self, name: str) -> Any:
        """The value of ``name``; None where there is none."""
        file = self._file(name)
        return self.ranks.first(_read(file) if self.ranks.leads and file.exists() else None)

    def put(self, name: str, value: Any) -> None:
        """Keep a value: tensors, numbers and texts in dictionaries and lists."""
        if self.ranks.leads:
            save(value, self._file(name))

    def forget(self) -> None:
        """Let go of all values."""
        if self.ranks.leads:
            shutil.rmtree(self.folder / _VALUES, ignore_errors=True)

    # -- chunks at a place -------------------------------------------------------------------------

    def latest(self, chunks: Sequence[int], before: Place) -> Place | None:
        """The furthest place, not behind ``before``, where all chunks of all ranks are kept;
        ``chunks`` are the numbers of this rank's. None where there is none."""
        names = {f"{number}.pt" for number in chunks}
        mine = set()
        for folder in sorted(self.folder.glob(f"{_PLACES}/*")):
            place = tuple(map(int, folder.name.split("-")))
            if any(a > b for a, b in zip(place, before, strict=True)):
                continue
            if names <= {file.name for file in folder.iterdir()}:
                mine.add(place)
        every = self.ranks.gather(mine)
        return max(set.intersection(*every), default=None)

    def chunk(self, place: Place, number: int) -> Any:
        """What was kept of a chunk."""
        return _read(self._chunk(place, number))

    def put_chunk(self, place: Place, number: int, item: Any) -> None:
        """Keep what a chunk needs from ``place`` on."""
        save(item, self._chunk(place, number))

    def arrived(self, place: Place, chunks: Sequence[int]) -> None:
        """Every chunk of this rank is kept at ``place``: once those of all ranks are, what is kept
        at other places is let go of."""
        self.ranks.gather(None)
        for folder in self.folder.glob(f"{_PLACES}/*"):
            if folder != self._place(place):
                for number in chunks:
                    (folder / f"{number}.pt").unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # another rank's are there, or were
                    folder.rmdir()

    def forget_chunks(self) -> None:
        """Let go of the chunks at all places, where no rank needs them any more."""
        if self.ranks.leads:
            shutil.rmtree(self.folder / _PLACES, ignore_errors=True)

    def _place(self, place: Place) -> Path:
        return self.folder / _PLACES / "-".join(map(str, place))

    def _chunk(self, place: Place, number: int) -> Path:
        return self._place(place) / f"{number}.pt"

    def _file(self, name: str) -> Path:
        return self.folder / _VALUES / f"{_digest(name)}.pt"


def save(item: Any, file: Path) -> None:
    """Write ``item`` as torch does to ``file``, which is there whole or not at all. Raises
    IrpruneError where it cannot be written."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(item, draft)
        draft.replace(file)
    except (OSError, RuntimeError) as failed:  # torch hides the system's error of a full disk
        draft.unlink(missing_ok=True)
        full = shutil.disk_usage(_there(file)).free < _ROOM
        raise IrpruneError(
            f"what is worked out cannot be kept: {no_room().strerror if full else gist(failed)}",
            str(file.parent),
            "make room there, or name a place where there is",
        ) from failed


_ROOM = 1 << 20


def _there(file: Path) -> Path:
    return next(p for p in file.absolute().parents if p.exists())


def _read(file: Path) -> Any:
    try:
        return torch.load(file, weights_only=True)
    except (OSError, RuntimeError, EOFError) as failed:
        if isinstance(failed, OSError) and failed.errno == errno.ENOENT:
            raise
        raise IrpruneError(
            "what an earlier run has kept cannot be read", str(file), "remove the file"
        ) from failed


def _digest(*about: str) -> str:
    return sha256("\n".join(about).encode()).hexdigest()[:24]
