"""measured: scores in units of what the outputs lose, so that groups of any kind can be added up
and compared.

A criterion ranks the indices of one group; what their loss means to the model differs from group to
group, and no gradient says it where errors go together (those of attention do, from token to
token). So it is measured: at a few levels the lowest indices of a group are silenced, the layers
that read them are refitted to the others as a repair will do, and the outputs are compared with the
original's. The scores between two levels are then scaled so that their sums are these errors.
Databases of measured errors are what ZipLM (Kurtic et al., NeurIPS 2023) and SPDY (Frantar and
Alistarh, ICML 2022) search in."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.analysis.branches import Branch, branches_of
from irprune.base.journal import current
from irprune.base.progress import tell
from irprune.criteria import Scores
from irprune.criteria.consumers import Reader, readers
from irprune.criteria.obs import Surgeon
from irprune.criteria.readings import Reading, Readings, key_of, readings_of
from irprune.criteria.refit import refitted
from irprune.ir.axis import Axis, leaves
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Node, Weight
from irprune.ir.group import Group
from irprune.ir.selection import Selection
from irprune.ops.registry import readers_of
from irprune.run.logits import divergence, logits_of, shortened

if TYPE_CHECKING:
    import torch

    from irprune.run.batch import Batch
    from irprune.run.interpret import Hook

__all__ = ["LEVELS", "Probe", "affordable", "measured", "scaled", "set_apart"]

# Shares of a group that are dropped to measure; of all of it, one index stays
LEVELS = (
    (0.125, 0.25, 0.5, 0.75, 1.0),
    (0.25, 0.5, 0.75, 1.0),
    (0.25, 0.5, 1.0),
)
SAMPLES = (8, 32)  # of the calibration data that the outputs are compared on, at least and at most
NEAR = (1e-3, 0.3)  # errors that a choice may turn on: of others the fewest samples tell enough
TELLING = 1.5  # times the even share of the outputs' power: samples that hold it tell more
FAR = 0.5  # beyond it nothing more is measured of a group
OFTEN = 0.8  # the share of levels whose errors are near: 0.5 to 1 on a dozen models
ROWS = 6  # of a model that gives logits: their tokens are many
RUNS = 4  # over all data that the comparisons may cost; beyond it, the fewest samples and levels
RIDGE = 1e-2  # of the refit, relative to the mean diagonal of the Gram matrix

Refits = dict[Node, dict[int, "torch.Tensor"]]  # what stands in for operands of a node


def measured(
    scores: Mapping[Axis, Scores],
    graph: Graph,
    groups: Sequence[Group],
    blocks: Mapping[Axis, Axis],
    calibration: Any,
    spared: Container[Axis] = (),
    drops: dict[Axis, float] | None = None,
) -> dict[Axis, Scores]:
    """``scores`` scaled so that the sum of the lowest is the error of the outputs without them: the
    mean over floating-point outputs of the squared difference relative to the square of the output
    (of each channel, where their scales are unlike), of probabilities their divergence; of a model
    without any the share of elements that differ; of one whose output is logits the divergence of
    the next token's distributions (``irprune.run.logits``).

    With ``drops``, the error without a residual branch is put there for the leaf that its last
    layer sums over, in place of the error with one index left. Groups that are ``spared`` keep
    their scores, at the mean level of the others.

    Costs one run over the data for the Gram matrices, where ``calibration`` is not readings that
    have them, and for each group and level a run of a few samples from the first node on that reads
    the group. Raises IrpruneError where there are no data, and for activations that are NaN."""
    readings = readings_of(calibration, graph, "measured")
    journal, names = current(), {g.axis: g.name for g in groups}
    known: dict[Axis, list[tuple[int, float]]] = {}
    for g in groups if journal is not None else ():
        if journal is not None and (held := journal.get("measured", g.name)) is not None:
            known[g.axis] = [(int(n), float(e)) for n, e in held]
    wanted = [g for g in groups if g.axis in scores and g.axis not in spared]
    found = readers(graph, wanted, blocks)
    first = _first_reads(graph)
    order = sorted(
        (x for x in found if x not in known), key=lambda leaf: first.get(leaf, len(graph.nodes))
    )
    # The first stays: by it, caches of decoders tell how far they are
    branches = {} if drops is None else {b.leaf: b for b in branches_of(graph)[1:]}
    for x in branches:
        if drops is not None and x in known:
            drops[x] = known[x].pop()[1]
    out = {x: scaled(scores[x], known[x]) for x in found if x in known}
    probe = Probe(graph, readings, len(found)) if order else None
    for some in readings.portions({x: [r.layer for r in found[x]] for x in order}):
        read = readings.of([r.layer for x in some for r in found[x]], products=True)

        def errors(leaf: Axis, read: Mapping[str, Reading] = read) -> list[tuple[int, float]]:
            assert probe is not None
            probe.go_to(first.get(leaf, len(graph.nodes)))
            branch = branches.get(leaf)
            return _errors(leaf, scores[leaf], blocks, found[leaf], read, probe, branch)

        def done(leaf: Axis, made: list[tuple[int, float]]) -> None:
            if journal is not None:
                journal.put("measured", names[leaf], np.asarray(made, dtype=np.float64))
            if leaf in branches and drops is not None:
                drops[leaf] = made.pop()[1]
            out[leaf] = scaled(scores[leaf], made)
            tell("measuring groups", len(out), len(found))

        readings.data.ranks.share(some, errors, done)
    level = sum(float(out[x].sum()) for x in out) / max(
        sum(float(scores[x].sum()) for x in out), 1e-300
    )
    return {leaf: out[leaf] if leaf in out else s * level for leaf, s in scores.items()}


def set_apart(readings: Readings) -> None:
    """Leave out of ``readings`` what ``measured`` compares outputs on: layers that are refitted to
    the same samples would seem to lose less than they do."""
    if readings.judged is not readings.data:
        return  # some are held out already
    readings.hold_out(SAMPLES[1] if logits_of(readings.graph) is None else ROWS)


def _first_reads(graph: Graph) -> dict[Axis, int]:
    """For each leaf the place of the first node that reads it: of a value, or of a weight whose
    result has it no more."""
    first: dict[Axis, int] = {}
    for i, node in enumerate(graph.nodes):
        made = {x for v in node.outputs for a in v.axes or () for x in leaves(a)}
        for v in node.inputs:
            for x in (x for a in (v.axes or () if v is not None else ()) for x in leaves(a)):
                if not isinstance(v, Weight) or x not in made:
                    first.setdefault(x, i)
    return first


def scaled(scores: Scores, errors: Sequence[tuple[int, float]]) -> Scores:
    """``scores``, of shape (size,) or (blocks, size), in their order, scaled so that for each
    (count, error) the ``count`` lowest (of each block, in the mean over blocks) add up to
    ``error``; errors that fall with the count are taken as their mean."""
    order = np.argsort(scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    ranked = ranked - min(float(ranked.min()), 0.0)  # a sum needs what is not below zero
    size, start, known, factor = ranked.shape[-1], 0, 0.0, 1.0
    rows = ranked[..., 0].size
    least = 1e-12 * float(ranked.sum()) / rows
    for count, error in _rising(errors):
        piece = ranked[..., start:count]
        total, rise = float(piece.sum()) / rows, max(error - known, 0.0)
        if total > least:
            factor = rise / total
            piece *= factor
        else:  # nothing to go by
            piece[...] = rise / (count - start)
        start, known = count, max(known, error)
    ranked[..., start:size] *= factor
    ranked = np.maximum.accumulate(ranked, axis=-1)
    out = np.empty_like(ranked)
    np.put_along_axis(out, order, ranked, -1)
    return out


def _rising(errors: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The nearest errors that do not fall with the count: those that do are noise, and get their
    mean (isotonic regression by pooling adjacent violators, Ayer et al. 1955)."""
    pools: list[tuple[float, int]] = []  # sum and number of neighbours that are taken as equal
    for _, error in errors:
        pools.append((error, 1))
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            (total, many), (more, number) = pools[-2:]
            pools[-2:] = [(total + more, many + number)]
    levels = [total / many for total, many in pools for _ in range(many)]
    return [(count, level) for (count, _), level in zip(errors, levels, strict=True)]


