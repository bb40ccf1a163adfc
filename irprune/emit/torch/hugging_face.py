"""A pruned transformers model as a folder that ``from_pretrained`` of the same class loads, where
its config can say the new sizes.

A config names sizes by its own words (``intermediate_size``, ``n_embd``, ``num_key_value_heads``),
once for all layers. Which field holds which size is found by value and by trial: fields whose value
the cut changed somewhere are set anew, models are built on the meta device, and the fields are
turned until every parameter has its new shape. What shapes cannot tell (``n_head`` of GPT-2) is
decided by the outputs. The folder is then loaded again and must compute what the pruned module
computes."""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irprune.analysis.kinds import by_use
from irprune.base.quiet import quiet
from irprune.driver.pipelines import cut_graph
from irprune.emit.torch.instance import SameOutputs
from irprune.emit.torch.module import emit_module, plain
from irprune.errors import gist
from irprune.frontend.torch.source import torch_source
from irprune.ir.axis import factors, parts
from irprune.ir.graph import Graph
from irprune.ir.size import Sym, probe_of
from irprune.ops.dtypes import TO_TORCH
from irprune.run.stored_tensor import StoredTensor, is_stored

__all__ = ["config_refuses", "pretrained", "save_pretrained", "update_config"]

_TRIALS = 48  # models that are filled and run to decide the fields that no shape shows
_SHOWN = 6  # sizes named in a refusal
_LIKELY = re.compile(
    r"hidden|embd|embed|d_model|dim|width|inter|ffn|d_ff|d_kv|inner|head|kv|channel|expan|size"
)
_UNLIKELY = re.compile(
    r"layer|experts|vocab|position|patch|image|label|token|window|type|bucket|beam|per_tok|top_k|kernel|stride"
)
_OF_HEADS = re.compile(r"head_dim|d_kv|d_head|head_size|kv_channels")
_MAY_BE_NONE = (
    "head_dim",
    "num_key_value_heads",
    "n_inner",
    "intermediate_size",
    "ffn_dim",
    "moe_intermediate_size",
)

Shapes = dict[str, tuple[int, ...]]


def save_pretrained(graph: Graph, cut: Graph, module: nn.Module, folder: Path) -> str:
    """Write ``folder`` for ``from_pretrained`` and return "", or write nothing and return why: the
    sizes that the config cannot say."""
    source = torch_source(graph)
    model = source.module
    assert model is not None
    with quiet():
        found = pretrained(graph, cut, module)
        if isinstance(found, str):
            return found
        found.save_pretrained(str(folder))
        loaded = type(model).from_pretrained(str(folder), local_files_only=True)  # type: ignore[attr-defined]
        loaded = _as(loaded, model)
        check = SameOutputs(source, module, loaded)
        if not check():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            return f"from_pretrained gives another model: {check.failure}"
    return ""


def pretrained(graph: Graph, cut: Graph, module: nn.Module) -> Any:
    """A model of the captured one's class with the sizes and weights of ``cut``, whose config says
    them; or the text that says which sizes its config cannot say. ``module`` is what the model must
    compute."""
    model = torch_source(graph).module
    assert model is not None
    if graph.kept is not None and graph.kept.dropped:
        return "whole branches were left out, which no config says"
    found = _search(graph, module, model, _tensors(model, cut))
    if isinstance(found, str):
        return found
    held = getattr(model, "generation_config", None)
    if held is not None:
        found.generation_config = copy.deepcopy(held)
    return found


def update_config(model: Any, graph: Graph, cut: Graph, module: nn.Module) -> str:
    """Let the config of ``model``, the user's own instance in which the cut was made, say the new
    sizes, and return ""; or why not, with the config as it was, where no config can, or where the
    instance would then compute something else than ``module``."""
    with quiet():
        found = pretrained(graph, cut, module)
        if isinstance(found, str):
            return found
        undo = list(_take_over(model.config, found.config))
        if SameOutputs(torch_source(graph), module, model)():
            return ""
        for config, name, old in reversed(undo):
            setattr(config, name, old)
        return "with the new sizes in its config the instance computes something else"


def _take_over(config: Any, other: Any) -> Iterator[tuple[Any, str, Any]]:
    """Set what ``other`` says otherwise than ``config``; gives what was there before."""
    for name, value in vars(other).items():
        old = vars(config).get(name)
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _take_over(old, value)
        elif not name.startswith("_") and old != value and isinstance(value, (int, list, tuple)):
            yield config, name, old
            setattr(config, name, value)


def config_refuses(graph: Graph) -> str:
    """Which sizes of the choice of ``graph``, before it is cut, no config of the model's class can
    say, or that a model of such a config computes something else; "" where one can.

    What a model computes whose weights are read when they are used is not looked at."""
    model, kept = torch_source(graph).module, graph.kept
    assert model is not None and kept is not None
    known = model.state_dict(keep_vars=True)
    target: Shapes = {}
    for weight in graph.weights.values():
        shape = tuple(probe_of(kept.size(a)) for a in weight.axes or ())
        target.update({n: shape for n in (weight.name, *weight.aliases) if n in known})
    with quiet():
        fields = _every_field(graph, model)
        values = [f.new[0] if f.likely else f.old for f in fields]
        wrong, values = _descend(model, fields, values, target)
        if wrong:
            return _refused(model, fields, values, target)
        if is_stored(model) or kept.dropped:
            return ""
        cut = cut_graph(graph)
        found = pretrained(graph, cut, emit_module(cut))
        return found if isinstance(found, str) else ""


