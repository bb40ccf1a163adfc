"""Where a graph came from: what it keeps of the model that it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

__all__ = ["Source"]


class Source(Protocol):
    """What a graph keeps of its model, for whoever needs an example call or writes the model again.

    Each front end has its own (``TorchSource``, ``OnnxSource``); what a higher layer does
    differently for each goes by ``dialect``, in one table of that layer."""

    dialect: ClassVar[str]
    """``torch`` or ``onnx``."""

    def example_shapes(self) -> list[tuple[int, ...]] | None:
        """The shapes of the tensors of the example call, in the order of the graph's inputs; None
        where there was no such call."""

    def folder(self) -> str:
        """The folder that the model was read from, where a tokenizer may lie beside it; "" where
        that is not known."""

    def bind_args(self, args: tuple[Any, ...]) -> tuple[list[Any], tuple[Any, ...]] | None:
        """The tensors of a call with these positional arguments, in the order of the graph's
        inputs, and the arguments that are left over; None where they are of another structure than
        the example call's."""

    def bind_names(
        self, given: Mapping[str, Any], where: str
    ) -> tuple[list[Any], Sequence[str]] | None:
        """The tensors of a call with these arguments by name, in the order of the graph's inputs,
        and the names that were used; None where the model knows no names beside those of the
        graph's inputs.

        Raises:
            IrpruneError: naming ``where``, for an argument that is missing.
        """
