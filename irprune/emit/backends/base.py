"""How graphs leave, by the kind of model that they came from: as a module, as an ONNX file, as the
other files of a folder.

``backend_of`` is the one place where emitting asks what a graph came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph

if TYPE_CHECKING:
    from torch import nn

    from irprune.emit.gguf.model import GgufModel

__all__ = ["Backend", "backend_of"]


class Backend(Protocol):
    """The ways out for graphs of one kind of source."""

    exports: bool
    """Whether an ONNX file is exported from the module, so that the two are to be compared; else
    the file that came in is edited."""

    def stores(self, graph: Graph) -> bool:
        """Whether weights of ``graph`` are read when they are used."""

    def module(self, cut: Graph, stored: bool = False) -> nn.Module:
        """A module, in eval mode, that computes ``cut``; where it is ``stored``, one that reads its
        weights when they are used."""

    def write_onnx(self, cut: Graph, module: nn.Module | None, path: Path) -> Path:
        """Write ``cut`` as an ONNX file and return its path; with the weights that ``module``, made
        of it, holds now, where one is given."""

    def save(self, graph: Graph, cut: Graph, module: nn.Module, folder: Path) -> list[str]:
        """Write into ``folder`` what only this kind of model has, and return what the user is to be
        told. ``graph`` is the original with its choice."""

    def save_pretrained(
        self, graph: Graph, cut: Graph, module: nn.Module, folder: Path, repaired: bool, own: bool
    ) -> list[str]:
        """Write into ``folder`` what ``from_pretrained`` of transformers loads, and return what the
        user is to be told; ``own`` asks for a model file with sizes by layer. Raises IrpruneError
        for other models."""

    def gguf_model(
        self, graph: Graph, cut: Graph, module: nn.Module, repaired: bool
    ) -> tuple[GgufModel, Path | None]:
        """What a GGUF file of ``cut`` holds, and the folder of its tokenizer. Raises IrpruneError
        for models that no such file holds."""

    def apply_to(
        self, model: Any, graph: Graph, cut: Graph, repaired: bool, notes: list[str]
    ) -> None:
        """The same cut in the user's own ``model``. Raises IrpruneError where that cannot be."""


def backend_of(graph: Graph) -> Backend:
    """The backend for the source of ``graph``. Raises IrpruneError for a graph without one."""
    dialect = graph.source.dialect if graph.source is not None else ""
    if dialect == "torch":
        from irprune.emit.backends.from_torch import TorchBackend

        return TorchBackend()
    if dialect == "onnx":
        from irprune.emit.backends.from_onnx import OnnxBackend

        return OnnxBackend()
    raise IrpruneError(
        "this graph came from no model",
        graph.name,
        "a graph that was read from its text form cannot be emitted",
    )
