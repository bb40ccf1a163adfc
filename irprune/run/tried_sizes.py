"""Sizes other than the example's to prove at, where sizes are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from irprune.ir.graph import Graph
from irprune.ir.size import evaluate, symbols

__all__ = ["guards_hold", "open_symbols", "tried_sizes"]

_LARGE = 16  # from here on another size is tried below the example's first: it costs less
_GRID = 32  # what images are often to be a multiple of


def open_symbols(graph: Graph) -> dict[str, bool]:
    """The symbols in the inputs' shapes, and whether each is a batch: the first dimension alone."""
    out: dict[str, bool] = {}
    for value in graph.inputs:
        for d, size in enumerate(value.type.shape or ()):
            for name in symbols(size):
                out[name] = out.get(name, True) and d == 0
    return out


def guards_hold(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether the guards of ``graph`` hold, and every size is positive."""
    shapes = [[evaluate(s, sizes) for s in v.type.shape or ()] for v in graph.inputs]
    own = {name: shapes[i][d] for name, (i, d) in graph.places.items()}
    positive = all(n > 0 for shape in shapes for n in shape)
    return positive and all(g.holds({**sizes, **own}) for g in graph.guards)


def tried_sizes(
    graph: Graph,
    example: Mapping[str, int],
    fits: Callable[[Graph, Mapping[str, int]], bool] = guards_hold,
    limit: int = 14,
) -> Iterator[dict[str, int]]:
    """Sizes other than those of ``example`` to try, best first: another batch with other lengths
    and image sizes, then other lengths alone, then another batch alone. Those that do not ``fits``
    are left out; of other lengths there are at most ``limit``."""
    kinds = open_symbols(graph)
    known = {name: example[name] for name in kinds}
    seen = [known]
    for k in range(7):
        for some in (1, 0):  # another batch too; the batch as it is
            tried = {
                name: (n + 1 if some else n) if kinds[name] else _others(n)[k]
                for name, n in known.items()
            }
            if tried not in seen and len(seen) <= limit and fits(graph, tried):
                seen.append(tried)
                yield tried
    for more in (1, -1):
        alone = {name: n + more if kinds[name] else n for name, n in known.items()}
        if alone not in seen and min(alone.values()) > 0 and fits(graph, alone):
            seen.append(alone)
            yield alone


def _others(size: int) -> tuple[int, ...]:
    if size >= 4 * _LARGE:
        grid = size // _GRID * _GRID
        other = grid - _GRID if grid > _GRID else grid + _GRID
        return size // 4, size // 2, other, 2 * size, grid + _GRID, size - 1, size + 1
    if size >= _LARGE:
        return size // 2, 2 * size, size - 1, size + 1, size + size // 2, 3 * size, size + 2
    return size + 1, 2 * size, max(size - 1, 1), size + 2, 3 * size, 4 * size, 5 * size