def _tensors(model: nn.Module, cut: Graph) -> dict[str, torch.Tensor]:
    """The cut parameters and buffers by their names in the user's model, aliases included."""
    out: dict[str, torch.Tensor] = {}
    known = model.state_dict(keep_vars=True)
    for weight in cut.weights.values():
        names = [n for n in (weight.name, *weight.aliases) if n in known]
        if names and isinstance(known[names[0]], StoredTensor):
            shape = [probe_of(s) for s in weight.shape]
            kind = TO_TORCH[weight.dtype]
            handle = StoredTensor(partial(plain, weight.load), shape, kind)
            out.update(dict.fromkeys(names, handle))
        elif names:
            out.update(dict.fromkeys(names, weight.load().detach()))
    return out


# -- fields and what they may become ---------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """A field of a config, by the way to it: its value, what it may become, and whether its name
    says that it is a width."""

    way: tuple[str, ...]
    old: Any
    new: tuple[Any, ...]
    likely: bool


Changes = dict[int, list[int]]  # old size -> new sizes, most common first


def _changes(graph: Graph) -> tuple[Changes, Changes]:
    """What happened to sizes: of whole dimensions, of their pieces, and of runs of factors (kv
    groups x repeats); and of the size of heads alone, which may be as large as their number."""
    seen: dict[int, Counter[int]] = {}
    kept = graph.kept
    assert kept is not None
    heads: dict[int, Counter[int]] = {}
    for axis, kind in by_use(graph).items():
        if kind == "head_dim" and not isinstance(axis.size, Sym):
            heads.setdefault(axis.size, Counter())[probe_of(kept.size(axis))] += 1
    for weight in graph.weights.values():
        for axis in weight.axes or ():
            for piece in (axis, *parts(axis)):
                many = factors(piece)
                for first, last in itertools.combinations(range(len(many) + 1), 2):
                    run = many[first:last]
                    if any(isinstance(x.size, Sym) for x in run):
                        continue
                    old = new = 1
                    for x in run:
                        old *= probe_of(x.size)
                        new *= probe_of(kept.size(x))
                    seen.setdefault(old, Counter())[new] += 1
    return _sorted(seen), _sorted(heads)


def _sorted(seen: dict[int, Counter[int]]) -> Changes:
    return {old: [n for n, _ in news.most_common() if n != old] for old, news in seen.items()}


def _fields(
    config: Any, every: Changes, heads: Changes, way: tuple[str, ...] = ()
) -> Iterator[_Field]:
    for name, value in vars(config).items():
        here = (*way, name)
        changes = heads if _OF_HEADS.search(name) and value in heads else every
        fresh = list(dict.fromkeys(n for news in changes.values() for n in news))
        likely = bool(_LIKELY.search(name)) and not _UNLIKELY.search(name)
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _fields(value, every, heads, here)
        elif name.startswith("_") or isinstance(value, bool):
            continue
        elif value is None and name in _MAY_BE_NONE:
            whole = tuple(heads) if _OF_HEADS.search(name) else ()  # that kept their size
            yield _Field(here, None, tuple(dict.fromkeys((*whole, *fresh))), False)
        elif isinstance(value, int) and changes.get(value):
            yield _Field(here, value, tuple(changes[value]), likely)
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
            renewed = type(value)(changes[v][0] if changes.get(v) else v for v in value)
            if renewed != value:
                yield _Field(here, value, (renewed,), likely)


def _every_field(graph: Graph, model: Any) -> list[_Field]:
    """The fields that may say new sizes. Among them is ``head_dim`` where a config lacks it, so
    that heads are as wide as the hidden size says, and the class reads it if it is there."""
    fields = list(_fields(model.config, *_changes(graph)))
    names = {*dir(type(model.config)), *vars(model.config)}
    if "head_dim" in names or not {"hidden_size", "num_attention_heads"} <= {*names}:
        return fields
    assert graph.kept is not None
    kept = graph.kept
    uses = [x for x, kind in by_use(graph).items() if kind == "head_dim"]
    widths = {probe_of(kept.size(x)) for x in uses if not isinstance(x.size, Sym)}
    if not widths:
        return fields
    own = _Field(("head_dim",), None, tuple(sorted(widths, reverse=True)), True)
    plain = _shapes(model.config, model)
    twice = 2 * model.config.hidden_size // model.config.num_attention_heads
    return [own, *fields] if _shapes(_config(model, [own], [twice]), model) != plain else fields


def _config(model: Any, fields: list[_Field], values: list[Any]) -> Any:
    config = copy.deepcopy(model.config)
    for field, value in zip(fields, values, strict=True):
        at = config
        for step in field.way[:-1]:
            at = getattr(at, step)
        if vars(at).get(field.way[-1]) != value:
            setattr(at, field.way[-1], value)
    return config


# -- the search ------------------------------------------------------------------------------------


def _search(
    graph: Graph, module: nn.Module, model: nn.Module, wanted: dict[str, torch.Tensor]
) -> Any:
    """A model of the same class with the new sizes and weights, or the text that says which sizes
    stood in the way."""
    target = {name: tuple(t.shape) for name, t in wanted.items()}
    fields = _every_field(graph, model)
    values = [f.new[0] if f.likely else f.old for f in fields]
    wrong, values = _descend(model, fields, values, target)
    if wrong:
        return _refused(model, fields, values, target)
    free = [
        k
        for k in range(len(fields))
        if any(
            v != values[k] and _misfit(model, fields, _with(values, k, v), target) == 0
            for v in (fields[k].old, *fields[k].new)
        )
    ]
    failure = ""
    for some in _turns(fields, values, free):
        trial = list(values)
        for k, v in some.items():
            trial[k] = v
        if some and _misfit(model, fields, trial, target):
            continue
        made = _filled(model, _config(model, fields, trial), wanted)
        check = SameOutputs(torch_source(graph), module, made)
        if check():
            return made
        failure = failure or check.failure
    turned = ", ".join(".".join(fields[k].way) for k in free) or "the config"
    return (
        f"every shape fits, but the class computes otherwise from the new sizes (a scale that follows a size, or rotary tables), "
        f"whatever {turned} says: {failure}"
    )


def _descend(
    model: nn.Module, fields: list[_Field], values: list[Any], target: Shapes
) -> tuple[int, list[Any]]:
    """Turn one field after another, and pairs where one alone does not help, as long as fewer
    shapes are wrong."""
    best = _misfit(model, fields, values, target)
    improved = True
    while best and improved:
        improved = False
        for k, field in enumerate(fields):
            for value in (field.old, *field.new):
                if value == values[k]:
                    continue
                trial = _with(values, k, value)
                wrong = _misfit(model, fields, trial, target)
                if wrong < best:
                    best, values, improved = wrong, trial, True
                if not best:
                    return best, values
    return best, values


def _turns(fields: list[_Field], values: list[Any], free: list[int]) -> Iterator[dict[int, Any]]:
    """Settings of the fields that no shape shows: as they are, then each alone, then several."""
    count = 0
    for n in range(len(free) + 1):
        for some in itertools.combinations(free, n):
            choices = [
                [v for v in dict.fromkeys((fields[k].old, *fields[k].new)) if v != values[k]]
                for k in some
            ]
            for each in itertools.product(*choices):
                if count >= _TRIALS:
                    return
                count += 1
                yield dict(zip(some, each, strict=True))


def _with(values: list[Any], k: int, value: Any) -> list[Any]:
    return [*values[:k], value, *values[k + 1 :]]


def _misfit(model: nn.Module, fields: list[_Field], values: list[Any], target: Shapes) -> int:
    """How many tensors get another shape than ``target`` says; one more than all where the config
    is refused."""
    built = _shapes(_config(model, fields, values), model)
    if isinstance(built, str):
        return len(target) + 1
    return sum(built.get(name) != shape for name, shape in target.items())


def _shapes(config: Any, model: nn.Module) -> Shapes | str:
    """The shapes that a model of this config has; where the class or the config refuses it, why."""
    try:
        type(config).from_dict(config.to_dict())  # a config is checked when it is made
        with torch.device("meta"):
            twin = type(model)(copy.deepcopy(config))
    except Exception as refused:  # a class refuses sizes that do not fit with errors of every kind
        return gist(refused)
    return {name: tuple(t.shape) for name, t in twin.state_dict().items()}


def _filled(model: nn.Module, config: Any, wanted: dict[str, torch.Tensor]) -> nn.Module:
    """A model of the config that holds the cut tensors; those that the captured call does not use
    are freshly initialised."""
    if is_stored(model):
        loader: Any = type(model)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kept: nn.Module = loader.from_pretrained(None, config=config, state_dict=dict(wanted))
        return kept.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = _as(type(model)(config), model)
    held = made.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in wanted.items():
            held[name].copy_(tensor)
    return made


def _as(made: nn.Module, model: nn.Module) -> nn.Module:
    """``made`` on the device of ``model``, each tensor in the type of its like there (tables of
    positions are in float32 in a model of 16 bits), in eval mode."""
    first = next(model.parameters())
    types = {n: t.dtype for n, t in (*model.named_parameters(), *model.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(types.get(name, first.dtype))
    return made.to(first.device).eval()


def _refused(model: nn.Module, fields: list[_Field], values: list[Any], target: Shapes) -> str:
    """What the nearest config says otherwise than ``target``."""
    built = _shapes(_config(model, fields, values), model)
    if isinstance(built, str):
        return f"the config refuses the new sizes: {built}"
    wrong = [
        f"{name} is {_by(shape)}, the config gives {_by(built[name])}"
        if name in built
        else f"{name} is not built"
        for name, shape in target.items()
        if built.get(name) != shape
    ]
    more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return f"the config cannot say these sizes: {'; '.join(wrong[:_SHOWN])}{more}"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