def _errors(
    leaf: Axis,
    scores: Scores,
    blocks: Mapping[Axis, Axis],
    many: Sequence[Reader],
    read: Mapping[str, Reading],
    probe: Probe,
    branch: Branch | None = None,
) -> list[tuple[int, float]]:
    """The error of the outputs with the lowest of ``leaf`` gone, for the count of each level; with
    a ``branch`` that it closes the last one is that of the branch gone, twice: of all indices but
    one, and of all."""
    size = scores.shape[-1]
    order = np.argsort(scores, axis=-1, kind="stable")
    able = [r for r in many if read[key_of(r.layer)].products and not r.layer.shared()]
    surgeons = (
        [(r, Surgeon(r, read[key_of(r.layer)], RIDGE)) for r in able]
        if probe.logits is None
        else []
    )
    out: list[tuple[int, float]] = []
    for level in probe.levels if branch is None else probe.levels[:-1]:
        start, count = out[-1][0] if out else 0, min(round(level * size), size - 1)
        if count <= start:
            continue
        gone = order[..., start:count] + size * np.arange(order[..., 0].size).reshape(
            -1, *[1] * (scores.ndim > 1)
        )
        refits: Refits = {}
        for reader, surgeon in surgeons:
            surgeon.drop(gone.reshape(-1))
            _refit(reader, surgeon.weight(), read[key_of(reader.layer)], refits)
        for reader in able if probe.logits is not None else ():
            reading = read[key_of(reader.layer)]
            _refit(
                reader, refitted(reading, _inputs(reader, order[..., :count]))[0], reading, refits
            )
        _rescale(probe.graph, leaf, order[..., count:], refits)
        kept = Selection(
            {leaf: np.sort(order[..., count:], axis=-1)},
            {leaf: blocks[leaf]} if scores.ndim > 1 else None,
        )
        out.append((count, probe.error(kept, refits)))
        if probe.logits is None and out[-1][1] > FAR:
            break  # of what is left each costs more
    if branch is not None:
        lost = probe.error(Selection({}, dropped={branch.join.out.name: branch.stream}), {})
        if not out or out[-1][0] < size - 1:
            out.append((size - 1, lost))
        out.append((size, lost))
    return out


