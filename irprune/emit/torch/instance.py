"""The same cut in the user's own instance: parameters and buffers sliced, size attributes of its
modules updated.

Layers of ``torch.nn`` have known attributes. A module of the user's may hold sizes in integers of
its own (``self.num_heads``): where an attribute equals a size that the cut changed in that module,
the new size is tried. The instance must then compute what the emitted module computes, on the
example and on random inputs; else everything is put back and the error names the line that stood in
the way."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from irprune.analysis.branches import branches_of
from irprune.base.tolerance import FLOAT32
from irprune.choice.plan import Plan
from irprune.choice.replay import choose_by_plan
from irprune.emit.torch.module import emit_module
from irprune.emit.torch.skipped import Skipped, several_results
from irprune.errors import IrpruneError, gist
from irprune.frontend.torch.capture import capture
from irprune.frontend.torch.restore_state import evaluating
from irprune.frontend.torch.source import TorchSource, torch_source
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.arrays import as_tensor
from irprune.passes.infer_axes import InferAxes
from irprune.passes.slice import Slice
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, over_tensors, redraw
from irprune.run.take import kept_indices, take

__all__ = ["SameOutputs", "apply_to"]

_TRIALS = 64  # calls of the model that a search for size attributes may cost


def apply_to(model: nn.Module, graph: Graph, cut: Graph, repaired: bool = False) -> nn.Module:
    """Cut ``model`` as ``graph`` was cut and return it; ``repaired`` says that ``cut`` holds
    refitted weights.

    Its parameters are new ones: an optimizer made before does not know them. Raises IrpruneError,
    with ``model`` as it was, where that cannot be."""
    edit = _Edit(model)
    done = False
    try:
        whole, narrow = _with_unused(graph, cut, model)
        skipped = _skipped(model, whole)
        _cut_tensors(edit, whole)
        if repaired:
            _repair_tensors(edit, cut)
        for path, module in skipped.items():
            above, _, own = path.rpartition(".")
            edit.attribute(model.get_submodule(above), own, module)
        _set_layers(edit, narrow)
        check = SameOutputs(torch_source(graph), emit_module(cut), model)
        _search(edit, list(_candidates(model, whole, narrow)), check)
        done = True
    finally:
        if not done:
            edit.undo()
    return model


class _Edit:
    """Attributes of modules set so that they can be put back, tensors among them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before: list[Callable[[], None]] = []

    def attribute(self, module: Any, name: str, value: Any) -> None:
        """Set a plain attribute."""
        old = getattr(module, name)
        self._before.append(lambda: setattr(module, name, old))
        setattr(module, name, value)

    def tensor(self, module: nn.Module, name: str, new: torch.Tensor) -> None:
        """Replace a parameter or buffer."""
        place = module._parameters if name in module._parameters else module._buffers
        old = place[name]
        assert old is not None
        self._before.append(lambda: setattr(module, name, old))
        setattr(module, name, new)

    def mark(self) -> int:
        return len(self._before)

    def undo(self, mark: int = 0) -> None:
        """Put back all that was set since ``mark``, last first."""
        while len(self._before) > mark:
            self._before.pop()()


# -- tensors ---------------------------------------------------------------------------------------


def _with_unused(graph: Graph, narrow: Graph, model: nn.Module) -> tuple[Graph, Graph]:
    """The graph with its choice, and the cut one; captured again with what no output needs where
    ``model`` holds weights for it.

    The pruned module has no such branches; the instance runs them still, so that they must take the
    narrower tensors."""
    source = torch_source(graph)
    for weight in graph.weights.values():
        if weight.kind != "constant":
            _find(model, weight.name, weight)
    used = {name for w in graph.weights.values() for name in (w.name, *w.aliases)}
    if all(name in used for name, entry in source.state.items() if entry.kind == "parameter"):
        return graph, narrow
    again = capture(model, source.args, source.kwargs, source.dynamic_shapes)
    InferAxes().run(again)
    try:
        choose_by_plan(Plan.from_graph(graph), again)
    except (
        IrpruneError
    ):  # a branch that nobody reads holds on to what was cut; perhaps forward takes another way
        return graph, narrow
    cut = again.copy()
    Slice().run(cut)
    return again, cut


