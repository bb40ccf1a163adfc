"""Which sizes of a call's inputs are left open, as the user says it, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from irprune.base.near import meant
from irprune.errors import IrpruneError, gist
from irprune.ir.graph import Graph, TensorType, Value
from irprune.ir.guards import Fixed
from irprune.ir.open_sizes import OpenSizes, Settled, rewrite
from irprune.ir.size import Size, Sym

__all__ = ["NOTHING_OPEN", "Dynamic", "WrongSizes", "replace_fixed"]


class WrongSizes(IrpruneError):
    """What the user says of sizes fits no input of the model."""


HELP = "write none, batch, all, or the dimensions of inputs: 'x:0,2'"


@dataclass(frozen=True)
class Dynamic:
    """Which sizes are open.

    Args:
        every: all of them, unless forward fixes them.
        first: the first of each input, the batch.
        of: dimensions by the name of the input; the others are then fixed.
    """

    every: bool = False
    first: bool = False
    of: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @staticmethod
    def read(text: str) -> Dynamic:
        """What ``none``, ``batch``, ``all`` or ``x:0,2`` says; several inputs are separated by
        spaces or semicolons. Raises WrongSizes for anything else."""
        if text in ("none", "batch", "all"):
            return Dynamic(text == "all", text == "batch")
        named = []
        for part in text.replace(";", " ").split():
            name, _, dims = part.partition(":")
            try:
                named.append((name, tuple(int(d) for d in dims.split(","))))
            except ValueError:
                named.clear()
                break
        if not named:
            raise WrongSizes(f"no sizes are named by dynamic={text!r}", "", HELP)
        return Dynamic(of=tuple(named))

    @property
    def is_none(self) -> bool:
        """Whether every size is fixed."""
        return not (self.every or self.first or self.of)

    def narrower(self) -> Iterator[Dynamic]:
        """This, then with the batch alone, then with no open size."""
        yield self
        if self.every:
            yield Dynamic(first=True)
        if not self.is_none:
            yield Dynamic()

    def open(self, value: Value, position: int, sizes: OpenSizes) -> None:
        """Give input ``value`` symbols for its sizes that are open."""
        shape = list(value.shape)
        for d in self._dims(value):
            size = shape[d]
            assert isinstance(size, int)
            if size > 0:
                shape[d] = sizes.of_input(f"{value.name}_{d}", position, d, size)
        value.type = TensorType(value.dtype, tuple(shape))

    def _dims(self, value: Value) -> list[int]:
        if self.every:
            return list(range(value.rank))
        if self.first:
            return [0][: value.rank]
        dims = dict(self.of).get(value.name, ())
        if any(not -value.rank <= d < value.rank for d in dims):
            raise WrongSizes(
                f"input '{value.name}' has {value.rank} dimensions, dynamic names {dims}", "", HELP
            )
        return sorted({d % value.rank for d in dims})

    def settle(
        self,
        graph: Graph,
        sizes: OpenSizes | None,
        failed: Exception | None,
        asserted: Callable[[Settled], None],
        results: list[int | tuple[Any]],
    ) -> list[int | tuple[Any]]:
        """Put what is known at the end into ``graph``: sizes that turned out to be fixed become
        numbers, guards and fixed sizes are recorded. ``asserted`` records what must hold of sizes
        that depend on values. Returns ``results``, what stands for each leaf of what forward
        returns, likewise."""
        unknown = dict(self.of).keys() - {v.name for v in graph.inputs}
        if unknown:
            raise WrongSizes(
                f"the model has no input {min(unknown)!r}",
                "",
                meant(
                    min(unknown),
                    [v.name for v in graph.inputs],
                    f"its inputs are {', '.join(v.name for v in graph.inputs)}",
                ),
            )
        settled = sizes.settle() if sizes is not None else Settled()
        asserted(settled)
        if sizes is not None and settled.replaced:
            replace_fixed(graph, settled, sizes)
            now = replacing(settled, sizes)
            results = [x if isinstance(x, int) else (now(x[0]),) for x in results]
        known = {(f.input, f.dim): f for f in settled.fixed}
        reason = f"forward fails on open sizes: {gist(failed)}" if failed is not None else ""
        for i, value in enumerate(graph.inputs):
            for d, size in enumerate(value.shape):
                if isinstance(size, int):
                    graph.fixed.append(known.get((i, d), Fixed(i, d, size, reason)))
        graph.guards, graph.places = settled.guards, settled.places
        if sizes is not None:
            graph.sizes = {
                n: s
                for n, s in sizes.example.items()
                if not isinstance(settled.replaced.get(n), int)
            }
        return results


NOTHING_OPEN = Dynamic()


def replace_fixed(graph: Graph, settled: Settled, sizes: OpenSizes) -> None:
    """Put into the types and attributes of ``graph`` what ``settled`` found out about sizes."""
    now = replacing(settled, sizes)
    for value in graph.values():
        if value.type.shape is not None and not value.type.static:
            shape: tuple[Size, ...] = now(value.type.shape)
            value.type = TensorType(value.dtype, shape)
    for node in graph.nodes:
        for key, x in node.attrs.items():
            node.attrs[key] = now(x)


def replacing(settled: Settled, sizes: OpenSizes) -> Callable[[Any], Any]:
    """What makes of sizes, in nested lists of anything, what ``settled`` found out about them."""
    memo: dict[Sym, Any] = {}

    def now(x: Any) -> Any:
        if isinstance(x, Sym):
            if x not in memo:
                made = rewrite(x, settled.replaced, sizes.of)
                memo[x] = int(made) if x.is_whole and not isinstance(made, Sym) else made
            return memo[x]
        if isinstance(x, (list, tuple)):
            return type(x)(now(v) for v in x)
        return x

    return now
