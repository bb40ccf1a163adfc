"""How much of a cut an independent judge can look at."""

from __future__ import annotations

from irprune.ir.axis import Axis, find, leaves
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import groups_of
from irprune.ir.selection import Selection
from irprune.ops.registry import draws

__all__ = ["cut_apart", "judged_share", "not_judged", "without"]

_MOST = 0.5
_NAMED = 2  # widths, of those that are not judged


def cut_apart(graph: Graph, kept: Selection) -> set[Axis]:
    """The dropped axes of weights that are stored once, stand in the graph several times and are
    cut each in its own way: no zeros in the one array stand for what is absent."""
    stored: dict[int, list[Weight]] = {}
    for weight in graph.weights.values():
        stored.setdefault(id(weight.load), []).append(weight)
    out: set[Axis] = set()
    for same in stored.values():
        cuts = {
            tuple(
                kept.present(w.axes, d).tobytes() if kept.changes(a) else b""
                for d, a in enumerate(w.axes or ())
            )
            for w in same
            if w.axes
        }
        if len(cuts) > 1:
            dropped = (x for w in same for a in w.axes or () for x in leaves(a) if kept.changes(x))
            out |= {find(x) for x in dropped}
    return out


def without(graph: Graph, kept: Selection, axes: set[Axis]) -> Selection:
    """``kept`` without ``axes``, and without those that weights stored once are then cut apart in:
    two uses that are cut alike no longer are where one of them is whole again."""
    left = {a: k for a, k in kept.choice.items() if a not in axes}
    part = Selection(left, {a: h for a, h in kept.within.items() if a in left})
    apart = cut_apart(graph, part)
    return without(graph, part, apart) if apart else part


def judged_share(graph: Graph, kept: Selection, judged: Selection) -> float:
    """The share of the elements of cut weights whose cut ``judged`` makes whole."""
    cut = sound = 0
    for weight in graph.weights.values():
        axes = {x for a in weight.axes or () for x in leaves(a) if kept.changes(x)}
        size = 1
        for s in weight.type.shape or ():
            size *= s if isinstance(s, int) else 1
        cut += size * bool(axes)
        sound += size * (bool(axes) and all(judged.changes(x) for x in axes))
    return sound / cut if cut else 1.0


def not_judged(graph: Graph, kept: Selection, judged: Selection) -> list[str]:
    """What to say where ``judged`` leaves most of the cut weights out: which widths, and why; no
    line where it does not."""
    if judged_share(graph, kept, judged) >= _MOST:
        return []
    if any(map(draws, graph.nodes)):
        return ["the original itself judges nothing: it draws random numbers"]
    left = {find(x) for a in kept.choice if a not in judged.choice for x in leaves(a)}
    names = [g.name for g in groups_of(graph) if find(g.axis) in left]
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    why = (
        "zeros there are not absence, as where a mean, a norm, a softmax or the range of numbers "
        "that are quantised goes over its channels"
    )
    if left & cut_apart(graph, kept):
        why = "one stored array is cut in two ways, so that no zeros in it stand for both"
    said = f"not judged by the original itself is {', '.join(names[:_NAMED])}{more}: {why}"
    return [f"{said}; judged is what is cut beside it"]
