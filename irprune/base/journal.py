"""What a run has measured, kept as it goes, so that one that was killed goes on where it was.

A file has a line for each result: a stage, a name, and numbers. The first line is the fingerprint
of everything that the results depend on; a file with another is started over. The last line of a
run that was killed may be torn, and is left out. What is larger than a few numbers lies in a folder
beside the file (``irprune.run.kept_files``)."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irprune.errors import IrpruneError

__all__ = ["Journal", "current", "kept"]

Numbers = NDArray[np.float64]


class Journal:
    """Numbers by stage and name, in ``path`` from the moment that they are known; in memory alone
    where that is None. ``folder`` is the one beside the file, of ``path`` where it is not given;
    it goes with what was kept of something else.

    Raises IrpruneError where the file cannot be written."""

    def __init__(
        self, path: Path | None, fingerprint: str = "", folder: Path | None = None
    ) -> None:
        self.path = path
        self.folder = path.with_name(f"{path.name}.d") if path is not None else folder
        self.found = 0  # results that an earlier run left
        self._known: dict[tuple[str, str], Numbers] = {}
        if path is None:
            return
        lines = self._lines()
        head = {"fingerprint": fingerprint}
        try:
            if lines[:1] == [head]:
                for line in lines[1:]:
                    key = (str(line["stage"]), str(line["name"]))
                    self._known[key] = np.asarray(line["numbers"], dtype=np.float64)
                self.found = len(self._known)
            elif self.folder is not None and self.folder.exists():
                shutil.rmtree(self.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            sound = [head, *lines[1:]] if self.found else [head]
            draft = path.with_name(f".{path.name}.draft")
            draft.write_text("".join(json.dumps(line) + "\n" for line in sound), encoding="utf-8")
            draft.replace(path)
        except OSError as failed:
            raise IrpruneError(
                f"what is measured cannot be kept: {failed.strerror}",
                str(path),
                "name another file",
            ) from failed

    def _lines(self) -> list[dict[str, object]]:
        """The sound lines of the file, up to the first that is not."""
        out: list[dict[str, object]] = []
        assert self.path is not None
        try:
            for line in self.path.read_text(encoding="utf-8").splitlines():
                out.append(json.loads(line))
        except (OSError, ValueError):
            pass
        return out

    def learn(self, known: dict[tuple[str, str], Numbers]) -> None:
        """Take over what another journal knows."""
        self._known.update(known)

    def known(self) -> dict[tuple[str, str], Numbers]:
        """Everything that is known."""
        return dict(self._known)

    def get(self, stage: str, name: str) -> Numbers | None:
        """What is known; None where that is nothing."""
        return self._known.get((stage, name))

    def put(self, stage: str, name: str, numbers: Numbers) -> None:
        """Keep a result."""
        self._known[stage, name] = numbers
        if self.path is None:
            return
        line = {"stage": stage, "name": name, "numbers": numbers.tolist()}
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


_CURRENT: ContextVar[Journal | None] = ContextVar("irprune_journal", default=None)


@contextlib.contextmanager
def kept(journal: Journal | None) -> Iterator[None]:
    """Let what is measured inside be kept in ``journal``."""
    token = _CURRENT.set(journal)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Journal | None:
    """The journal of the call that is under way."""
    return _CURRENT.get()
