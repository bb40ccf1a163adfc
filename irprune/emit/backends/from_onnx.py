"""How graphs that were read from an ONNX file leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from irprune.emit.bridge.onnx_module import module_from_onnx, with_trained_weights
from irprune.emit.onnx.emitter import write_onnx
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph

if TYPE_CHECKING:
    from torch import nn

    from irprune.emit.gguf.model import GgufModel

__all__ = ["OnnxBackend"]


class OnnxBackend:
    """The file that came in is edited; a module is made of the operators' torch forms."""

    exports = False

    def stores(self, graph: Graph) -> bool:
        """False: a file is judged and written without a module."""
        return False

    def module(self, cut: Graph, stored: bool = False) -> nn.Module:
        """A module called with the file's inputs in their order."""
        return module_from_onnx(cut).eval()

    def write_onnx(self, cut: Graph, module: nn.Module | None, path: Path) -> Path:
        """The file that came in, cut, with what ``module`` holds where that was trained."""
        if module is None:
            return write_onnx(cut, path)
        return write_onnx(with_trained_weights(cut, module), path)

    def save(self, graph: Graph, cut: Graph, module: nn.Module, folder: Path) -> list[str]:
        """Nothing: a file gives no example call to export a program with."""
        return []

    def save_pretrained(
        self, graph: Graph, cut: Graph, module: nn.Module, folder: Path, repaired: bool, own: bool
    ) -> list[str]:
        """Raises IrpruneError: a file has no config."""
        raise IrpruneError(
            "format='hf' is for models of transformers", graph.name, "write a file: -o small.onnx"
        )

    def gguf_model(
        self, graph: Graph, cut: Graph, module: nn.Module, repaired: bool
    ) -> tuple[GgufModel, Path | None]:
        """Raises IrpruneError: a file has no config."""
        raise IrpruneError(
            "a GGUF file is of models of transformers", graph.name, "write a file: -o small.onnx"
        )

    def apply_to(
        self, model: Any, graph: Graph, cut: Graph, repaired: bool, notes: list[str]
    ) -> None:
        """Raises IrpruneError: a file has no instance."""
        raise IrpruneError(
            "there is no instance to cut",
            graph.name,
            "apply_to takes the nn.Module that was pruned; pruned.module gives a new one",
        )
