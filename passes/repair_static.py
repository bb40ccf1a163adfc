"""repair-static: new weights for the layers that lost inputs, by the statistics of the original
alone.

Before: ``%y = linear(%x: [n, 16], %w)`` where %x lost half of its channels and %w is what slicing
left. After: the %w (and bias) by which the channels that stay predict best what all gave together.
Nothing is fitted to the cut model's own activations, so that layers are independent, one run over
the data serves all of them, and errors of fits on few tokens do not pile up: for decoders that was
better than refits in sequence. Layers whose results alone were cut need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from irprune.base.memory import DEFAULT
from irprune.criteria.readings import Reading, Readings, key_of, readings_of
from irprune.criteria.refit import RIDGE, RIDGES, refitted
from irprune.criteria.sinks import sinks_of
from irprune.ir.graph import Graph, Weight
from irprune.ir.size import probe_of
from irprune.passes.repairs import repair
from irprune.passes.result import PassResult
from irprune.run.take import kept_indices, take

if TYPE_CHECKING:
    import torch

    from irprune.analysis.layers import Layer
    from irprune.run.calibration import Calibration
    from irprune.run.kept_files import KeptFiles

__all__ = ["RepairStatic"]


@repair("static")
@dataclass(frozen=True)
class RepairStatic:
    """Refit the layers of a cut graph to the inputs that they had in the ``original`` on
    ``calibration``.

    ``ridge`` is relative to the mean diagonal of their products. Where it is None, the one of
    ``RIDGES`` is taken by which ``judge``, of a cut graph how far it is off, gives least; without a
    judge ``RIDGE``. It is looked for once, on the first layers whose products together take no more
    than the memory that there is by default, whatever there is. ``readings`` are those of the data
    where there are any already."""

    original: Graph
    calibration: Calibration
    ridge: float | None = None
    readings: Readings | None = None
    judge: Callable[[Graph], float] | None = None

    def run(self, graph: Graph) -> PassResult:
        from irprune.analysis.layers import layers
        from irprune.run.kept_files import kept_files
        from irprune.run.once import once

        twins = {x.node.outputs[0].name: x for x in layers(graph)}
        wanted: dict[str, tuple[Layer, torch.Tensor, torch.Tensor]] = {}
        for layer in layers(self.original):
            twin = twins.get(layer.node.outputs[0].name)
            if twin is None or layer.shared() or twin.shared():
                continue
            ins, outs = self._kept(layer)
            if not bool(ins.all()):
                wanted[key_of(layer)] = (layer, ins, outs)
        notes: list[str] = []
        readings = self.readings or readings_of(self.calibration, self.original, "static")
        files = kept_files("static", of_step=True)
        before = {weight: weight.load for weight in graph.weights.values()}
        refit = _Refit(self, graph, twins, wanted, readings, files)
        if self.ridge is None and self.judge is not None:
            notes += once(files, graph, "search", refit.search)
        for some in readings.portions(refit.every):
            notes += once(files, graph, " ".join(some), partial(refit.portion, some))
        changed = any(weight.load is not load for weight, load in before.items())
        return PassResult(changed, tuple(notes))

    def _kept(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
        """Which inputs [b, k] and which outputs [b, o] of ``layer`` stay."""
        import torch

        assert self.original.kept is not None
        shape = [probe_of(s) for s in layer.weight.shape]
        count = 1
        for n in shape:
            count *= n
        numbers = torch.arange(count).reshape(shape)
        mask = torch.zeros(count, dtype=torch.bool)
        mask[take(numbers, kept_indices(layer.weight, self.original.kept)).reshape(-1)] = True
        matrix = layer.matrix(mask.reshape(shape))
        return matrix.any(2), matrix.any(1)


class _Refit:
    """Refits layers portion by portion, with the ridge that is the best for the first one."""

    def __init__(
        self,
        options: RepairStatic,
        graph: Graph,
        twins: Mapping[str, Layer],
        wanted: Mapping[str, tuple[Layer, torch.Tensor, torch.Tensor]],
        readings: Readings,
        files: KeptFiles | None,
    ) -> None:
        self.judge, self.graph, self.twins, self.wanted = options.judge, graph, twins, wanted
        self.readings, self.files = readings, files
        self.every = {key: [layer] for key, (layer, _, _) in wanted.items()}
        self.ridge = RIDGE if options.ridge is None and self.judge is None else options.ridge
        if self.ridge is None and files is not None:
            self.ridge = files.get("ridge")

    def portion(self, some: Sequence[str]) -> list[str]:
        """Refit the layers that ``some`` names.

        Returns:
            What is to be said of them.
        """
        return self._refit(some, self.ridge or 0.0)

    def _refit(self, some: Sequence[str], ridge: float) -> list[str]:
        notes = []
        read = self.readings.of([self.wanted[key][0] for key in some], products=True)
        for key, reading in read.items():
            if not reading.products:
                notes.append(f"{reading.layer.weight.name}: too wide, left as it was sliced")
                continue
            count = int(sinks_of(reading).sum())
            if count:
                notes.append(
                    f"{reading.layer.weight.name}: {count} input{'s' * (count > 1)} of massive activations kept as they were"
                )
            self._put(key, reading, ridge)
        return notes

    def search(self) -> list[str]:
        """Find the ridge by which the first layers refitted bring the graph nearest to the
        original; they are left as they were.

        Returns:
            What is to be said of it.
        """
        from irprune.run.once import once

        assert self.judge is not None
        first = set(next(self.readings.portions(self.every, DEFAULT), []))
        held = {w: w.load for w in self.graph.weights.values()}
        made: dict[float, dict[Weight, Any]] = {ridge: {} for ridge in RIDGES}
        for some in self.readings.portions(self.every):
            mine = [key for key in some if key in first]
            for ridge in RIDGES:
                refit = partial(self._refit, mine, ridge)
                once(self.files, self.graph, f"{ridge} {' '.join(mine)}", refit)
                made[ridge] |= self._changed(held)
            first -= set(some)
            if not first:
                break
        off = {ridge: self._off(loads, held) for ridge, loads in made.items() if loads}
        if not off:
            return []
        self.ridge = min(off, key=lambda ridge: off[ridge])
        if self.files is not None:
            self.files.put("ridge", self.ridge)
        return [f"a ridge of {self.ridge:g}, the best of {', '.join(map(str, RIDGES))}"]

    def _put(self, key: str, reading: Reading, ridge: float) -> None:
        """Refit a layer."""
        layer, ins, outs = self.wanted[key]
        twin = self.twins[layer.node.outputs[0].name]
        matrix, moved = refitted(reading, ~ins, ridge)
        b, k, o = twin.blocks
        alive = ins.any(1) & outs.any(1)  # groups of a convolution go as a whole
        rows = matrix[alive][ins[alive]].reshape(b, k, -1)
        keep = outs[alive][:, None].expand(-1, k, -1)
        twin.store_matrix(rows[keep].reshape(b, k, o))
        if twin.bias is not None and moved is not None:
            twin.bias.move(moved[alive][outs[alive]].reshape(b, o))

    def _changed(self, held: Mapping[Weight, Any]) -> dict[Weight, Any]:
        """What is held by the weights that are no longer as ``held`` says; they are so again."""
        made = {w: w.load for w, load in held.items() if w.load is not load}
        for weight in made:
            weight.load = held[weight]
        return made

    def _off(self, loads: Mapping[Weight, Any], held: Mapping[Weight, Any]) -> float:
        """How far the graph is off with ``loads``."""
        assert self.judge is not None
        for weight, load in loads.items():
            weight.load = load
        found = self.judge(self.graph)
        self._changed(held)
        return found