def _inputs(reader: Reader, indices: NDArray[np.int64]) -> torch.Tensor:
    """Which inputs [b, k] of a layer belong to ``indices`` of a leaf, of each block in a row."""
    import torch

    size = reader.shape[-1]
    rows = size * np.arange(indices[..., 0].size).reshape(-1, *[1] * (indices.ndim > 1))
    gone = np.zeros(int(np.prod(reader.shape)), dtype=bool)
    gone[(indices + rows).reshape(-1)] = True
    return torch.from_numpy((reader.owner >= 0) & gone[reader.owner])


def _refit(reader: Reader, weight: torch.Tensor, reading: Reading, refits: Refits) -> None:
    """The layer with ``weight`` [b, k, o], and the bias that keeps its mean."""
    layer = reader.layer
    refits.setdefault(layer.node, {})[layer.by] = layer.stored.operand(layer.array(weight))
    if layer.bias is not None:
        moved = (reading.mean[:, None] @ (reading.weight - weight))[:, 0]
        bias, held = layer.bias, layer.bias.stored.load()
        refits.setdefault(bias.node, {})[bias.at] = bias.stored.operand(
            held + bias.sign * moved.reshape(held.shape)
        )


def _rescale(graph: Graph, leaf: Axis, kept: NDArray[np.int64], refits: Refits) -> None:
    """Let the norms over a rotated width give what they gave, as the cut model's will."""
    from irprune.run.statistics import load_as

    width = graph.rotated.get(leaf)
    if width is None:
        return
    factor = width.factor(kept)
    for name in width.scales:
        weight = graph.weights[name]
        for node, i in readers_of(weight):
            refits.setdefault(node, {})[i] = load_as(weight) * factor


