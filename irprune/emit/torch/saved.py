"""A pruned model as a folder that loads without irprune.

``model.py`` needs only torch: ``import model; net = model.load()``. Beside it lie
``weights.safetensors``, the program ``model.pt2``, ``model.onnx``, the plan and the report. Of a
transformers model there is ``huggingface/`` as well."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from irprune.base.atomic_write import no_room
from irprune.base.quiet import quiet
from irprune.emit.torch.module import module_from_source, source_of
from irprune.emit.torch.open_program import open_program
from irprune.errors import IrpruneError, gist, option, printable
from irprune.frontend.torch.source import TorchSource
from irprune.ir.dtype import ELEMENT_TYPES
from irprune.ir.graph import Graph
from irprune.run.stored_tensor import state_bytes

__all__ = ["WEIGHTS", "from_folder", "save_module", "save_program"]

WEIGHTS = "weights.safetensors"

_LOADER = '''

def read(path):
    """The tensors of a safetensors file, by name."""
    import json
    import os

    kinds = {KINDS}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))
    data = torch.from_file(str(path), size=os.path.getsize(path), dtype=torch.uint8)[8 + size:]
    out = {}
    for name, entry in head.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            out[name] = data[first:last].clone().view(kinds[entry["dtype"]]).reshape(entry["shape"])
    return out


def load(folder=None, device="cpu"):
    """The model with its weights, in eval mode; ``folder`` is where this file lies unless it says another."""
    from pathlib import Path

    folder = Path(__file__).parent if folder is None else Path(folder)
    with torch.device("meta"):
        model = Model()
    return fill(model, read(folder / "weights.safetensors")).to(device).eval()
'''.replace(
    "KINDS",
    ", ".join(
        f'"{t.safetensors}": torch.{t.torch}' for t in ELEMENT_TYPES.values() if t.safetensors
    ),
)


def save_module(module: torch.nn.Module, folder: Path) -> None:
    """``model.py`` and ``weights.safetensors`` of an emitted module."""
    text = source_of(module) + _LOADER
    (folder / "model.py").write_text(text, encoding="utf-8", newline="\n")
    (folder / _DIGEST).write_text(f"{_digest(text)}  model.py\n", encoding="utf-8")
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous()
    weights = folder / WEIGHTS
    save_file(tensors, str(weights))
    # Readable by whoever may read the source
    weights.chmod((folder / "model.py").stat().st_mode & 0o777)


_BESIDE = 1 << 22  # bytes that a program takes beside its weights, at most


class Unreadable(IrpruneError):
    """A program that torch would write and could not read."""


def save_program(
    module: torch.nn.Module, source: TorchSource, path: Path, graph: Graph | None = None
) -> None:
    """``module`` as a program of ``torch.export``, with the sizes open that ``graph`` leaves
    open. Raises Unreadable for names of inputs or outputs that torch, which writes them into
    source, could not read back, and for classes that it cannot write."""
    with quiet(), torch.no_grad():
        program, _ = open_program(module, source, graph)
        for spec in (program.call_spec.in_spec, program.call_spec.out_spec):
            for name in _names_in(spec):
                if not name.isprintable() or set(name) & set("'\"\\"):
                    raise Unreadable(
                        f"torch cannot read a program with the name {printable(name)}",
                        path.name,
                        "name inputs and outputs by plain words",
                    )
            try:
                pytree.treespec_dumps(spec)
            except NotImplementedError as refused:  # a dataclass of the user's
                raise Unreadable(
                    f"torch writes no program whose arguments or results are of a class of the "
                    f"user's: {gist(refused)}",
                    path.name,
                    "return a tuple or a dictionary, or use model.py or the ONNX file",
                ) from refused
        _reserve(
            path,
            state_bytes(module) + _BESIDE,
        )
        torch.export.save(program, str(path))


def _names_in(spec: Any) -> Iterator[str]:
    """The texts among the keys of the dictionaries in a tree of torch.utils.pytree."""
    keys = spec.context if isinstance(spec.context, (list, tuple)) else ()
    yield from (key for key in keys if isinstance(key, str))
    for child in spec.children_specs:
        yield from _names_in(child)


def _reserve(path: Path, size: int) -> None:
    """Raises OSError where a file of ``size`` bytes cannot be: torch's writer aborts the process
    there."""
    if shutil.disk_usage(path.parent).free < size:
        raise no_room()
    if hasattr(os, "posix_fallocate"):  # quotas and limits of the process
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)


_DIGEST = "model.py.sha256"  # as `sha256sum --check` reads it


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def from_folder(folder: str | Path, trust: bool = False) -> torch.nn.Module:
    """The module in a folder that ``save`` wrote.

    Args:
        folder: The folder.
        trust: Run its ``model.py`` even where irprune did not write it.

    Raises:
        IrpruneError: Where there is no module, and, without ``trust``, where ``model.py`` is not
            what irprune wrote.
    """
    folder = Path(folder)
    for name in ("model.py", WEIGHTS):
        if not (folder / name).exists():
            raise IrpruneError(
                f"no {name} here",
                str(folder),
                "give a folder that pruned.save or `irprune prune -o` wrote",
            )
    text = (folder / "model.py").read_text(encoding="utf-8")
    beside = folder / _DIGEST
    known = beside.read_text(encoding="utf-8").split() if beside.is_file() else []
    if not trust and (known[:1] != [_digest(text)] or not text.endswith(_LOADER)):
        raise IrpruneError(
            "model.py is not what irprune wrote"
            if known
            else f"there is no {_DIGEST} to say that irprune wrote model.py",
            str(folder),
            f"read it, then say {option('trust', 'True')}, or import it yourself",
        )
    return module_from_source(text.removesuffix(_LOADER), load_file(str(folder / WEIGHTS)))
