"""The oracle: the original graph, uncut, with dropped channels silenced where they are consumed.

It shares nothing with slicing: the graph runs at its full widths, and what a contraction, a norm, a
softmax or a mean would read of dropped indices is taken out just before. If the cut was right, the
cut model computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from irprune.ir.axis import Axis, find
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.selection import Selection
from irprune.ops.registry import lookup
from irprune.run.interpret import evaluate, symbols_of

__all__ = ["Presence", "silenced", "silencer"]


class Presence:
    """Masks of what is kept, for dimensions of values."""

    def __init__(
        self, kept: Selection, device: torch.device, sizes: Mapping[str, int] | None = None
    ) -> None:
        self.kept, self.device, self.sizes = kept, device, sizes or {}
        self._masks: dict[Axis, torch.Tensor] = {}

    def __call__(self, value: Value, dims: Sequence[int]) -> torch.Tensor | None:
        """True where every index along ``dims`` is kept; shaped to broadcast against ``value``;
        None where nothing is dropped."""
        axes = value.axes or ()
        out: torch.Tensor | None = None
        for d in dims:
            if not self.kept.changes(axes[d]):
                continue
            mask = self._along(axes, d)
            out = mask if out is None else out & mask
        return out

    def _along(self, axes: Sequence[Axis], d: int) -> torch.Tensor:
        a = find(axes[d])
        table = self.kept.table(a, self.sizes)
        if table.outer:  # chosen per block: the mask varies along other dimensions of this value
            return torch.from_numpy(self.kept.present(axes, d, self.sizes)).to(self.device)
        if a not in self._masks:
            self._masks[a] = torch.from_numpy(table.mask).to(self.device)
        return self._masks[a].reshape([-1 if k == d else 1 for k in range(len(axes))])


def silencer(
    kept: Selection, device: torch.device, sizes: Mapping[str, int] | None = None
) -> Callable[[Node, list[Any], Callable[..., Any]], Any]:
    """The hook that runs each node on what is present; ``sizes`` are the values of symbols."""
    present = Presence(kept, device, sizes)

    def hook(node: Node, operands: list[Any], run: Callable[..., Any]) -> Any:
        stays = kept.dropped.get(node.outputs[0].name) if node.outputs else None
        if stays is not None:  # the branch is silenced: the sum is still made
            operands = list(operands)
            operands[1 - stays] = torch.zeros_like(operands[1 - stays])
        entry = lookup(node)
        if entry is None:
            return run(*operands)
        if entry.silence is not None:
            return entry.silence(torch, node, operands, present, run)
        if entry.signature is not None:
            operands = list(operands)
            for i, dims in entry.signature.contracted(node).items():
                mask = present(node.operand(i), [d for d, _ in dims])
                if mask is not None:
                    operands[i] = torch.where(
                        mask,
                        operands[i],
                        torch.zeros((), dtype=operands[i].dtype, device=operands[i].device),
                    )
        return run(*operands)

    return hook


def silenced(
    graph: Graph, kept: Selection, inputs: Iterable[torch.Tensor], dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """The outputs of the analysed ``graph`` with everything that ``kept`` drops silenced."""
    tensors = list(inputs)
    device = tensors[0].device if tensors else torch.device("cpu")
    return evaluate(
        graph,
        tensors,
        dtype=dtype,
        hook=silencer(kept, device, symbols_of(graph, tensors)),
        device=device,
    )
