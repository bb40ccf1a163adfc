"""The residual stream in the basis of its principal components: the model in another basis, which
computes the same, made before anything is chosen.

As in SliceGPT (Ashkboos et al., ICLR 2024), with one basis for each stream, so that residual
additions need no maps between bases. What is cut afterwards are the components of least energy, by
the ordinary choice of channels (``irprune.api.rotation``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from irprune.analysis.cost import PART, Costs
from irprune.analysis.rotatable import normalised_widths, rotatable
from irprune.analysis.rotation_places import Place, Reader, Rotatable
from irprune.analysis.turned_arrays import Use, bias_of, turned_array, uses_of
from irprune.api.rotation import Rotation
from irprune.base.progress import tell
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError, option
from irprune.frontend.capture import capture
from irprune.frontend.onnx.basis import FileBasis, FileNorm, with_basis
from irprune.frontend.onnx.reader import capture_onnx
from irprune.frontend.onnx.source import NodePlace, OnnxSource
from irprune.frontend.torch import basis as module_form
from irprune.frontend.torch.source import torch_source
from irprune.ir.axis import find
from irprune.ir.graph import Graph, Node, Rotated, Value, Weight
from irprune.ir.group import groups_of
from irprune.run.basis import Spread, principal_basis
from irprune.run.calibration import Calibration
from irprune.run.held_out import divided
from irprune.run.interpret import Hook
from irprune.run.ranks import current
from irprune.run.statistics import load_as
from irprune.run.stored_tensor import is_stored
from irprune.run.walk import Walk
from irprune.validate.basis import check_basis_of_file, check_basis_of_module

if TYPE_CHECKING:
    from irprune.api.options import Options

__all__ = ["rotated"]

MEMORY = 1 << 30  # bytes of weights that are read at a time

Load = Callable[[Weight], torch.Tensor]


def rotated(graph: Graph, options: Options) -> tuple[Graph, Rotation]:
    """The analysed graph of the model behind ``graph`` with each stream that can be in the basis of
    its principal components on the calibration data; a budget on parameters or bytes is then one of
    the model as it came in.

    Raises:
        IrpruneError: Where no width can be rotated, and for what is missing.
        CheckFailed: Where the model in the other basis does not compute the same.
    """
    values = options.values
    if current().size > 1:
        raise IrpruneError(
            "rotate works in one process", graph.name, "run it without torchrun: ranks=1"
        )
    if values["calibration"] is None:
        raise IrpruneError(
            f"{option('rotate')} needs data that show the directions of most energy",
            "",
            f"give {option('calibration')}",
        )
    _check_held(graph)
    costs = Costs(graph)
    whole = {name: costs.measure(name, {}) for name in ("params", "bytes")}
    values["budget"] = _absolute(values["budget"], costs)
    told = Rotation(whole=whole)
    refused: dict[str, IrpruneError] = {}
    done: list[str] = []
    while True:
        left = (g for g in normalised_widths(graph) if g.name not in (*done, *refused))
        group = next(left, None)
        if group is None:
            break
        try:
            made = rotatable(graph, group)
        except IrpruneError as why:
            refused[group.name] = why
            continue
        done.append(group.name)
        graph = _turned(graph, made, options, told)
    if done:
        return graph, told
    if refused:  # of the width that stands in most places
        raise next(iter(refused.values()))
    raise IrpruneError(
        "no width can be rotated: none that may shrink is normalised",
        graph.name,
        "residual streams that norms read can be, of models that do not give the stream out",
    )


def _check_held(graph: Graph) -> None:
    if isinstance(graph.source, OnnxSource):
        return
    module = torch_source(graph).module
    if module is None or is_stored(module):
        why, advice = "a program has no layers", "give the module or its ONNX file"
        if module is not None:
            # As much as reading them at once asks for (``irprune.api.load``)
            gigabytes = 3 * sum(p.nbytes for p in module.parameters()) // 10**9
            why = f"its weights are more than {option('memory')} allows and are read from files"
            advice = (
                f"give {option('memory', f'{gigabytes + 1}GB')}, for which they are read at once"
            )
        raise IrpruneError(f"rotate cannot make this model anew: {why}", graph.name, advice)


def _absolute(budget: Mapping[str, Any] | None, costs: Costs) -> Any:
    """``budget`` with amounts for shares of parameters and bytes: untied embeddings are more."""
    if budget is None:
        return None
    return {
        name: amount * costs.measure(name, {})
        if name.partition(PART)[0] in ("params", "bytes") and amount <= 1
        else amount
        for name, amount in budget.items()
    }


def _turned(graph: Graph, made: Rotatable, options: Options, told: Rotation) -> Graph:
    """``graph`` with the width ``made`` in its principal components."""
    basis, energy = _basis(graph, made, options)
    uses = uses_of(made)
    random_weights = _with_random_weights(made)
    if isinstance(graph.source, OnnxSource):
        new, names, error = _file(graph, graph.source, made, uses, basis, random_weights)
    else:
        new, names, error = _module(graph, made, uses, basis, random_weights, options, told)
    analyse(new)
    new.sizes = dict(graph.sizes)
    new.rotated = {**_again(graph, new)}
    first = next(p for p in made.places if p.kind == "written" and p.weight.rank > 1)
    name = names[first.node, first.at]
    leaf = next(
        g.axis
        for g in groups_of(new)
        for m in g.members
        if (m.weight.name, m.dim) == (name, first.dim)
    )
    scales = tuple(dict.fromkeys(names[p.node, p.at] for p in made.places if p.kind == "scale"))
    new.rotated[leaf] = Rotated(energy, scales)
    told.error = max(told.error, error)
    return new


def _again(graph: Graph, new: Graph) -> dict[Any, Rotated]:
    """The widths that were rotated before, in the new graph."""
    names = {g.axis: g.name for g in groups_of(graph)}
    found = {g.name: g.axis for g in groups_of(new)}
    return {found[names[x]]: r for x, r in graph.rotated.items() if names[x] in found}


# -- the basis -------------------------------------------------------------------------------------


def _basis(
    graph: Graph, made: Rotatable, options: Options
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """The principal components as columns [d, d], those of most energy first, and the share of
    each; of what norms give without their scales, every place counting alike."""
    data = Calibration(options.values["calibration"], graph)
    fit, _ = divided(data)
    places: dict[Node, Reader] = {}
    seen: set[Value] = set()
    for reader in made.readers:
        x = reader.node.operand(reader.at)
        if x not in seen:
            seen.add(x)
            places[reader.node] = reader
    dims = {
        node: next(
            d for d, a in enumerate(node.operand(reader.at).axes or ()) if find(a) is made.leaf
        )
        for node, reader in places.items()
    }
    held = {
        node: tuple(
            None if w is None else load_as(w).reshape(-1)
            for w in (reader.frame.scale, reader.frame.shift)
        )
        for node, reader in places.items()
    }
    rows = max(1024, 8 * made.size // max(1, len(places)))

    def watch(spread: Spread, number: int, size: int) -> Hook:
        def hook(node: Node, operands: list[Any], run: Any) -> Any:
            if node in held:
                x = operands[places[node].at].movedim(dims[node], -1)
                scale, shift = held[node]
                spread.add(x.reshape(-1, made.size), scale, shift, rows, number)
            return run(*operands)

        return hook

    walk = Walk(graph, fit, MEMORY)
    total = Spread(made.size)
    parts = list(walk.parts(list(places)))
    for number, nodes in enumerate(parts, 1):
        tell("reading the directions of a width", number, len(parts))
        last = number == len(parts)
        total = total.merged(walk.total(nodes, lambda: Spread(made.size), watch, last))
    return principal_basis(total)


# -- arrays ----------------------------------------------------------------------------------------


def _with_random_weights(made: Rotatable) -> dict[Weight, torch.Tensor]:
    """Other scales and shifts of the norms, for the check."""
    draw = torch.Generator().manual_seed(0)
    out: dict[Weight, torch.Tensor] = {}
    for p in made.places:
        if p.kind in ("scale", "shift") and p.weight not in out:
            shape = load_as(p.weight).shape
            x = torch.rand(shape, generator=draw, dtype=torch.float64)
            out[p.weight] = x + 0.5 if p.kind == "scale" else x - 0.5
    return out


def _loading(other: Mapping[Weight, torch.Tensor]) -> Load:
    return lambda w: other[w] if w in other else load_as(w)


def _same(many: Sequence[Sequence[Place]]) -> bool:
    """Whether uses of one weight want the same array of it."""
    signatures = [sorted(map(str, (p.signature for p in one))) for one in many]
    return all(s == signatures[0] for s in signatures)


# -- modules ---------------------------------------------------------------------------------------


def _module(
    graph: Graph,
    made: Rotatable,
    uses: Mapping[Weight, Mapping[Use, list[Place]]],
    basis: torch.Tensor,
    random_weights: Mapping[Weight, torch.Tensor],
    options: Options,
    told: Rotation,
) -> tuple[Graph, dict[Use, str], float]:
    source = torch_source(graph)
    model = source.module
    assert model is not None
    norms = {n.node.origin.scope: n.eps for n in made.norms}
    for path in norms:
        if not module_form.layer_norm_at(model, path):
            raise _refused(
                made, f"{path!r} is no torch.nn.LayerNorm that another norm may replace", path
            )
    for c in made.centrings:
        raise _refused(made, "forward subtracts a mean over it by itself", c.node.where)
    for layer, _ in made.unbiased:
        path = layer.node.origin.scope
        if not module_form.takes_bias(model, path, _named(layer.weight, path)):
            raise _refused(made, f"a norm shifts what {path!r} reads, and it takes no bias", path)
    owners: dict[Use, tuple[str, ...]] = {}
    for weight, some in uses.items():
        names = (weight.name, *weight.aliases)
        if any(n not in source.state for n in names):
            raise _refused(made, f"{weight.name!r} is no tensor of the module's state", weight.name)
        if _same(list(some.values())):
            owners.update(dict.fromkeys(some, names))
            continue
        for use in some:
            mine = tuple(n for n in names if n.rpartition(".")[0] == use[0].origin.scope)
            if not mine or any(mine == o for u, o in owners.items() if u in some):
                raise _refused(made, f"{weight.name!r} is read in two ways", use[0].where)
            owners[use] = mine

    def arrays(load: Load) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for some in uses.values():
            for use, places in some.items():
                if owners[use][0] not in out:
                    out.update(dict.fromkeys(owners[use], turned_array(made, places, basis, load)))
        for layer, frame in made.unbiased:
            out[f"{layer.node.origin.scope}.bias"] = bias_of(layer, frame, load)
        return {
            n: t
            for n, t in out.items()
            if not (n.rpartition(".")[0] in norms and n.endswith(".bias"))
        }

    tensors = arrays(_loading({}))
    module = module_form.with_basis(model, tensors, norms)
    before = {n: t for w, t in random_weights.items() for n in (w.name, *w.aliases)}
    error = check_basis_of_module(graph, module, before, arrays(_loading(random_weights)))
    new = capture(
        module,
        source.args,
        source.kwargs,
        source.dynamic_shapes,
        source.method,
        dynamic=options.values["dynamic"],
    )
    told.norms.update(norms)
    told.tensors = tuple(dict.fromkeys((*told.tensors, *tensors)))
    names_of = {n: w.name for w in new.weights.values() for n in (w.name, *w.aliases)}
    return new, {use: names_of.get(n[0], n[0]) for use, n in owners.items()}, error


def _named(weight: Weight, path: str) -> str:
    """The name of ``weight`` in the layer at ``path``."""
    names = (weight.name, *weight.aliases)
    return next((n for n in names if n.rpartition(".")[0] == path), weight.name)


def _refused(made: Rotatable, why: str, where: str) -> IrpruneError:
    return IrpruneError(
        f"the width {made.group.name} cannot be turned: {why}", where, "prune it without rotate"
    )


# -- files -----------------------------------------------------------------------------------------


def _file(
    graph: Graph,
    source: OnnxSource,
    made: Rotatable,
    uses: Mapping[Weight, Mapping[Use, list[Place]]],
    basis: torch.Tensor,
    random_weights: Mapping[Weight, torch.Tensor],
) -> tuple[Graph, dict[Use, str], float]:
    form = FileBasis()
    stored: dict[str, dict[Use, list[Place]]] = {}
    for weight, some in uses.items():
        found = source.stored.get(weight.name)
        if found is None or found.kind != "initializer" or source.calls is not None:
            raise _refused(made, f"{weight.name!r} is no tensor that the file stores", weight.name)
        stored.setdefault(found.name, {}).update(some)
    owners: dict[Use, str] = {}
    for name, some in stored.items():
        chosen: list[tuple[str, list[Place]]] = []
        for use, places in some.items():
            own = next((n for n, other in chosen if _same([other, places])), None)
            if own is None:
                own = name if not chosen else f"{name}.{len(chosen)}"
                chosen.append((own, places))
            owners[use] = own
            if own != name:
                form.copies[_slot(made, *use)] = own
    for n in made.norms:
        assert n.scale is not None
        index = _place(made, n.node).index
        form.norms.append(FileNorm(index, n.eps, source.stored[n.scale.name].name))
    for c in made.centrings:
        index, slot = _slot(made, c.node, c.at)
        if any(v is c.node.out for v in graph.outputs):
            raise _refused(made, f"{c.node.out.name!r} comes out of the model", c.node.where)
        form.passed[index] = slot
        form.unread.append(_place(made, c.mean).index)
    biases = {_place(made, x.node).index: (x, f) for x, f in made.unbiased}
    form.biases = {i: f"{x.node.out.name}.bias" for i, (x, _) in biases.items()}

    def arrays(load: Load) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for some in stored.values():
            for use, places in some.items():
                if owners[use] not in out:
                    out[owners[use]] = turned_array(made, places, basis, load).numpy()
        for i, (x, frame) in biases.items():
            out[form.biases[i]] = bias_of(x, frame, load).numpy()
        return out

    form.tensors = arrays(_loading({}))
    model = with_basis(source, form)
    other = {source.stored[w.name].name: t.numpy() for w, t in random_weights.items()}
    error = check_basis_of_file(
        graph,
        with_basis(source, FileBasis(other)),
        with_basis(source, form, arrays(_loading(random_weights))),
    )
    new = capture_onnx(model, files=source.files)
    assert isinstance(new.source, OnnxSource)
    new.source.renewed = source.renewed | frozenset(form.tensors)
    new.notes = list(dict.fromkeys((*graph.notes, *new.notes)))
    return new, owners, error


def _place(made: Rotatable, node: Node) -> NodePlace:
    place = node.origin.raw
    if not isinstance(place, NodePlace):
        raise _refused(made, f"{node.op!r} is no node of the file", node.where)
    return place


def _slot(made: Rotatable, node: Node, at: int) -> tuple[int, int]:
    """The node of the file and its input that operand ``at`` of ``node`` is."""
    place = _place(made, node)
    slot = place.operands[at] if at < len(place.operands) else None
    if slot is None:
        raise _refused(made, f"a tensor of {node.op!r} is read in two ways", node.where)
    return place.index, slot
