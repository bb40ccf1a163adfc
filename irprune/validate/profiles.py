"""Profiles of open sizes: the least, the usual and the most that an engine is built for, tried on
onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irprune.analysis.sizes import example_symbols, input_shapes
from irprune.base.near import meant
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.size import Sym
from irprune.run.inputs import random_inputs
from irprune.run.session import run_session, session
from irprune.run.tried_sizes import open_symbols
from irprune.validate.read_back import ReadBack, timed

__all__ = ["Profile", "given_profile", "profile_of", "run_profile"]

_BATCH = 8  # at most, where the example has fewer
_PLACES = ("min", "opt", "max")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Profile:
    """Values of the open sizes of a graph: at least, usually and at most. ``notes`` say what was
    tried in vain."""

    least: Mapping[str, int]
    usual: Mapping[str, int]
    most: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def shapes(self, graph: Graph, names: Sequence[str]) -> tuple[Shapes, Shapes, Shapes]:
        """The shapes of the inputs with open sizes, which the file calls ``names``."""
        low, usual, high = (_shapes(graph, names, s) for s in (self.least, self.usual, self.most))
        return low, usual, high


def profile_of(graph: Graph, file: Path) -> Profile:
    """A profile for ``file``, which was written of the analysed ``graph``: the example's sizes, a
    batch from 1 to 8 at least, other sizes from half to twice. What onnxruntime does not run is
    left at the example's."""
    kinds, usual = open_symbols(graph), example_symbols(graph)
    usual = {name: usual.get(name, 1) for name in kinds}
    notes: list[str] = []

    def tried(wanted: dict[str, int]) -> dict[str, int]:
        if _runs(graph, file, wanted):
            return wanted
        alone = {n: k if kinds[n] else usual[n] for n, k in wanted.items()}  # another batch alone
        kept = alone if _runs(graph, file, alone) else usual
        shown = " ".join(f"{n}={k}" for n, k in wanted.items() if kept[n] != k)
        notes.append(f"onnxruntime does not run the file at {shown}: the profile leaves it out")
        return kept

    least = tried({n: 1 if kinds[n] else max(1, k // 2) for n, k in usual.items()})
    most = tried({n: max(k, _BATCH) if kinds[n] else 2 * k for n, k in usual.items()})
    return Profile(least, usual, most, tuple(notes))


def given_profile(
    graph: Graph, names: Sequence[str], given: Mapping[str, Sequence[Sequence[int]]]
) -> Profile:
    """The profile that the user's shapes say, three for each input that has open sizes. Raises
    IrpruneError for shapes that the inputs do not have."""
    found: list[dict[str, int]] = [{}, {}, {}]
    values = dict(zip(names, graph.inputs, strict=True))
    for name, shapes in given.items():
        value = values.get(name)
        if value is None:
            hint = meant(name, names, f"there are {', '.join(names)}")
            raise IrpruneError(f"no input is called {name!r}", "profile", hint)
        if len(shapes) != len(_PLACES):
            raise IrpruneError(
                f"{len(shapes)} shapes of {name!r}", "profile", "three: least, usual, most"
            )
        for sizes, shape in zip(found, shapes, strict=True):
            own = value.shape
            plain = len(own) == len(shape) and all(
                s == n for s, n in zip(own, shape, strict=True) if not isinstance(s, Sym)
            )
            if not plain:
                raise IrpruneError(
                    f"{name!r} has no shape {'x'.join(map(str, shape))}",
                    "profile",
                    f"it is {'x'.join(map(str, own))}",
                )
            for s, n in zip(own, shape, strict=True):
                if isinstance(s, Sym) and s.name:
                    sizes[s.name] = int(n)
    usual = example_symbols(graph)
    low, middle, high = (
        {n: sizes.get(n, usual.get(n, 1)) for n in open_symbols(graph)} for sizes in found
    )
    if any(not low[n] <= middle[n] <= high[n] for n in low):
        raise IrpruneError("the sizes of a profile fall", "profile", "least, usual, most")
    return Profile(low, middle, high)


def run_profile(graph: Graph, file: Path, profile: Profile) -> ReadBack:
    """Whether onnxruntime runs ``file`` at all three, and gives numbers."""

    def compared() -> tuple[float, str]:
        for place, sizes in zip(_PLACES, (profile.least, profile.usual, profile.most), strict=True):
            try:
                results = _run(graph, file, sizes)
            except IrpruneError as refused:
                return 0.0, f"at {place} {refused.what}: {refused.hint}"
            if any(np.isnan(y).any() for y in results if y.dtype.kind == "f"):
                return 0.0, f"at {place} a result is NaN"
        return 0.0, ""

    return timed(file.name, "onnxruntime at min, opt and max", compared)


def _runs(graph: Graph, file: Path, sizes: Mapping[str, int]) -> bool:
    try:
        _run(graph, file, sizes)
    except IrpruneError:
        return False
    return True


def _run(graph: Graph, file: Path, sizes: Mapping[str, int]) -> list[np.ndarray]:
    running = session(str(file), "cpu")
    own = random_inputs(graph, sizes)
    names = [v.name for v in running.get_inputs()]
    if not set(names) <= own.keys():
        own = dict(zip(names, own.values(), strict=True))
    return [np.asarray(y) for y in run_session(running, {n: own[n] for n in names}).values()]


def _shapes(graph: Graph, names: Sequence[str], sizes: Mapping[str, int]) -> Shapes:
    return {
        name: shape
        for name, (value, shape) in zip(names, input_shapes(graph, sizes), strict=True)
        if any(isinstance(s, Sym) for s in value.shape)
    }
