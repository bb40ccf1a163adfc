"""Writing aside and renaming: a file or a folder appears whole or not at all, also where the
process is killed.

A draft lies beside the output, in a folder that its writer holds a lock on. The system drops the
lock of a process that dies, so the next writer of the same output knows what is left over and
removes it. What consists of several files is put in place under a lock on the folder around it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from irprune.base.moved import renamed
from irprune.errors import IrpruneError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "JOURNAL",
    "NotWritten",
    "atomic_write",
    "cannot_write",
    "check_folder",
    "check_place",
    "content_name",
    "left_over",
    "locked",
    "no_room",
    "replace_folder",
    "unfinished",
    "write_text",
]

__getattr__ = renamed(__name__, {"aside": "atomic_write"})

_MARK = ".irprune-"
JOURNAL = ".written.jsonl"
"""A file of this name in a draft folder says what was written into it, so that another run can go
on from there."""


@contextlib.contextmanager
def atomic_write(
    path: str | Path, replaced: Callable[[Path], set[str]] = lambda path: set()
) -> Iterator[Path]:
    """A draft folder for the file ``path``; what lies in it afterwards moves beside the file, the
    file itself last.

    Files beside it must have names that no earlier version of the file reads, such as those of
    ``content_name``; so the old file and its data stay whole until the new one takes the name.
    ``replaced(path)`` then names the files beside it that belonged to earlier versions, and may
    name new ones: those stay. Through a link the file that it leads to is written.

    Raises:
        IrpruneError: Where the place cannot be written or the disk is full; nothing has changed.
    """
    name, path = Path(path).name, _target(Path(path))
    with _draft(path) as draft:
        yield draft
        beside = sorted(p for p in draft.iterdir() if p.name != name)
        with locked(path.parent):
            old = replaced(path)
            for part in beside:
                part.replace(path.parent / part.name)
            (draft / name).replace(path)
            for gone in old - {part.name for part in beside}:
                (path.parent / gone).unlink(missing_ok=True)


def content_name(file: Path, name: str, end: str) -> str:
    """Rename ``file`` to ``name``, a part that follows from its content, and ``end``, and return
    that; another content never has the same name."""
    digest = hashlib.blake2b(digest_size=8)
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            digest.update(block)
    made = f"{name}.{digest.hexdigest()}{end}"
    file.replace(file.with_name(made))
    return made


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` as ``atomic_write`` does; returns the path."""
    with atomic_write(path) as draft:
        (draft / path.name).write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """A draft folder that takes the place of the folder ``path`` afterwards, in one step where the
    system can exchange two folders (Linux, macOS).

    Where it cannot, the old folder lies in the draft for a moment, and the next writer puts it back
    if this one is killed there.

    Raises:
        IrpruneError: Where the place cannot be written, the disk is full, or ``path`` is something
            irprune did not write; nothing has changed.
    """
    path = _target(Path(path))
    check_folder(path)
    with _draft(path) as draft:
        made, old = draft / "new", draft / "old"
        made.mkdir()
        yield made
        with locked(path.parent):
            if not path.exists():
                made.replace(path)
            elif not _exchange(made, path):
                path.replace(old)
                try:
                    made.replace(path)
                except OSError:
                    old.replace(path)
                    raise


def unfinished(folder: Path) -> Path | None:
    """What a writer that was killed has left of ``folder``, a draft of ``replace_folder``, and has
    kept a ``JOURNAL`` of; None where there is nothing. It goes with the draft."""
    left = folder.parent / _LEFT
    return left if (left / JOURNAL).is_file() else None


def check_folder(path: Path) -> None:
    """Raises IrpruneError where ``path`` exists and is neither empty nor a folder that irprune
    wrote."""
    if path.exists() and not (
        path.is_dir() and (not any(path.iterdir()) or (path / "report.json").exists())
    ):
        raise IrpruneError(
            "the output exists and is not a folder that irprune wrote",
            str(path),
            "name another one, or remove it",
        )


def check_place(path: Path) -> None:
    """Raises IrpruneError where nothing can be written at ``path``; leaves nothing there."""
    there = next((p for p in _target(path).absolute().parents if p.exists()), Path("/"))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as refused:
        raise cannot_write(refused, path) from refused