def _cut_tensors(edit: _Edit, graph: Graph) -> None:
    """Slice every parameter and buffer that the choice cuts."""
    assert graph.kept is not None
    for weight in graph.weights.values():
        indices = kept_indices(weight, graph.kept)
        if weight.kind != "constant" and any(i is not None for i in indices):
            _replace(edit, weight, partial(take, indices=indices))


def _repair_tensors(edit: _Edit, cut: Graph) -> None:
    """Give every parameter and buffer the values that the cut graph has after its repair."""

    def repaired(weight: Weight, held: torch.Tensor) -> torch.Tensor:
        return as_tensor(weight.load()).clone().to(held)

    for weight in cut.weights.values():
        if weight.kind != "constant":
            _replace(edit, weight, partial(repaired, weight))


def _replace(edit: _Edit, weight: Weight, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put a changed tensor in the place of ``weight``; names of one tensor keep sharing the new
    one."""
    made: dict[int, torch.Tensor] = {}
    for name in (weight.name, *weight.aliases):
        module, own, held = _find(edit.model, name, weight)
        if id(held) not in made:
            new = change(held.detach())
            made[id(held)] = (
                nn.Parameter(new, held.requires_grad) if isinstance(held, nn.Parameter) else new
            )
        edit.tensor(module, own, made[id(held)])


def _find(model: nn.Module, name: str, weight: Weight) -> tuple[nn.Module, str, torch.Tensor]:
    path, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        held = getattr(module, own)
    except AttributeError:
        raise IrpruneError(
            f"the model has no {name!r}",
            type(model).__name__,
            "apply the cut to the model that was pruned",
        ) from None
    if tuple(held.shape) != tuple(weight.shape):
        raise IrpruneError(
            f"{name!r} has shape {list(held.shape)}, the pruned model's had {list(weight.shape)}",
            type(model).__name__,
            "apply the cut to the model that was pruned, once",
        )
    return module, own, held


def _skipped(model: nn.Module, graph: Graph) -> dict[str, Skipped]:
    """What is to stand in the place of the modules of branches that go as a whole, by their paths.
    Raises IrpruneError where a branch is no module of its own."""
    assert graph.kept is not None
    dropped = graph.kept.dropped
    gone = [b for b in branches_of(graph) if b.join.out.name in dropped] if dropped else []
    known = dict(model.named_modules())
    for branch in gone:
        if branch.name not in known:
            raise IrpruneError(
                f"the branch at {branch.join.where} is no module of its own",
                type(model).__name__,
                "use pruned.module, or prune with drop_blocks=False",
            )
    if not gone:
        return {}
    source = torch_source(graph)
    here = next((t.device for t in model.parameters()), torch.device("cpu"))
    args, kwargs = over_tensors((source.args, dict(source.kwargs)), lambda t: t.to(here))
    with evaluating(model):
        several = several_results(model, [b.name for b in gone], args, kwargs)
    return {path: Skipped(count) for path, count in several.items()}


# -- layers of torch.nn ----------------------------------------------------------------------------


def _set_layers(edit: _Edit, cut: Graph) -> None:
    """Size attributes of standard layers from the shapes that their tensors have now, and from the
    nodes they run as."""
    ran: dict[str, Node] = {}
    for node in cut.nodes:
        for value in node.inputs:
            if isinstance(value, Weight):
                for name in (value.name, *value.aliases):
                    ran.setdefault(name.rpartition(".")[0], node)
    for path, module in edit.model.named_modules():
        for name, value in _layer_sizes(module, ran.get(path)):
            if getattr(module, name) != value:
                edit.attribute(module, name, value)


def _layer_sizes(module: nn.Module, node: Node | None) -> Iterator[tuple[str, Any]]:
    w = module._parameters.get("weight")
    if isinstance(module, nn.Linear) and w is not None:
        yield from (("in_features", w.shape[1]), ("out_features", w.shape[0]))
    elif isinstance(module, nn.modules.conv._ConvNd) and w is not None:
        groups = node.attrs.get("groups", 1) if node is not None else module.groups
        across, along = w.shape[0], w.shape[1] * groups
        swap = isinstance(module, nn.modules.conv._ConvTransposeNd)
        yield from (
            ("groups", groups),
            ("in_channels", across if swap else along),
            ("out_channels", along if swap else across),
        )
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = next((t for t in (w, module.running_mean) if t is not None), None)
        if sized is not None:
            yield "num_features", sized.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and w is not None:
        yield "normalized_shape", tuple(w.shape)
    elif isinstance(module, nn.GroupNorm):
        if node is not None and "num_groups" in node.attrs:
            yield "num_groups", node.attrs["num_groups"]
        if w is not None:
            yield "num_channels", w.shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and w is not None:
        yield from (("num_embeddings", w.shape[0]), ("embedding_dim", w.shape[1]))
    elif isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        first: Any = module._parameters["weight_ih_l0"]
        yield from (("input_size", first.shape[1]), ("hidden_size", first.shape[0] // gates))
        if module.proj_size:
            yield "proj_size", module._parameters["weight_hr_l0"].shape[0]  # type: ignore[union-attr]
    elif isinstance(module, nn.PReLU) and w is not None:
        yield "num_parameters", w.shape[0]
    elif isinstance(module, nn.Bilinear) and w is not None:
        yield from (
            ("out_features", w.shape[0]),
            ("in1_features", w.shape[1]),
            ("in2_features", w.shape[2]),
        )


# -- the user's own attributes ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """An attribute that may hold a size: ``key`` is the same for all instances of a class, which
    are decided together."""

    module: Any
    path: str
    name: str
    old: Any
    new: Any
    sure: bool

    @property
    def key(self) -> tuple[type, str]:
        return type(self.module), self.name


def _candidates(model: nn.Module, whole: Graph, cut: Graph) -> Iterator[_Candidate]:
    """Integers (alone or in tuples and lists) of the user's modules that equal a size which the cut
    changed in that module."""
    changes = _changes(whole, cut)
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") and not isinstance(
            module, nn.MultiheadAttention
        ):
            continue
        told, seen = _below(changes, path)
        for name, value in list(vars(module).items()):
            if name.startswith("_") or name == "training":
                continue
            for change, sure in ((told, True), (seen, False)):
                new = _renewed(value, change)
                if new is not None and new != value:
                    yield _Candidate(module, path, name, value, new, sure)
                    break


def _below(
    changes: dict[str, tuple[dict[int, set[int]], dict[int, set[int]]]], path: str
) -> tuple[dict[int, int], dict[int, int]]:
    """Old size -> new size in the module at ``path`` and below, from attributes of nodes and from
    shapes. Ambiguous ones are left out."""
    merged: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
    for scope, maps in changes.items():
        if scope == path or path == "" or scope.startswith(f"{path}."):
            for into, one in zip(merged, maps, strict=True):
                for old, new in one.items():
                    into.setdefault(old, set()).update(new)
    return tuple({old: min(new) for old, new in m.items() if len(new - {old}) == 1} for m in merged)  # type: ignore[return-value]


def _changes(
    whole: Graph, cut: Graph
) -> dict[str, tuple[dict[int, set[int]], dict[int, set[int]]]]:
    """For each module path the sizes before and after, in the attributes of its nodes and in the
    shapes of their values."""
    after = {node.outputs[0].name: node for node in cut.nodes if node.outputs}
    out: dict[str, tuple[dict[int, set[int]], dict[int, set[int]]]] = {}
    for node in whole.nodes:
        twin = after.get(node.outputs[0].name) if node.outputs else None
        if twin is None:
            continue
        told, seen = out.setdefault(node.origin.scope, ({}, {}))
        for name, value in node.attrs.items():
            for a, b in _pairs(value, twin.attrs.get(name)):
                told.setdefault(a, set()).add(b)
        for v, w in (
            *zip(node.inputs, twin.inputs, strict=False),
            *zip(node.outputs, twin.outputs, strict=False),
        ):
            if v is not None and w is not None:
                for a, b in _pairs(list(v.type.shape or ()), list(w.type.shape or ())):
                    seen.setdefault(a, set()).add(b)
    return out


def _pairs(a: Any, b: Any) -> Iterator[tuple[int, int]]:
    if isinstance(a, int) and isinstance(b, int) and not isinstance(a, bool):
        yield a, b
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _pairs(x, y)


def _renewed(value: Any, change: dict[int, int]) -> Any:
    """``value`` with its sizes replaced; None where it is nothing that holds sizes."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return change.get(value, value)
    if (
        type(value) in (list, tuple)
        and value
        and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
    ):
        return type(value)(change.get(x, x) for x in value)
    return None


# -- the search ------------------------------------------------------------------------------------


class SameOutputs:
    """Whether the instance computes what the emitted module computes; remembers the failure that
    came farthest in ``forward``."""

    def __init__(self, source: TorchSource, emitted: nn.Module, model: nn.Module) -> None:
        self.model = model
        here = next(
            (t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu")
        )
        calls = [
            (tuple(source.args), dict(source.kwargs)),
            redraw(source.args, source.kwargs, seed=2),
        ]
        self.calls = over_tensors(calls, lambda t: t.to(here))
        there = next(
            (t.device for t in (*emitted.parameters(), *emitted.buffers())), torch.device("cpu")
        )
        with torch.no_grad():
            self.expected = [
                flat_tensors(emitted(*a, **k))
                for a, k in over_tensors(calls, lambda t: t.to(there))
            ]
        self.failure, self.where, self._reached = "", "", -1

    def __call__(self) -> bool:
        modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()
        ran: list[nn.Module] = []
        hook = register_module_forward_pre_hook(lambda module, _: ran.append(module))
        try:
            with torch.no_grad():
                for (args, kwargs), expected in zip(self.calls, self.expected, strict=True):
                    error = _difference(flat_tensors(self.model(*args, **kwargs)), expected)
                    if not error <= FLOAT32:
                        self._failed(
                            f"it then computes something else (error {error:.1e})", "", len(ran)
                        )
                        return False
        except Exception as refused:  # whatever forward raises when a size does not fit
            self._failed(f"forward then fails: {gist(refused)}", _line_of(refused), len(ran))
            return False
        finally:
            hook.remove()
            for m, mode in modes:
                m.training = mode
        return True

    def _failed(self, failure: str, where: str, reached: int) -> None:
        if reached > self._reached:
            self.failure, self.where, self._reached = failure, where, reached


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The relative error; of tensors without values it is told by their shapes."""
    if any(t.is_meta for t in (*ours, *theirs)):
        return 0.0 if [t.shape for t in ours] == [t.shape for t in theirs] else float("inf")
    return relative_error(ours, [t.cpu() for t in theirs])


def _line_of(error: BaseException) -> str:
    """The innermost line outside torch, with its text: most likely a size written into the code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if "/torch/" not in f.filename and not f.filename.endswith("emit/torch/instance.py")
    ]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def _search(edit: _Edit, candidates: list[_Candidate], check: SameOutputs) -> None:
    """Find the attributes to change: those that nodes name, then all, then sets of classes one by
    one. Raises where none does."""
    if check():
        return
    keys = list(dict.fromkeys(c.key for c in candidates))
    sure = [k for k in keys if any(c.sure for c in candidates if c.key == k)]
    trials: Iterator[tuple[tuple[type, str], ...]] = itertools.chain(
        [tuple(sure), tuple(keys)],
        (some for n in range(1, len(keys)) for some in itertools.combinations(keys, n)),
    )
    tried: set[tuple[tuple[type, str], ...]] = {()}
    for some in trials:
        if some in tried:
            continue
        if len(tried) > _TRIALS:
            break
        tried.add(some)
        mark = edit.mark()
        for c in candidates:
            if c.key in some:
                edit.attribute(c.module, c.name, c.new)
        if check():
            return
        edit.undo(mark)
    held = "; ".join(f"{kind.__name__}.{name}" for kind, name in keys)
    raise IrpruneError(
        f"the cut cannot be made in this instance: {check.failure}",
        check.where or type(edit.model).__name__,
        (f"tried {held}; " if held else "")
        + "take the size in that line from the tensor, or use pruned.module; the model is as it was",
    )