def affordable(groups: int, samples: int) -> tuple[tuple[float, ...], int]:
    """The levels to measure ``groups`` at and how many of ``samples`` to compare on where errors
    are near."""
    least, most = SAMPLES
    comparisons = RUNS * samples / max(1.0, groups / 2)  # one starts half way through, on average
    more = 0
    for levels in LEVELS:  # more samples tell more than levels between levels
        more = int((comparisons / len(levels) - least) / OFTEN)
        if more >= least:
            break
    return levels, min(most, least + max(0, more))


class Probe:
    """A share of the calibration data, what the original says to it, and how far it has run: what
    lies before the first node that reads a group is the same with and without it."""

    def __init__(self, graph: Graph, readings: Readings, groups: int) -> None:
        from irprune.run.calibration import ACTIVATIONS
        from irprune.run.difference import channel_dims
        from irprune.run.statistics import Tape

        data, among = readings.judged, readings.among
        held = max(1, data.count() // among) if among else 0
        self.logits = logits_of(graph)
        self.graph, self.tape, self.at = graph, Tape(graph), 0
        floating = [i for i, v in enumerate(graph.outputs) if is_real(v.dtype)]
        self.judged = floating or list(range(len(graph.outputs)))
        if self.logits is not None:
            self.judged = [self.logits.output]
        dims = channel_dims(graph)
        self.dims = [dims[i] for i in self.judged]
        if self.logits is None:
            self.levels, samples = affordable(groups, data.count())
            room = data.activations.fitting(ACTIVATIONS)  # what waits at a place in the graph
            samples = max(SAMPLES[0], min(samples, room))
            made = self._telling(readings, min(samples, held) if held else samples)
            apart = max(1, round(sum(b.size for b in made) / SAMPLES[0]))
            few = data.together(made[::apart])
            batches = few + data.together([b for i, b in enumerate(made) if i % apart])
            self.few = len(few)
        else:
            self.levels = LEVELS[-1]
            batches = [shortened(graph, b) for b in data.joined(held or ROWS, max(1, among))]
            self.few = len(batches)
        self.counted = [self.logits.weights(b.inputs) if self.logits else None for b in batches]
        self.symbols = [self.tape.symbols(b.inputs) for b in batches]
        self.begun = [self.tape.start(b.inputs) for b in batches]
        self.said = self._outputs(None, range(len(batches)))

    def _telling(self, readings: Readings, wanted: int) -> list[Batch]:
        """About ``wanted`` samples one by one (whole items where the graph takes no other number),
        of those that are held out: at equal distances, or where few of them hold most of what the
        outputs say, as the pictures with objects do, those."""
        from irprune.run.batch import Batch, split_rows
        from irprune.run.calibration import ACTIVATIONS

        data, among = readings.judged, max(1, readings.among)
        every = data.count() // among if readings.among else SAMPLES[1]
        made = [
            one
            for b in data.spread(max(wanted, every), among=among)
            for one in (split_rows(Batch(b.inputs), 1) if data.resizable else [Batch(b.inputs)])
        ]
        wanted = max(1, round(wanted / max(1, made[0].size)))
        if len(made) <= wanted:
            return made
        said = [self._said(made[0])]
        size = sum(y.nbytes for y in said[0])
        room = max(wanted, ACTIVATIONS // max(1, size))  # outputs of all of them at once
        made = made[:: -(-len(made) // room)]
        said += map(self._said, made[1:])
        power = _powers(said, self.dims)
        ranked = np.argsort(-power, kind="stable")[:wanted]
        if power[ranked].sum() * len(made) < TELLING * power.sum() * wanted:
            return made[:: max(1, len(made) // wanted)][:wanted]
        return [made[i] for i in ranked]

    def _said(self, batch: Batch) -> list[torch.Tensor]:
        """What the original says to ``batch``."""
        env, symbols = self.tape.start(batch.inputs), self.tape.symbols(batch.inputs)
        self.tape.advance(env, symbols, 0, len(self.graph.nodes))
        return [self.tape.read(env, self.graph.outputs[i]) for i in self.judged]

    def go_to(self, node: int) -> None:
        """Run the original up to a place in the graph's order, not before the last one."""
        for env, symbols in zip(self.begun, self.symbols, strict=True):
            self.tape.advance(env, symbols, self.at, node)
        self.at = node

    def _outputs(self, hook: Hook | None, batches: Iterable[int]) -> list[list[torch.Tensor]]:
        """For each of ``batches`` the outputs that are judged, with the rest of the graph under
        ``hook``."""
        out = []
        for number in batches:
            env = dict(self.begun[number])
            symbols = dict(self.symbols[number])
            self.tape.advance(env, symbols, self.at, len(self.graph.nodes), hook)
            out.append([self.tape.read(env, self.graph.outputs[i]) for i in self.judged])
        return out

    def error(self, kept: Selection, refits: Refits) -> float:
        """How far the outputs under ``kept`` with some operands replaced are off, averaged over
        outputs: on a few samples, and where that is ``NEAR`` on all of them."""
        from irprune.run.oracle import silencer

        silence = silencer(kept, self.tape.device)

        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            for i, tensor in refits.get(node, {}).items():
                operands[i] = tensor.to(operands[i])
            return silence(node, operands, run)

        ours = self._outputs(hook, range(self.few))
        if self.logits is not None:
            return self._divergence(ours)
        error = self._error(ours)
        if self.few == len(self.said) or not NEAR[0] <= error <= NEAR[1]:
            return error
        return self._error(ours + self._outputs(hook, range(self.few, len(self.said))))

    def _error(self, ours: list[list[torch.Tensor]]) -> float:
        """The mean over outputs of how far ``ours`` are off, on the first batches."""
        said = self.said[: len(ours)]
        errors = [
            _off(list(a), list(b), dim)
            for a, b, dim in zip(
                zip(*ours, strict=True), zip(*said, strict=True), self.dims, strict=True
            )
        ]
        return sum(errors) / len(errors)

    def _divergence(self, ours: list[list[torch.Tensor]]) -> float:
        """The mean divergence of the next token's distributions, in nats."""
        found = [
            divergence(a[0], b[0], w) for a, b, w in zip(ours, self.said, self.counted, strict=True)
        ]
        return sum(total for total, _ in found) / max(1, sum(count for _, count in found))


def _powers(said: Sequence[Sequence[torch.Tensor]], dims: Sequence[int | None]) -> NDArray[Any]:
    """The share of each sample in the power of the outputs that errors are relative to, summed over
    outputs [samples]; the same for all where that is not told apart."""
    import torch

    from irprune.run.difference import is_distribution, square_off, units

    power = np.zeros(len(said))
    for many, dim in zip(zip(*said, strict=True), dims, strict=True):
        alike = len({y.shape[1:] for y in many}) == 1 and all(y.dim() for y in many)
        if not alike or not many[0].is_floating_point() or all(map(is_distribution, many)):
            power += 1 / len(said)
            continue
        whole = torch.cat(list(many))
        unit, mean = units(whole, dim), whole.mean(0, keepdim=True)
        own = np.array(
            [
                square_off(mean.expand_as(y), y, unit, dim)[0 if unit is not None else 1]
                for y in many
            ]
        )
        power += own / max(float(own.sum()), 1e-300)
    return power


def _off(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], dim: int | None) -> float:
    """The squared difference of one output over all batches, relative to its square, with its
    channels along ``dim``; of probabilities how far they diverge; of one that is not floating-point
    the share of elements that differ."""
    import torch

    from irprune.run.difference import divergence, is_distribution, square_off, units

    alike = all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    if alike and all(b.is_floating_point() and is_distribution(b) for b in theirs):
        return divergence(ours, theirs)
    unit = None
    if alike and theirs[0].is_floating_point():
        unit = units(theirs[0], dim)
    off = power = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:  # as many as were found
            off, power = off + max(1, b.numel()), power + max(1, b.numel())
        elif b.is_floating_point():
            more, whole = square_off(a, b, unit, dim)
            off, power = off + more, power + whole
        else:
            off, power = off + float(torch.ne(a, b).sum()), power + b.numel()
    return off / power if power > 0 else float(off > 0)