def _target(path: Path) -> Path:
    """Where ``path`` leads to: a link is written through."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


_LEFT = "unfinished"

# -- drafts ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that is gone afterwards; failures to write become one line for the
    user."""
    draft: Path | None = None
    lock = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, lock = _new_draft(path)
        _remove_left_over(path, draft)
        yield draft
    except IrpruneError:
        raise
    except OSError as failed:
        raise cannot_write(failed, path) from failed
    except Exception as failed:
        hidden = _hidden(failed, draft) if draft is not None else None
        if hidden is None:
            raise
        raise cannot_write(hidden, path) from failed
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _new_draft(path: Path) -> tuple[Path, int]:
    """A draft folder and the open lock on it."""
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}{_MARK}", dir=path.parent))
        try:
            lock = _lock(draft, refuse=True)
        except BlockingIOError:  # another writer takes it for left over and is removing it
            continue
        if draft.exists():  # else that writer has removed it before it was locked
            return draft, -1 if lock is None else lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, wait: bool = False, refuse: bool = False) -> int | None:
    """An open file that holds the lock on ``folder``; None where there are no locks, and where
    another process holds it.

    Raises:
        BlockingIOError: Where another process holds it and ``refuse`` asks for the difference.
    """
    if fcntl is None:
        return None
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as held:
        os.close(file)
        if refuse and isinstance(held, BlockingIOError):
            raise
        return None
    return file


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time goes on with ``folder``, which exists; others wait."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def left_over(folder: Path) -> bool:
    """Whether no process goes on with ``folder`` (``locked``)."""
    lock = _lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None or fcntl is None


def _remove_left_over(path: Path, heir: Path) -> None:
    """Remove drafts of ``path`` whose writers have died. One that held the old folder gives it
    back, and one with a journal what it has written to the draft ``heir``."""
    for draft in path.parent.glob(f".{_literal(path.name)}{_MARK}*"):
        lock = _lock(draft)
        if lock is None:
            continue
        try:
            old = draft / "old"
            if old.is_dir() and not path.exists():
                old.replace(path)
            for part in (draft / "new", draft / _LEFT):
                if (part / JOURNAL).is_file() and not (heir / _LEFT).exists():
                    part.replace(heir / _LEFT)
            shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(lock)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


# -- exchanging two folders ------------------------------------------------------------------------

_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders change places in one step; False where the system or its file system cannot.

    renameat2(2) on Linux, renamex_np(2) on macOS."""
    first, second = os.fsencode(a), os.fsencode(b)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, _RENAME_SWAP)
        else:
            failed = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
    except (OSError, AttributeError, TypeError):  # no such library, no such function
        return False
    if failed and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return not failed


# -- what the user is told -------------------------------------------------------------------------

_ROOM = 1 << 20  # a disk with less than this left is full
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_RUST = re.compile(r"\(os error (\d+)\)")


def no_room() -> OSError:
    """The operating system's error for a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _hidden(failed: Exception, draft: Path) -> OSError | None:
    """The operating system's error behind one of a writer in another language, which hides it in a
    class of its own: Rust's name its number, of others it is told by the disk. None where it is not
    for lack of room: reading fails in the same classes."""
    said = _IN_RUST.search(str(failed))
    if said and (number := int(said[1])) in _NO_ROOM:
        return OSError(number, os.strerror(number))
    return no_room() if shutil.disk_usage(draft).free < _ROOM else None


class NotWritten(IrpruneError):
    """An output could not be written; nothing was left behind."""


def cannot_write(failed: OSError, path: Path) -> NotWritten:
    """What the user is told when a file cannot be written."""
    if failed.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotWritten(
            "the disk is full",
            str(path),
            "make room, or write somewhere else; nothing was left behind",
        )
    if failed.errno == errno.EFBIG:
        return NotWritten(
            "a file would be larger than the file system or the limit of this process allows",
            str(path),
            "raise the limit (ulimit -f), or write somewhere else; nothing was left behind",
        )
    return NotWritten(
        f"cannot write: {failed.strerror or failed}",
        str(path),
        "check the place and its permissions",
    )
