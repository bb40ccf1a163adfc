"""How graphs that were captured from torch leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from irprune.emit.gguf.model import GgufModel, gguf_model
from irprune.emit.torch.hugging_face import save_pretrained, update_config
from irprune.emit.torch.instance import apply_to
from irprune.emit.torch.module import emit_module
from irprune.emit.torch.pretrained_folder import write_pretrained
from irprune.emit.torch.saved import Unreadable, save_program
from irprune.errors import IrpruneError
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.frontend.torch.source import TorchSource, torch_source
from irprune.ir.graph import Graph
from irprune.run.stored_tensor import is_stored

__all__ = ["TorchBackend"]


class TorchBackend:
    """The module is emitted source; the ONNX file is exported from it."""

    exports = True

    def stores(self, graph: Graph) -> bool:
        """Whether the captured module reads its weights when they are used."""
        module = torch_source(graph).module
        return module is not None and is_stored(module)

    def module(self, cut: Graph, stored: bool = False) -> nn.Module:
        """The emitted module, called as the captured model is."""
        return emit_module(cut, stored)

    def write_onnx(self, cut: Graph, module: nn.Module | None, path: Path) -> Path:
        """``module``, or the one emitted from ``cut``, exported by torch."""
        from irprune.emit.bridge.torch_onnx import export_onnx  # takes onnx, which few runs need

        made = emit_module(cut) if module is None else module
        source = torch_source(cut)
        if not all(isinstance(place, int) for place in source.outputs):
            made, source = _tensors_alone(cut, made)
        return export_onnx(made, source, path, graph=cut)

    def save(self, graph: Graph, cut: Graph, module: nn.Module, folder: Path) -> list[str]:
        """``model.pt2``, and ``huggingface/`` for a model of transformers."""
        source = torch_source(graph)
        notes = []
        try:
            save_program(module, source, folder / "model.pt2", cut)
        except Unreadable as refused:
            notes.append(f"no model.pt2: {refused.what}")
        if not is_pretrained(source.module):
            return notes
        why = save_pretrained(graph, cut, module, folder / "huggingface")
        return [
            *notes,
            f"no huggingface/: {why}"
            if why
            else "huggingface/ loads with from_pretrained of the same class",
        ]

    def save_pretrained(
        self, graph: Graph, cut: Graph, module: nn.Module, folder: Path, repaired: bool, own: bool
    ) -> list[str]:
        """The folder that ``from_pretrained`` loads."""
        if not is_pretrained(torch_source(graph).module):
            raise IrpruneError(
                "format='hf' is for models of transformers",
                graph.name,
                "save the folder of irprune: leave the format out",
            )
        return write_pretrained(graph, cut, module, folder, repaired=repaired, per_layer=own)

    def gguf_model(
        self, graph: Graph, cut: Graph, module: nn.Module, repaired: bool
    ) -> tuple[GgufModel, Path | None]:
        """Read off the model's config and the tensors that are left."""
        model: Any = torch_source(graph).module
        if not is_pretrained(model):
            raise IrpruneError(
                "a GGUF file is of models of transformers",
                graph.name,
                "save the folder of irprune: -o small/",
            )
        origin = Path(str(model.name_or_path)) if model.name_or_path else None
        folder = origin if origin is not None and origin.is_dir() else None
        return gguf_model(graph, cut, module, repaired), folder

    def apply_to(
        self, model: Any, graph: Graph, cut: Graph, repaired: bool, notes: list[str]
    ) -> None:
        """The same cut in the instance ``model``."""
        if not isinstance(model, nn.Module):
            raise IrpruneError(
                "there is no instance to cut",
                type(model).__name__,
                "apply_to takes the nn.Module that was pruned; pruned.module gives a new one",
            )
        apply_to(model, graph, cut, repaired, notes)
        if is_pretrained(model) and (why := update_config(model, graph, cut, emit_module(cut))):
            notes.append(
                f"the config of the instance is that of the original: {why}; what its "
                "save_pretrained writes does not load: use the folder that pruned.save writes"
            )


def _tensors_alone(cut: Graph, module: nn.Module) -> tuple[nn.Module, TorchSource]:
    """``module`` without the results that are no tensors, which a file has no place for, and how it
    is called."""
    from irprune.emit.bridge.torch_onnx import output_names

    source = torch_source(cut)
    spec = pytree.tree_structure(dict.fromkeys(output_names(source), 0))
    places: list[int | tuple[Any]] = [p for p in source.outputs if isinstance(p, int)]
    twin = cut.copy()
    twin.source = replace(source, out_spec=spec, outputs=places)
    made = emit_module(twin)
    made.load_state_dict(module.state_dict())
    return made, twin.source
