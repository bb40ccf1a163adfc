"""Choices that the config of a transformers model can say: one width for each kind of layer, and
where its class refuses the sizes that came out, others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from irprune.choice.uniform import kinds_of_groups
from irprune.errors import IrpruneError
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.passes.choose import Choose

__all__ = ["choose_uniform"]


def choose_uniform(graph: Graph, choose: Choose, run: Callable[[Choose], object]) -> None:
    """Set ``graph.kept`` by ``run`` of ``choose`` with equal counts for groups that repeat.

    Of a transformers model it is then asked whether a config can say the sizes, so that a model of
    it computes the same. If not, groups of one size in its parts get one count, then all groups of
    one size; then the kind with most places, mostly the width of the residual stream, is kept
    whole; then the others, one kind after the other, those with most places first. The last refusal
    is a note of the graph."""
    refused = _refusal(graph)
    first, *others = _trials(graph, choose)
    run(first)
    why = refused()
    if not why:
        return
    for trial in others:
        try:
            run(trial)
        except IrpruneError:  # the budget cannot be met with so much kept
            continue
        if not refused():
            graph.notes.append(f"uniform: chosen anew, because {why}")
            return
    run(first)
    graph.notes.append(f"uniform: no config says any choice: {why}")


def _trials(graph: Graph, choose: Choose) -> list[Choose]:
    """The choices to try, in order."""
    trials = [replace(choose, uniform=by) for by in ("names", "sizes", "equal")]
    kinds = sorted(_kinds(graph), key=lambda some: -_places(some))
    names = [tuple(_name(g) for g in kind) for kind in kinds]
    keeping = [*names, *(sum(names[:n], ()) for n in range(2, len(names)))]
    return trials + [
        replace(choose, uniform=by, keep=(*choose.keep, *some))
        for by in ("sizes", "equal")
        for some in keeping
    ]


def _kinds(graph: Graph) -> list[list[Group]]:
    """The kinds of free groups; those that stand in one dimension (heads and what each is wide)
    together, since the one carries the ratio where the other is kept."""
    free = [g for g in groups_of(graph) if not g.frozen]
    out: list[list[Group]] = []
    for kind in kinds_of_groups(free, "sizes"):
        joined = [some for some in out if _dims(some) & _dims(kind)]
        out = [some for some in out if some not in joined]
        out.append([*(g for some in joined for g in some), *kind])
    return out


def _dims(some: list[Group]) -> set[tuple[str, int]]:
    return {(m.weight.name, m.dim) for g in some for m in g.members}


def _places(some: list[Group]) -> int:
    return max(len(g.members) for g in some)


def _name(group: Group) -> str:
    """The pattern that stands for one group alone."""
    return str(group.members[0]).replace("[", "[[]")


def _refusal(graph: Graph) -> Callable[[], str]:
    """What says why no config says the choice of ``graph``; "" of models that have none."""
    if graph.source is None or graph.source.dialect != "torch":
        return lambda: ""
    from irprune.frontend.torch.source import torch_source

    if not is_pretrained(torch_source(graph).module):
        return lambda: ""
    from irprune.emit.torch.hugging_face import config_refuses

    return lambda: config_refuses(graph)
