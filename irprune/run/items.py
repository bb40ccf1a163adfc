"""An item of calibration data as the graph's inputs: put into their order, and each checked, so
that a wrong shape or a NaN is named by the item it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from irprune.errors import IrpruneError
from irprune.ir.dtype import is_float, is_integer
from irprune.ir.graph import Graph, Value
from irprune.ir.size import Sym, same
from irprune.ops.dtypes import TO_TORCH
from irprune.run.batch import Batch

__all__ = ["flat"]


def flat(item: Any, graph: Graph, where: str) -> Batch:
    """An item as the graph's inputs, each checked."""
    tensors, extra = _matched(item, graph, where)
    return Batch(
        tuple(_checked(t, v, where) for t, v in zip(tensors, graph.inputs, strict=True)), extra
    )


def _matched(item: Any, graph: Graph, where: str) -> tuple[list[Any], tuple[Any, ...]]:
    """The item's tensors in the order of the graph's inputs, and what is left over. An attention
    mask that is not given is ones."""
    names = [v.name for v in graph.inputs]
    if isinstance(item, Batch):
        return list(item.inputs), item.extra
    if isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__")):
        given = {str(k): item[k] for k in item.keys()}  # noqa: SIM118 - BatchEncoding iterates otherwise
        _mask_tokens(given, graph)
        if all(n in given for n in names):
            return [given[n] for n in names], _left(given, names)
        return _called(given, graph, where)
    if isinstance(item, (torch.Tensor, np.ndarray)):
        item = (item,)
    if not isinstance(item, Sequence) or isinstance(item, (str, bytes)):
        raise IrpruneError(
            f"a {type(item).__name__} is no model input",
            where,
            "give tensors, tuples of arguments or dicts of keyword arguments",
        )
    args = tuple(item)
    tokens_alone = len(args) == 1 and len(names) == 2 and _masked_tokens(graph) is not None
    if tokens_alone and isinstance(args[0], (torch.Tensor, np.ndarray)):
        return [args[0], _all_ones(args[0])], ()
    if len(args) == len(names) or (
        all(isinstance(a, (torch.Tensor, np.ndarray)) for a in args[: len(names)])
        and len(args) > len(names)
    ):
        return list(args[: len(names)]), args[len(names) :]
    bound = graph.source.bind_args(args) if graph.source is not None else None
    if bound is not None:
        return bound
    raise IrpruneError(
        f"{len(args)} arguments for a model that takes {len(names)} tensors ({', '.join(names)})",
        where,
        "give the arguments of forward in their order, or a dict by their names",
    )


def _masked_tokens(graph: Graph) -> tuple[Value, Value] | None:
    """The first input and the second where these are numbers of tokens and their attention mask, as
    long as they are."""
    if len(graph.inputs) < 2:
        return None
    tokens, mask = graph.inputs[:2]
    fits = tokens.rank == mask.rank == 2 and same(tokens.shape[1], mask.shape[1])
    whole = is_integer(tokens.dtype) and not is_float(mask.dtype)
    return (tokens, mask) if "attention_mask" in mask.name and fits and whole else None


def _mask_tokens(given: dict[str, Any], graph: Graph) -> None:
    """Puts a mask of ones beside tokens that are given without one, as transformers does itself."""
    masked = _masked_tokens(graph)
    if masked is None or any("attention_mask" in name for name in given):
        return
    for tokens, mask in ((masked[0].name, masked[1].name), ("input_ids", "attention_mask")):
        if isinstance(given.get(tokens), (torch.Tensor, np.ndarray)):
            given[mask] = _all_ones(given[tokens])
            return


def _all_ones(tokens: Any) -> torch.Tensor:
    device = tokens.device if isinstance(tokens, torch.Tensor) else None
    return torch.ones(tuple(tokens.shape), dtype=torch.int64, device=device)


def _left(given: Mapping[str, Any], used: Iterable[str]) -> tuple[Any, ...]:
    """Labels and the like, as one dict behind the inputs."""
    rest = {k: v for k, v in given.items() if k not in set(used)}
    return (rest,) if rest else ()


def _called(
    given: Mapping[str, Any], graph: Graph, where: str
) -> tuple[list[Any], tuple[Any, ...]]:
    """Keyword arguments put into the places of the recorded call, however that one passed them."""
    bound = graph.source.bind_names(given, where) if graph.source is not None else None
    if bound is None:
        missing = [v.name for v in graph.inputs if v.name not in given]
        raise IrpruneError(
            f"no value for input {missing[0]!r}; given: {', '.join(given)}",
            where,
            f"the inputs are {', '.join(v.name for v in graph.inputs)}",
        )
    return bound[0], _left(given, bound[1])


def _checked(x: Any, value: Value, where: str) -> torch.Tensor:
    """``x`` as a tensor of the value's type. Raises IrpruneError where it is none or does not
    fit."""
    if not isinstance(x, torch.Tensor):
        try:
            x = torch.as_tensor(np.asarray(x))
        except (TypeError, ValueError):
            raise IrpruneError(
                f"input {value.name!r} is a {type(x).__name__}, not a tensor", where
            ) from None
    want = TO_TORCH[value.dtype]
    x = x.detach()
    if want.is_floating_point != x.is_floating_point():
        raise IrpruneError(
            f"input {value.name!r} holds {x.dtype}, the model takes {want}",
            where,
            "convert (and scale) the data as for the model itself",
        )
    if x.dim() == value.rank - 1 and all(
        isinstance(s, Sym) or n == s for n, s in zip(x.shape, value.shape[1:], strict=True)
    ):
        x = x[None]  # one sample
    fits = x.dim() == value.rank and all(
        isinstance(s, Sym) or same(int(n), s)
        for n, s in zip(x.shape[1:], value.shape[1:], strict=True)
    )
    if not fits or not x.numel():
        shown = ", ".join(str(s) for s in value.shape)
        raise IrpruneError(
            f"input {value.name!r} has shape {list(x.shape)}, the model takes [{shown}]",
            where,
            "the first dimension may be any number of samples",
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise IrpruneError(
            f"input {value.name!r} holds NaN or infinity", where, "clean the calibration data"
        )
    made: torch.Tensor = x.to(want)
    return made
