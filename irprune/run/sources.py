"""What calibration data are read from: anything that can be iterated, one tensor of many samples,
or a folder whose files are read when they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.size import Sym
from irprune.run.images import Folder, Preprocess
from irprune.run.pixels import plain_pixels
from irprune.run.texts import has_texts, items_of

__all__ = ["File", "opened"]


def opened(source: Any, graph: Graph) -> Callable[[], Iterator[Any]]:
    """A function that starts reading ``source`` from its beginning."""
    if callable(source) and not isinstance(source, Iterable):
        return source  # type: ignore[no-any-return]
    if isinstance(source, Folder):
        return _folder(source, graph)
    if isinstance(source, (torch.Tensor, np.ndarray)):
        return lambda: iter([source])
    if isinstance(source, Mapping):
        return lambda: iter([source])
    if not isinstance(source, Iterable):
        raise IrpruneError(
            f"calibration is a {type(source).__name__}",
            "",
            "give an iterable of inputs, a tensor, or a folder of .npy, .npz or image files",
        )
    if iter(source) is source:  # can be read once
        kept = list(source)
        return lambda: iter(kept)
    return lambda: iter(source)


@dataclass(frozen=True)
class File:
    """An item that is read when it is wanted."""

    path: Path
    folder: Folder
    graph: Graph

    def read(self) -> Any:
        """Its arrays, or its pixels as the model takes them."""
        suffix = self.path.suffix.lower()
        try:
            if suffix == ".npy":
                return np.load(self.path, allow_pickle=False)
            if suffix == ".npz":
                with np.load(self.path, allow_pickle=False) as held:
                    return {k: held[k] for k in held.files}
            size, last = _picture_size(self.graph, str(self.path))
            how = _preprocess(self.folder, self.graph, self.path)
            made = self.folder.picture(self.path, how, size)
            return made.transpose(0, 2, 3, 1) if last else made
        except (ValueError, OSError, EOFError) as error:
            raise IrpruneError(
                f"cannot be read: {error}",
                str(self.path),
                "save arrays with numpy.save or numpy.savez",
            ) from error


def _folder(folder: Folder, graph: Graph) -> Callable[[], Iterator[Any]]:
    """The files of a folder, one by one; texts as rows of token numbers."""
    if has_texts(folder.path):
        if id(graph) not in folder.tokens:
            folder.tokens[id(graph)] = items_of(folder.path, graph)
        items = folder.tokens[id(graph)]
        return lambda: iter(items)
    return lambda: iter([File(file, folder, graph) for file in folder.files])


def _preprocess(folder: Folder, graph: Graph, file: Path) -> Preprocess:
    """What was said, else what the model's own first layers make plain. Raises IrpruneError where
    neither tells."""
    if folder.preprocess is not None:
        return folder.preprocess
    pixels = plain_pixels(graph)
    if pixels is None:
        raise IrpruneError(
            "images, and nothing says how this model takes them",
            str(file),
            "say preprocess= (--preprocess imagenet, timm:NAME, hf:FOLDER, file.py:function) or "
            "mean=, std=, pixels= (--mean, --std, --pixels 0..1)",
        )
    folder.preprocess = Preprocess(pixels=pixels)
    return folder.preprocess


def _picture_size(graph: Graph, where: str) -> tuple[tuple[int, int, int], bool]:
    """Channels, height and width of the only input, and whether channels come last there. Raises
    IrpruneError for a model that takes no pictures."""
    value = graph.inputs[0]
    sizes = [_known_size(graph, d) for d in range(value.rank)]
    if len(graph.inputs) != 1 or value.rank != 4:
        raise IrpruneError(
            "images fit a model with one input [batch, channels, height, width]",
            where,
            "save the inputs as .npz",
        )
    last = sizes[1] not in (1, 3, 4) and sizes[3] in (1, 3, 4)
    _, channels, height, width = [sizes[d] for d in ((0, 3, 1, 2) if last else (0, 1, 2, 3))]
    if channels is None or height is None or width is None:
        raise IrpruneError(
            f"the size of images for {value.name!r} is open", where, "say --input 1x3x224x224"
        )
    return (channels, height, width), last


def _known_size(graph: Graph, d: int) -> int | None:
    """Dimension ``d`` of the first input: its own, the example's, or what the user gave."""
    size = graph.inputs[0].shape[d]
    if not isinstance(size, Sym):
        return int(size)
    if size.name in graph.sizes:
        return graph.sizes[size.name]
    shapes = graph.source.example_shapes() if graph.source is not None else None
    return None if shapes is None else shapes[0][d]
