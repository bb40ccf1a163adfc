"""Loops over what a mask hits, ``for i in mask.nonzero(): ...``, as mixtures of experts have them.

Which elements are hit depends on values, and a cut changes them. Where what forward does for an
element that is not hit changes nothing, as an expert without tokens adds nothing, a loop over all
elements computes the same for all values. That it does is not assumed: forward and the graph are
run on calls in which such loops leave elements out, and must agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from irprune.base.tolerance import CAPTURE
from irprune.errors import OtherOutcome
from irprune.frontend.torch.restore_state import attributes_kept, evaluating
from irprune.frontend.torch.source import torch_source
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.size import Sym
from irprune.ir.size import evaluate as size_at
from irprune.ops.registry import lookup
from irprune.run.error import relative_error
from irprune.run.inputs import draw, flat_tensors, index_limits
from irprune.run.interpret import evaluate

__all__ = ["HitLoops"]

_DRAWS = 8
_SIZE = 3  # what stands for the size of what an element without hits leads to


@dataclass
class HitLoops:
    """The loops of one forward that are captured over all elements.

    Args:
        waived: Lines of forward whose assertions on sizes need not hold.
    """

    waived: set[str] = field(default_factory=set)
    loops: dict[str, list[tuple[Value, int]]] = field(default_factory=dict)

    def elements(self, over: Value, line: str) -> int | None:
        """How many elements there are to loop over in all, where ``over`` is the positions of what
        a vector hits, in order; else None."""
        size = over.shape[0] if over.rank else None
        if not isinstance(size, Sym) or any(s != 1 for s in over.shape[1:]):
            return None
        node = over.producer
        while node is not None and _keeps_order(node):
            node = node.operand(0).producer
        if node is None or not _gives_positions(node) or node.out.shape[0] != size:
            return None
        mask = node.operand(0)
        if not isinstance(mask.shape[0], int):
            return None
        self.loops.setdefault(line, []).append((node.out, mask.shape[0]))
        return mask.shape[0]

    @staticmethod
    def size(real: int) -> int:
        """The size that stands for one that is ``real`` in the example: an element that is not hit
        is captured as the others are."""
        return real or _SIZE

    def settled(self, graph: Graph, model: nn.Module) -> set[str] | None:
        """The lines whose assertions need not hold, where ``graph`` computes what ``model`` does.

        Returns:
            Lines of assertions that failed where both agree; None where they do not agree, or where
            some loop left nothing out in all the calls that were tried.
        """
        waived, left_out = set[str](), set[str]()
        for call in _calls(graph):
            expected = _forward(model, call)
            if expected is None:
                continue
            try:
                found, hits, failed = self._found(graph, call)
            except (RuntimeError, IndexError, ValueError):  # what torch raises for sizes
                return None
            if not relative_error(found, expected) <= CAPTURE:
                return None
            waived |= failed
            left_out |= hits
        return waived if left_out >= self.loops.keys() else None

    def _found(
        self, graph: Graph, call: tuple[Any, Any]
    ) -> tuple[list[torch.Tensor], set[str], set[str]]:
        """Outputs of the graph, the lines of loops that left elements out, and the lines of
        assertions that failed."""
        failed: set[str] = set()

        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            try:
                return run(*operands)
            except OtherOutcome:
                failed.add(str(node.attrs["where"]))
                return torch.ones((), dtype=torch.bool)

        source = torch_source(graph)
        known = [(line, v, n) for line, held in self.loops.items() for v, n in held]
        wanted = [*graph.outputs, *(v for _, v, _ in known)]
        torch.manual_seed(0)
        made = evaluate(graph, source.tensors(*call), wanted=wanted, hook=hook)
        outputs, hits = made[: len(graph.outputs)], made[len(graph.outputs) :]
        out = {line for (line, _, n), rows in zip(known, hits, strict=True) if len(rows) < n}
        return source.results(outputs), out, failed


def _keeps_order(node: Node) -> bool:
    entry = lookup(node)
    return entry is not None and entry.is_view and node.operand(0) is not None


def _gives_positions(node: Node) -> bool:
    """Whether ``node`` gives the positions of what a vector hits, one in each row."""
    entry = lookup(node)
    counts = entry is not None and entry.counts and bool(node.inputs)
    return counts and node.operand(0).rank == 1 and node.outputs[0].rank == 2


def _calls(graph: Graph) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The example's call, and others of its sizes with other numbers; in every other one all
    elements of a sample are alike, so that few things are hit."""
    source = torch_source(graph)
    yield source.args, source.kwargs
    limits = index_limits(graph)
    leaves, spec = pytree.tree_flatten((source.args, source.kwargs))
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        made = []
        for leaf, place in zip(leaves, source.inputs, strict=True):
            if isinstance(leaf, torch.Tensor) and isinstance(place, int):
                limit = limits.get(graph.inputs[place])
                below = None if limit is None else size_at(limit, graph.sizes)
                leaf = _drawn(leaf, below, generator, alike=seed % 2 == 0)
            made.append(leaf)
        args, kwargs = pytree.tree_unflatten(made, spec)
        yield args, kwargs


def _drawn(
    example: torch.Tensor, below: int | None, generator: torch.Generator, alike: bool
) -> torch.Tensor:
    if example.is_floating_point():
        made = draw(example, generator)
        for d in range(example.dim() - 1) if alike else ():
            made = made.narrow(d, 0, 1).expand_as(made)
        return made.clone()
    if below is None or example.dtype == torch.bool:
        return example
    shape: Sequence[int] = () if alike else example.shape
    made = torch.randint(0, max(1, below), tuple(shape), generator=generator)
    return made.expand(example.shape).to(example).clone()


def _forward(model: nn.Module, call: tuple[Any, Any]) -> list[torch.Tensor] | None:
    """What forward gives, with the model as it was afterwards; None where it fails."""
    held = {name: b.clone() for name, b in model.named_buffers()}
    with torch.random.fork_rng(), evaluating(model), attributes_kept(model):
        torch.manual_seed(0)
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, call)
        try:
            return flat_tensors(torch.func.functional_call(model, held, args, kwargs))
        except Exception:  # whatever forward raises: these are no inputs of it
            return None
