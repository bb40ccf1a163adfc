"""safetensors files written tensor by tensor: what lies where follows from names, types and shapes,
so that no more than one tensor is in memory.

The bytes are those that ``safetensors`` itself writes. What a run that was killed has written is
taken over where it is part of the same files: a journal beside them says how far they are."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from irprune.base.atomic_write import JOURNAL
from irprune.ir.dtype import ELEMENT_TYPES
from irprune.ops.dtypes import FROM_TORCH
from irprune.run.stored_tensor import read

__all__ = ["file_names", "write_tensors"]

_LIMIT = 50 * 10**9  # bytes of a file, as in transformers
_BLOCK = 1 << 22
_ORDER = (
    "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
).split()  # the last comes first in a file


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a file, behind the header."""

    name: str
    start: int
    end: int


def file_names(tensors: Mapping[str, torch.Tensor], limit: int = _LIMIT) -> dict[str, list[str]]:
    """The names of ``tensors`` by the file that they go to: one of at most ``limit`` bytes after
    another, in their order."""
    packs: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        size = tensor.nbytes
        if packs[-1] and held + size > limit:
            packs.append([])
            held = 0
        packs[-1].append(name)
        held += size
    if len(packs) == 1:
        return {"model.safetensors": packs[0]}
    return {f"model-{i:05d}-of-{len(packs):05d}.safetensors": p for i, p in enumerate(packs, 1)}


def write_tensors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    fingerprint: str,
    limit: int = _LIMIT,
    told: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Write ``tensors`` into ``folder``, and an index where they take several files.

    Args:
        folder: Where to write; it may hold what a run that was killed has written.
        tensors: By name; what is read when it is used is read one at a time.
        fingerprint: What the values depend on: another one starts anew.
        limit: The most bytes of tensors in a file.
        told: Hears after each tensor how many are written, of how many.
    """
    files = file_names(tensors, limit)
    journal = _Journal(folder / JOURNAL, fingerprint)
    done = 0
    for file, names in files.items():
        chosen = {name: tensors[name] for name in names}
        for _ in _written(folder / file, chosen, journal):
            done += 1
            told(done, len(tensors))
    if len(files) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(t.numel() for t in tensors.values()),
                "total_size": sum(t.nbytes for t in tensors.values()),
            },
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    journal.path.unlink()


def _written(path: Path, tensors: Mapping[str, torch.Tensor], journal: _Journal) -> Iterator[str]:
    """Write one file; gives the name of each tensor as soon as it is in it."""
    head, places = _header(tensors)
    known = journal.sound(path, len(head), places)
    with path.open("r+b" if known else "wb") as out:
        if not known:
            out.write(head)
        out.seek(len(head) + (known[-1].end if known else 0))
        out.truncate()
        for place in known:
            yield place.name
        for place in places[len(known) :]:
            # numpy has no name for bfloat16: bytes have
            raw = read(tensors[place.name].detach()).contiguous().reshape(-1).view(torch.uint8)
            crc = 0
            for at in range(0, len(raw), _BLOCK):
                block = raw[at : at + _BLOCK].numpy().data
                crc = zlib.crc32(block, crc)
                out.write(block)
            del raw
            out.flush()
            journal.note(path.name, place, crc)
            yield place.name


def _header(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, list[_Place]]:
    """The first bytes of a file, and what lies behind them: the widest types first, then by name,
    as safetensors puts them."""
    kinds = {n: ELEMENT_TYPES[FROM_TORCH[t.dtype]].safetensors for n, t in tensors.items()}
    order = sorted(tensors, key=lambda n: (-_ORDER.index(kinds[n]), n))
    head: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, at = [], 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.nbytes
        head[name] = {
            "dtype": kinds[name],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        places.append(_Place(name, at, end))
        at = end
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


class _Journal:
    """What was written: a line for each tensor, with the sum of its bytes."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._lines: list[dict[str, object]] = []
        head = {"fingerprint": fingerprint}
        lines = _json_lines(path)
        if lines[:1] == [head]:
            self._lines = lines[1:]
        text = "".join(json.dumps(line) + "\n" for line in (head, *self._lines))
        path.write_text(text, encoding="utf-8")

    def note(self, file: str, place: _Place, crc: int) -> None:
        """``place`` of ``file`` is written."""
        line = {"file": file, "name": place.name, "end": place.end, "crc": crc}
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def sound(self, path: Path, head: int, places: list[_Place]) -> list[_Place]:
        """The first ``places`` that are in ``path`` already, behind ``head`` bytes."""
        mine = [line for line in self._lines if line.get("file") == path.name]
        found: list[_Place] = []
        if not mine or not path.exists():
            return found
        with path.open("rb") as held:
            held.seek(head)
            for line, place in zip(mine, places, strict=False):
                if (line.get("name"), line.get("end")) != (place.name, place.end):
                    break
                crc, left = 0, place.end - place.start
                while left and (block := held.read(min(left, _BLOCK))):
                    crc, left = zlib.crc32(block, crc), left - len(block)
                if left or crc != line.get("crc"):
                    break
                found.append(place)
        return found


def _json_lines(path: Path) -> list[dict[str, object]]:
    """The sound lines of a file, up to the first that is not."""
    out: list[dict[str, object]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            out.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return out
