"""What a graph keeps of the torch model that it was captured from: how a call maps to its inputs
and outputs, the example call, and the model's state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from irprune.errors import IrpruneError
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.ir.graph import Graph

__all__ = ["Entry", "TorchSource", "find_torch_source", "torch_source"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the model's state: ``persistent`` is False for a buffer that the state dict
    leaves out."""

    tensor: torch.Tensor
    kind: str
    persistent: bool = True


@dataclass
class TorchSource:
    """How a call of the torch model maps to the graph: the pytrees of arguments and results and
    what stands in each leaf.

    ``inputs`` and ``outputs`` hold an index into the graph's inputs and outputs, or a constant leaf
    wrapped in a tuple; of ``outputs`` that may be an open size, or a number made of such.
    ``method`` is how it was captured, ``names`` are the argument names of the recorded call,
    ``signature`` that of the user's ``forward``, ``state`` every parameter and buffer of the model
    by name, used or not.
    """

    dialect: ClassVar[str] = "torch"

    in_spec: Any
    out_spec: Any
    inputs: list[int | tuple[Any]]
    outputs: list[int | tuple[Any]]
    module_types: dict[str, type] = field(default_factory=dict)
    module: torch.nn.Module | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    method: str = "auto"
    names: tuple[str, ...] = ()
    signature: inspect.Signature | None = None
    state: dict[str, Entry] = field(default_factory=dict)

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """What a call hands to the graph's inputs, in the graph's order. Raises ValueError for
        arguments of another structure than the example call's."""
        return self._placed(pytree.arg_tree_leaves(*args, **kwargs))

    def _placed(self, leaves: Sequence[Any]) -> list[Any]:
        placed = {p: x for p, x in zip(self.inputs, leaves, strict=True) if isinstance(p, int)}
        return [placed[p] for p in sorted(placed)]

    def results(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The graph's outputs in the order in which the call returns them."""
        return [outputs[p] for p in self.outputs if isinstance(p, int)]

    def example_shapes(self) -> list[tuple[int, ...]] | None:
        """The shapes of the example call's tensors, in the order of the graph's inputs."""
        leaves = pytree.arg_tree_leaves(*self.args, **self.kwargs)
        if len(leaves) != len(self.inputs):
            return None
        found = self._placed(leaves)
        return [tuple(x.shape) for x in found] if _all_tensors(found) else None

    def folder(self) -> str:
        """Where ``from_pretrained`` read the model; "" of other models."""
        if self.module is None or not is_pretrained(self.module):
            return ""
        return str(self.module.name_or_path or "")

    def bind_args(self, args: tuple[Any, ...]) -> tuple[list[Any], tuple[Any, ...]] | None:
        """The tensors of a call with these positional arguments, and the arguments behind them."""
        own = len(self.args)
        leaves = pytree.arg_tree_leaves(*args[:own]) if own else []
        return (self._placed(leaves), args[own:]) if len(leaves) == len(self.inputs) else None

    def bind_names(
        self, given: Mapping[str, Any], where: str
    ) -> tuple[list[Any], Sequence[str]] | None:
        """Keyword arguments put into the places of the recorded call, however that one passed
        them. Raises IrpruneError, naming ``where``, where a tensor is missing."""
        own = list(self.names if self.signature is None else self.signature.parameters)
        positional = own[: len(self.args)]
        wanted = [*positional, *self.kwargs]
        missing = [n for n in wanted if n not in given]
        recorded = {**dict(zip(positional, self.args, strict=False)), **self.kwargs}
        tensorial = [
            n
            for n in missing
            if any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(recorded.get(n)))
        ]
        takes = f"forward was captured with {', '.join(wanted)}"
        if tensorial:
            raise IrpruneError(
                f"no value for argument {tensorial[0]!r}; given: {', '.join(given)}", where, takes
            )
        filled = {n: given.get(n, recorded.get(n)) for n in wanted}
        leaves = pytree.arg_tree_leaves(
            *(filled[n] for n in positional), **{n: filled[n] for n in self.kwargs}
        )
        if len(leaves) != len(self.inputs):
            raise IrpruneError(
                "arguments of another structure than the captured call's", where, takes
            )
        return self._placed(leaves), wanted


def _all_tensors(items: Sequence[Any]) -> bool:
    return all(isinstance(x, torch.Tensor) for x in items)


def find_torch_source(graph: Graph) -> TorchSource | None:
    """The source of a graph that was captured from torch; None for any other."""
    return graph.source if isinstance(graph.source, TorchSource) else None


def torch_source(graph: Graph) -> TorchSource:
    """The source of a graph that was captured from torch. Raises IrpruneError for any other."""
    if not isinstance(graph.source, TorchSource):
        raise IrpruneError("this graph was not captured from torch", graph.name)
    return graph.source
