"""Where ``irprune prune`` writes: what the path means, what is refused before any work, and the
writing."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irprune.base.atomic_write import check_folder, check_place
from irprune.emit.bridge.openvino_files import openvino
from irprune.errors import CheckFailed, IrpruneError, option

if TYPE_CHECKING:
    from irprune.api.load import Loaded

__all__ = ["HELP", "Output"]

HELP = """Where to write: a path that ends in .onnx gives the ONNX file, in .pt2 the exported program, in .gguf the file of
llama.cpp, in .json the plan, anything else a folder with readable source and all that the model goes into; - gives the
ONNX file on standard output."""

_FORMATS = (".onnx", ".pt2", ".gguf", ".json")
_STANDARD = "-"


class Output:
    """The place that ``text`` names, None where nothing is written; ``format`` is that of a
    folder; an ONNX file of a decoder has its ``cache`` among inputs and outputs; ``profile`` are
    shapes by input, three of each, as ``--profile`` says them."""

    def __init__(
        self,
        text: str | None,
        format: str = "irprune",
        cache: bool = False,
        profile: Sequence[str] = (),
    ) -> None:
        self.text, self.format, self.cache = text, format, cache
        self.profile = dict(map(_profile, profile))
        self.path = None if text in (None, _STANDARD) else Path(str(text))
        self.standard = text == _STANDARD

    @property
    def pretrained(self) -> bool:
        """Whether a folder for transformers is written."""
        return self.format == "hf"

    @property
    def one_width(self) -> bool:
        """Whether layers that repeat have one width for each kind of it, unless the user says
        otherwise."""
        return self.pretrained or (self.path is not None and self.path.suffix == ".gguf")

    def no_low_rank(self, asked: bool | Mapping[str, int]) -> IrpruneError:
        """What is to be said, before any work, where layers may become two as ``asked`` and this is
        one width for each kind of them."""
        return IrpruneError(
            f"{'--format hf' if self.pretrained else 'a GGUF file'} and {option('low_rank', repr(asked))} "
            "are both given",
            self.text or "",
            "nothing there says that a layer is two: write a folder of irprune, or an ONNX file",
        )

    def check(self, model: str, force: bool) -> None:
        """Refuse a place that cannot be written, or that holds the model itself, before anything is
        computed."""
        if self.format != "irprune" and (self.path is None or self.path.suffix in _FORMATS):
            raise IrpruneError(
                f"--format {self.format} writes a folder",
                self.text or "",
                f"name a folder: -o small/ --format {self.format}",
            )
        if self.profile and self.format != "tensorrt":
            raise IrpruneError("--profile is for TensorRT", "", "say --format tensorrt")
        if self.format == "openvino":
            openvino()
        if self.cache and (self.path is None or self.path.suffix != ".onnx"):
            raise IrpruneError(
                "--cache is of an ONNX file", self.text or "", "name one: -o small.onnx --cache"
            )
        if self.path is None:
            return
        path, suffix = self.path, self.path.suffix
        if not force and path.exists() and Path(model).exists() and path.samefile(model):
            raise IrpruneError(
                "the output is the model itself", str(path), "say --force to write over it"
            )
        if suffix in _FORMATS and path.is_dir():
            raise IrpruneError("the output is a folder", str(path), "name a file in it")
        if suffix not in _FORMATS:
            if suffix and not path.exists() and not str(self.text).endswith("/"):
                raise IrpruneError(
                    f"no output format ends in {suffix!r}",
                    str(path),
                    f"{', '.join(_FORMATS)}, or a folder: {path}/",
                )
            check_folder(path)
        check_place(path)

    def check_kind(self, loaded: Loaded) -> None:
        """Refuse a format that there is not for this kind of model."""
        if loaded.kind != "onnx" or self.path is None:
            return
        if self.path.suffix == ".gguf":
            raise IrpruneError(
                "a GGUF file is of models of transformers, and MODEL is an ONNX file",
                str(self.path),
                "name .onnx, or give the folder that the file was exported from: hf:FOLDER",
            )
        if self.path.suffix == ".pt2":
            raise IrpruneError(
                "a .pt2 program is made of a PyTorch model, and MODEL is an ONNX file",
                str(self.path),
                "name .onnx, or a folder, which holds a module as source",
            )

    def write(self, pruned: Any, per_layer: bool = False) -> None:
        """Write what the place means; ``per_layer`` as ``pruned.save`` has it."""
        if self.standard:
            with tempfile.TemporaryDirectory(prefix="irprune-") as folder:
                file = pruned.onnx(Path(folder) / "model.onnx")
                if len(list(Path(folder).iterdir())) > 1:
                    raise IrpruneError(
                        "the model is larger than one ONNX file holds",
                        "standard output",
                        "name a file, beside which its weights lie",
                    )
                sys.stdout.buffer.write(file.read_bytes())
                sys.stdout.buffer.flush()
        elif self.path is not None:
            writer = _WRITERS.get(self.path.suffix)
            if self.cache:
                _onnx(pruned, self.path, cache=True)
            elif writer is None:
                pruned.save(
                    self.path, self.format, per_layer=per_layer, profile=self.profile or None
                )
            else:
                writer(pruned, self.path)


def _profile(text: str) -> tuple[str, list[tuple[int, ...]]]:
    """``NAME=1x3x64x64:8x3x64x64:32x3x64x64``: an input and its three shapes."""
    name, _, shapes = text.rpartition("=")
    parts = [part.split("x") for part in shapes.split(":")]
    if not name or len(parts) != 3 or not all(n.isdecimal() for part in parts for n in part):
        raise IrpruneError(
            f"--profile {text!r} is no input with three shapes",
            "",
            "least, usual and most: x=1x3x224x224:8x3x224x224:32x3x224x224",
        )
    return name, [tuple(map(int, part)) for part in parts]


def _onnx(pruned: Any, path: Path, cache: bool = False) -> None:
    try:
        pruned.onnx(path, cache=cache)
    except CheckFailed:
        path.unlink(missing_ok=True)
        raise


def _program(pruned: Any, path: Path) -> None:
    pruned.program(path)


def _gguf(pruned: Any, path: Path) -> None:
    pruned.gguf(path)


def _plan(pruned: Any, path: Path) -> None:
    pruned.plan.save(path)


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    ".onnx": _onnx,
    ".pt2": _program,
    ".gguf": _gguf,
    ".json": _plan,
}
