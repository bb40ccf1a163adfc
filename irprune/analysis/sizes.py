"""What sizes that are known only at run time are taken for: those of the example call, those that
the user gave, or plausible ones at which every shape of the graph makes sense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod

from irprune.ir.axis import find
from irprune.ir.dtype import is_integer
from irprune.ir.graph import Graph, Value, Weight
from irprune.ir.size import Sym, UnboundSymbol, evaluate
from irprune.ir.symbols import names_in

__all__ = ["candidates", "example_symbols", "fits", "input_shapes", "shown_sizes"]

_IMAGE, _LENGTH = 224, 128  # sides of images, steps of everything else
_LARGEST = 1 << 22  # elements of all inputs together, of sizes that are tried
_TRIED = (64, 256, 512, 32, 1024, 16, 4096, 16384, 8, 4, 2, 1)


def example_symbols(graph: Graph) -> dict[str, int]:
    """The value of each symbol in the inputs' shapes: the example call's; without one those in
    ``graph.sizes``, and the first plausible ones (``candidates``) for the others."""
    shapes = graph.source.example_shapes() if graph.source is not None else None
    if shapes is None:
        return next(candidates(graph))
    if graph.sizes:
        return graph.sizes
    out: dict[str, int] = {}
    for value, shape in zip(graph.inputs, shapes or (), strict=bool(shapes)):
        for s, n in zip(value.type.shape or (), shape, strict=False):
            if isinstance(s, Sym) and s.name:
                out.setdefault(s.name, n)
    return out


def candidates(graph: Graph, batch: int = 1) -> Iterator[dict[str, int]]:
    """Sizes of all symbols in the inputs' shapes under which the graph's shapes fit, likely ones
    first: those in ``graph.sizes`` hold in each; a symbol that is only ever the first dimension is
    a ``batch``. Where none fits, one that has what is known and 1 for the rest."""
    given = dict(graph.sizes)
    first: dict[str, int] = {}
    batches: dict[str, bool] = {}
    for value in graph.inputs:
        for d, size in enumerate(value.type.shape or ()):
            for name in names_in(size):
                batches[name] = batches.get(name, True) and d == 0 and value.rank > 1
                image = value.rank > 3 and not is_integer(value.dtype)
                first.setdefault(name, _IMAGE if image and d > 1 else _LENGTH)
    found = False
    seen: list[dict[str, int]] = []
    states = _batches_of_states(graph) if any(batches.values()) else set()
    for common, apart in product((0, *_TRIED), (set(), states)):
        made = {
            name: given.get(name, batch if batches[name] or name in apart else common or n)
            for name, n in first.items()
        }
        large = common and sum(prod(shape) for _, shape in input_shapes(graph, made)) > _LARGEST
        if made not in seen and not large and fits(graph, made):
            found = True
            yield made
        seen.append(made)
    if not found:
        yield {name: given.get(name, 1) for name in first}


def _batches_of_states(graph: Graph) -> set[str]:
    """Symbols that may be the batch of a recurrent state, layers by batch by width."""
    return {
        name
        for v in graph.inputs
        if v.type.shape is not None and v.rank == 3
        for name in names_in(v.shape[1])
        if not any(names_in([v.shape[0], v.shape[2]]))
    }


def fits(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether, with these ``sizes`` of symbols, every size in the graph is at least 1 and the
    dimensions that rules made one axis are equally long."""
    along: dict[int, int] = {}
    for value in graph.values():
        if value.type.shape is None or isinstance(value, Weight):
            continue
        for d, size in enumerate(value.type.shape):
            if not isinstance(size, Sym):
                continue
            try:
                n = evaluate(size, sizes)
            except UnboundSymbol:  # depends on values: nothing is known before it runs
                continue
            except ZeroDivisionError:
                return False
            if n < 1:
                return False
            if value.axes is not None and along.setdefault(find(value.axes[d]).id, n) != n:
                return False
    return True


def input_shapes(graph: Graph, sizes: Mapping[str, int]) -> list[tuple[Value, tuple[int, ...]]]:
    """The inputs with their shapes under ``sizes``; symbols that it lacks count as 1."""
    return [
        (v, tuple(evaluate(s, sizes, default=1) for s in v.type.shape or ())) for v in graph.inputs
    ]


def shown_sizes(graph: Graph, sizes: Mapping[str, int] | None = None) -> str:
    """The shapes of the inputs that have symbols, as ``--input`` takes them: "x: 1x3x48x320"; ""
    where there are none, or the user's own example call says them. ``sizes`` are those of
    ``example_symbols`` where they are not given."""
    if graph.source is not None and graph.source.example_shapes() is not None:
        return ""
    open_ = [v for v in graph.inputs if any(isinstance(s, Sym) for s in v.type.shape or ())]
    if not open_:
        return ""
    known = example_symbols(graph) if sizes is None else sizes
    return ", ".join(
        f"{v.name}: {'x'.join(map(str, shape))}"
        for v, shape in input_shapes(graph, known)
        if v in open_
    )
