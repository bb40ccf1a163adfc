"""Layers as two of lower rank: the model with the two layers, and what was lost by it.

The choice says ranks beside widths (pass ``low-rank``). Here the model is made with two layers in
the place of each: the nearest product to the weight on the calibration data. What was chosen of
widths is carried over, and the rest of a prune goes on with that model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from irprune.analysis.factorable import Factorable, factorable
from irprune.base.tolerance import FLOAT32
from irprune.choice.plan import Choice, Plan, Recorded
from irprune.choice.replay import replay
from irprune.criteria.readings import Reading, Readings, key_of
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError
from irprune.frontend.capture import capture
from irprune.frontend.onnx.source import OnnxSource
from irprune.frontend.torch.low_rank import SplitLayer, with_layers
from irprune.frontend.torch.source import torch_source
from irprune.ir.dtype import numpy_dtype
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.ops.dtypes import TO_TORCH
from irprune.run.calibration import Calibration
from irprune.run.low_rank import Factors, factorise
from irprune.run.ranks import current
from irprune.validate.low_rank import check_file, check_module

if TYPE_CHECKING:
    from irprune.api.options import Options

__all__ = ["LowRank", "LowRankLayer", "in_two"]


@dataclass(frozen=True)
class LowRankLayer:
    """A layer that became two.

    Args:
        name: The weight that it had.
        inputs: How many numbers it reads, with what a kernel covers.
        outputs: How many it gives.
        rank: How many pass between the two.
        lost: The share of the square of what it gives that is lost, on the calibration data; of
            its weight where there are none.
    """

    name: str
    inputs: int
    outputs: int
    rank: int
    lost: float


@dataclass
class LowRank:
    """What became of the layers that are two now.

    Args:
        layers: These layers.
        calibrated: Whether the products are the nearest on calibration data, or to the weights.
        error: Of the model with two layers beside the original with their products as weights,
            relative to its outputs.
        tolerance: What ``error`` may be.
        output_error: Of the pruned model beside the original on calibration data, after repair;
            None without data.
    """

    layers: list[LowRankLayer] = field(default_factory=list)
    calibrated: bool = False
    error: float = 0.0
    tolerance: float = FLOAT32
    output_error: float | None = None

    def __str__(self) -> str:
        shown = ", ".join(
            f"{x.name} {x.rank} of {min(x.inputs, x.outputs)}" for x in self.layers[:4]
        )
        more = f" and {len(self.layers) - 4} more" if len(self.layers) > 4 else ""
        told = (
            f"{len(self.layers)} layers are two now ({shown}{more}); with the products as weights "
            f"the original differs by {self.error:.1e}"
        )
        if self.output_error is not None:
            told += f"; outputs on calibration data {self.output_error:.3g} off the original's"
        return told


@dataclass(frozen=True)
class _Split:
    """A layer's two factors, in the layout of the two tensors that hold them. ``names`` and
    ``shapes`` are theirs; ``dims`` says for each dimension of the layer's own weight which of the
    two has it, and where."""

    one: Factorable
    factors: Factors
    names: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dims: dict[int, tuple[int, int]]


def in_two(graph: Graph, options: Options) -> tuple[Graph, LowRank]:
    """The analysed graph, with its choice, of the model behind ``graph`` with two layers in the
    place of each that ``graph.low_rank`` names.

    Raises:
        IrpruneError: Where the model cannot be made so.
        CheckFailed: Where it does not compute what the products do.
    """
    if current().size > 1:
        raise IrpruneError(
            "low_rank works in one process", graph.name, "run it without torchrun: ranks=1"
        )
    by_name = {one.name: one for one in factorable(graph)}
    chosen = [by_name[name] for name in graph.low_rank if name in by_name]
    if len(chosen) != len(graph.low_rank):
        missing = next(name for name in graph.low_rank if name not in by_name)
        raise IrpruneError(f"{missing!r} is no layer that can become two", graph.name)
    readings = _readings(graph, options)
    found: dict[str, Factors] = {}
    for some in _portions(readings, chosen):
        read = {} if readings is None else readings.of([x.layer for x in some], products=True)
        for one in some:
            reading = read.get(key_of(one.layer))
            found[one.name] = _factors(one, graph.low_rank[one.name], reading)
    if isinstance(graph.source, OnnxSource):
        split, made, error = _file(graph, graph.source, chosen, found)
    else:
        split, made, error = _module(graph, chosen, found, options)
    analyse(made)
    made.sizes = dict(graph.sizes)
    _carry(graph, made, split)
    told = [
        LowRankLayer(
            s.one.name, *s.one.layer.blocks[1:], graph.low_rank[s.one.name], s.factors.lost
        )
        for s in split
    ]
    return made, LowRank(told, readings is not None, error)


def _readings(graph: Graph, options: Options) -> Readings | None:
    """Of the calibration data; None where there are none."""
    held, data = options.readings, options.values["calibration"]
    if isinstance(held, Readings) and held.graph is graph:
        return held
    return None if data is None else Readings(graph, Calibration(data, graph))


def _portions(readings: Readings | None, chosen: list[Factorable]) -> list[list[Factorable]]:
    """The layers in runs whose Gram matrices fit the memory together."""
    if readings is None:
        return [chosen]
    by_name = {one.name: one for one in chosen}
    some = readings.portions({one.name: [one.layer] for one in chosen})
    return [[by_name[name] for name in names] for names in some]


def _factors(one: Factorable, rank: int, reading: Reading | None) -> Factors:
    """The factors of the layer's whole matrix: what goes of it is sliced off later, and a repair
    knows what it gave."""
    products = reading is not None and reading.products
    gram = reading.second_moment[0] if reading is not None and products else None
    return factorise(one.layer.load_matrix()[0], rank, gram)


def _file(
    graph: Graph, source: OnnxSource, chosen: list[Factorable], found: Mapping[str, Factors]
) -> tuple[list[_Split], Graph, float]:
    """The graph of a file with two nodes in the place of each."""
    from irprune.frontend.onnx.low_rank import SplitNode, with_split_nodes
    from irprune.frontend.onnx.reader import capture_onnx

    nodes: dict[str, SplitNode] = {}
    products: dict[str, Any] = {}
    split = []
    for one in chosen:
        layer, factors = one.layer, found[one.name]
        stored = source.stored[one.name].name
        kind = numpy_dtype(layer.weight.dtype)
        shape = [int(s) for s in layer.weight.shape]  # type: ignore[arg-type]
        rank = factors.first.shape[1]
        (out,) = one.outputs
        if len(shape) > 2:  # a convolution: the first has the kernel
            first = factors.first.T.reshape(rank, *shape[1:])
            second = factors.second.T.reshape(-1, rank, *[1] * (len(shape) - 2))
        elif out == 1:
            first, second = factors.first, factors.second
        else:
            first, second = factors.first.T, factors.second.T
        arrays = [t.numpy().astype(kind) for t in (first, second)]
        nodes[stored] = SplitNode(arrays[0], arrays[1])
        a, b = (
            ((t if out == 1 else t.T) for t in (x.reshape(x.shape[0], -1) for x in arrays))
            if len(shape) == 2
            else (arrays[0].reshape(rank, -1).T, arrays[1].reshape(-1, rank).T)
        )
        product = torch.from_numpy(a.astype(np.float64) @ b.astype(np.float64))
        products[stored] = layer.array(product[None]).numpy()
        dims = {d: (0, d) for d in one.inputs} | {out: (1, out)}
        shapes = (arrays[0].shape, arrays[1].shape)
        split.append(_Split(one, factors, nodes[stored].names(stored), shapes, dims))
    made = capture_onnx(with_split_nodes(source, nodes), files=source.files)
    made.notes = list(dict.fromkeys((*graph.notes, *made.notes)))
    return split, made, check_file(graph, analyse(made), products)


def _module(
    graph: Graph, chosen: list[Factorable], found: Mapping[str, Factors], options: Options
) -> tuple[list[_Split], Graph, float]:
    """The graph of a copy of the module with two layers in the place of each."""
    source = torch_source(graph)
    assert source.module is not None
    layers = {n: SplitLayer(f.first, f.second) for n, f in found.items()}
    module = with_layers(source.module, layers)
    made = capture(
        module,
        source.args,
        source.kwargs,
        source.dynamic_shapes,
        source.method,
        dynamic=options.values["dynamic"],
    )
    split = []
    products: dict[str, torch.Tensor] = {}
    for one in chosen:
        layer, factors = one.layer, found[one.name]
        owner = one.name.rpartition(".")[0]
        names = (f"{owner}.0.weight", f"{owner}.1.weight")
        missing = next((n for n in names if n not in made.weights), None)
        if missing is not None:
            raise IrpruneError(
                f"forward goes around the layer {owner!r}, which cannot become two",
                graph.name,
                f"leave it out: keep=[{one.name!r}]",
            )
        a, b = (made.weights[n] for n in names)
        shapes = (_shape(a.shape), _shape(b.shape))
        (out,) = one.outputs
        # Of a matrix with its inputs first both have their outputs first
        dims = {d: (0, d) for d in one.inputs} if out == 0 else {one.inputs[0]: (0, 1)}
        split.append(_Split(one, factors, names, shapes, {**dims, out: (1, 0)}))
        kind = TO_TORCH[layer.weight.dtype]
        product = factors.first.to(kind).double() @ factors.second.to(kind).double()
        products[one.name] = layer.array(product[None]).to(kind)
    return split, made, check_module(graph, made, products)


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(int(s) for s in shape)


def _carry(graph: Graph, made: Graph, split: list[_Split]) -> None:
    """Let ``made`` have the choice of ``graph``: its groups are found by the weights of the two
    layers where they were found by that of the one."""
    plan = Plan.from_graph(graph)
    by_name = {s.one.name: s for s in split}
    weights: dict[str, Recorded] = {n: w for n, w in plan.weights.items() if n not in by_name}
    choices: list[Choice] = []
    for choice in plan.choices:
        members = []
        for spot in choice.members:
            one = by_name.get(spot.weight)
            if one is None:
                members.append(spot)
                continue
            which, dim = one.dims[spot.dim]
            members.append(replace(spot, weight=one.names[which], dim=dim))
            weights[one.names[which]] = Recorded(one.shapes[which])
        choices.append(replace(choice, members=tuple(members)))
    kept = replay(
        replace(plan, source="", choices=tuple(choices), weights=weights, dropped={}), made
    )
    results = {v.name for node in made.nodes for v in node.outputs}
    if lost := next((name for name in plan.dropped if name not in results), None):
        raise IrpruneError(
            f"the branch at {lost!r} is not found again where layers are two",
            graph.name,
            "prune without low_rank, or with drop_blocks=False",
        )
    made.kept = Selection(kept.choice, kept.within, plan.dropped)
