"""Writing aside and renaming: a file or a folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from irprune.errors import IrpruneError

__all__ = [
    "NotWritten",
    "aside",
    "cannot_write",
    "check_folder",
    "check_place",
    "no_room",
    "replace_folder",
    "write_text",
]


@contextlib.contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A draft folder next to ``path``; what lies in it afterwards moves there, ``path`` itself
    last.

    On an error nothing has changed. Raises IrpruneError where the place cannot be written or the
    disk is full."""
    path = Path(path)
    with _draft(path) as draft:
        yield draft
        beside = sorted((p for p in draft.iterdir() if p.name != path.name), key=lambda p: p.name)
        for part in (*beside, draft / path.name):
            part.replace(path.parent / part.name)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` as ``aside`` does; returns the path."""
    with aside(path) as draft:
        (draft / path.name).write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """A draft folder that takes the place of the folder ``path`` afterwards; on an error nothing
    has changed.

    Raises IrpruneError where the place cannot be written, the disk is full, or ``path`` is
    something irprune did not write."""
    path = Path(path)
    check_folder(path)
    with _draft(path) as draft:
        made, old = draft / "new", draft / "old"
        made.mkdir()
        yield made
        if path.exists():
            path.replace(old)
        try:
            made.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise


def check_folder(path: Path) -> None:
    """Raises IrpruneError where ``path`` exists and is neither empty nor a folder that irprune
    wrote."""
    if path.exists() and not (
        path.is_dir() and (not any(path.iterdir()) or (path / "report.json").exists())
    ):
        raise IrpruneError(
            "the output exists and is not a folder that irprune wrote",
            str(path),
            "name another one with -o, or remove it",
        )


def check_place(path: Path) -> None:
    """Raises IrpruneError where nothing can be written at ``path``; leaves nothing there."""
    there = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as refused:
        raise cannot_write(refused, path) from refused


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that is gone afterwards; failures to write become one line for the
    user."""
    draft: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield draft
    except IrpruneError:
        raise
    except OSError as failed:
        raise cannot_write(failed, path) from failed
    # writers in other languages hide the operating system's error in classes of their own
    except Exception as failed:
        if draft is not None and shutil.disk_usage(draft).free < _ROOM:
            raise cannot_write(no_room(), path) from failed
        raise
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


_ROOM = 1 << 20  # a disk with less than this left is full


def no_room() -> OSError:
    """The operating system's error for a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class NotWritten(IrpruneError):
    """An output could not be written; nothing was left behind."""


def cannot_write(failed: OSError, path: Path) -> NotWritten:
    """What the user is told when a file cannot be written."""
    if failed.errno == errno.ENOSPC:
        return NotWritten(
            "the disk is full",
            str(path),
            "make room, or write somewhere else; nothing was left behind",
        )
    return NotWritten(
        f"cannot write: {failed.strerror or failed}",
        str(path),
        "check the place and its permissions",
    )
