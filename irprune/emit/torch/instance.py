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
from collections.abc import Callable, Iterator, Sequence
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
from irprune.emit.torch.observers import cut_observers
from irprune.emit.torch.size_attributes import SizeAttribute, candidates, stale
from irprune.emit.torch.skipped_branch import Skipped, several_results
from irprune.emit.torch.wrappers import check_unwrapped
from irprune.errors import IrpruneError, gist
from irprune.frontend.torch.capture import capture
from irprune.frontend.torch.restore_state import attributes_kept, buffers_kept, evaluating
from irprune.frontend.torch.source import TorchSource, torch_source
from irprune.ir.graph import Graph, Node, Weight
from irprune.ir.size import probe_of
from irprune.ops.arrays import as_tensor
from irprune.ops.torch.layer_classes import layer_sizes
from irprune.passes.infer_axes import InferAxes
from irprune.passes.slice import Slice
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, over_tensors, redraw, to_device
from irprune.run.stored_tensor import StoredTensor, module_device
from irprune.run.take import kept_indices, take

__all__ = ["SameOutputs", "apply_to"]

_SEED = 0
_TRIALS = 64  # calls of the model that a search for size attributes may cost


def apply_to(
    model: nn.Module,
    graph: Graph,
    cut: Graph,
    repaired: bool = False,
    notes: list[str] | None = None,
) -> nn.Module:
    """Cut ``model`` as ``graph`` was cut and return it; ``repaired`` says that ``cut`` holds
    refitted weights. ``notes`` is told which attributes still hold an old size.

    Its parameters are new ones: an optimizer made before does not know them. Raises IrpruneError,
    with ``model`` as it was, where that cannot be."""
    check_unwrapped(model)
    for path, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and _changes_in(path, graph):
            raise IrpruneError(
                f"the cut cannot be made in this instance: {path!r} is a torch.jit script, whose "
                "code is fixed",
                type(model).__name__,
                "use pruned.module, or give the module that the script was made from",
            )
    edit = _Edit(model)
    done = False
    try:
        whole, narrow = _with_unused(graph, cut, model)
        skipped = _skipped(model, whole)
        cut_observers(model, whole, edit.tensor)
        _cut_tensors(edit, whole)
        if repaired:
            _repair_tensors(edit, cut)
        for path, module in skipped.items():
            above, _, own = path.rpartition(".")
            edit.attribute(model.get_submodule(above), own, module)
        _set_layers(edit, narrow)
        check = SameOutputs(torch_source(graph), emit_module(cut), model)
        _search(edit, list(candidates(model, whole, narrow)), check)
        left = _renew(edit, list(stale(model, whole, narrow)), check)
        if left and notes is not None:
            notes.append(f"apply_to leaves the sizes in {', '.join(left)} as they were")
        done = True
    finally:
        if not done:
            edit.undo()
    return model


def _changes_in(path: str, graph: Graph) -> bool:
    """Whether the cut changes a weight of the module at ``path``."""
    assert graph.kept is not None
    inside = f"{path}." if path else ""
    return any(
        name.startswith(inside)
        for weight in graph.weights.values()
        if any(i is not None for i in kept_indices(weight, graph.kept))
        for name in (weight.name, *weight.aliases)
    )


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
            shape = [probe_of(graph.kept.size(a)) for a in weight.axes or ()]
            _replace(edit, weight, partial(take, indices=indices), shape)


def _repair_tensors(edit: _Edit, cut: Graph) -> None:
    """Give every parameter and buffer the values that the cut graph has after its repair."""

    def repaired(weight: Weight, held: torch.Tensor) -> torch.Tensor:
        return as_tensor(weight.load()).clone().to(held.device, held.dtype)

    for weight in cut.weights.values():
        if weight.kind != "constant":
            shape = [probe_of(s) for s in weight.shape]
            _replace(edit, weight, partial(repaired, weight), shape)


def _replace(
    edit: _Edit,
    weight: Weight,
    change: Callable[[torch.Tensor], torch.Tensor],
    shape: Sequence[int],
) -> None:
    """Put a changed tensor, of ``shape``, in the place of ``weight``; names of one tensor keep
    sharing the new one. What is read when it is used is changed then."""
    made: dict[int, torch.Tensor] = {}
    for name in (weight.name, *weight.aliases):
        module, own, held = _find(edit.model, name, weight)
        if id(held) not in made:
            new = held.detach()
            if isinstance(new, StoredTensor):
                new = StoredTensor(partial(_changed, new, change), shape, new.dtype, new.device)
            else:
                new = change(new)
            made[id(held)] = (
                nn.Parameter(new, held.requires_grad) if isinstance(held, nn.Parameter) else new
            )
        edit.tensor(module, own, made[id(held)])


def _changed(held: StoredTensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return change(held.read())


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
    args, kwargs = to_device((source.args, dict(source.kwargs)), module_device(model))
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
        for name, value in layer_sizes(module, ran.get(path)):
            if getattr(module, name) != value:
                edit.attribute(module, name, value)


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
        self.expected = []
        with torch.no_grad(), torch.random.fork_rng():
            for a, k in over_tensors(calls, lambda t: t.to(there)):
                torch.manual_seed(_SEED)  # what is drawn in both is the same
                self.expected.append(flat_tensors(emitted(*a, **k)))
        self.failure, self.where, self._reached = "", "", -1

    def __call__(self) -> bool:
        ran: list[nn.Module] = []
        hook = register_module_forward_pre_hook(lambda module, _: ran.append(module))
        try:
            with (
                evaluating(self.model),
                attributes_kept(self.model),
                buffers_kept(self.model),
                torch.random.fork_rng(),
            ):
                for (args, kwargs), expected in zip(self.calls, self.expected, strict=True):
                    torch.manual_seed(_SEED)
                    made = self.model(
                        *over_tensors(args, torch.clone), **over_tensors(kwargs, torch.clone)
                    )
                    error = _difference(flat_tensors(made), expected)
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


def _search(edit: _Edit, candidates: list[SizeAttribute], check: SameOutputs) -> None:
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


def _renew(edit: _Edit, found: Sequence[SizeAttribute | str], check: SameOutputs) -> list[str]:
    """Bring attributes that forward does not read up to the new sizes, together or, where the
    instance then computes something else, one by one; the names of those that stay."""
    fresh = [c for c in found if isinstance(c, SizeAttribute)]
    left = [c for c in found if isinstance(c, str)]
    mark = edit.mark()
    for c in fresh:
        edit.attribute(c.module, c.name, c.new)
    if not fresh or check():
        return left
    edit.undo(mark)
    for c in fresh:
        mark = edit.mark()
        edit.attribute(c.module, c.name, c.new)
        if not check():
            edit.undo(mark)
            left.append(f"{c.path}.{c.name}" if c.path else c.name)
    return left
