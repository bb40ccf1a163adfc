"""A model whose parameters are divided among ranks (DTensor: ``fully_shard``, tensor parallel) as
a plain one: a twin whose parameters lie in files that each node writes once and all of its ranks
map.

One parameter at a time is put together, so that no rank holds the whole in memory: what is mapped
is read when it is used, and the system may drop it again. The sharded model is left as it is."""

from __future__ import annotations

import copy
import mmap
import tempfile
from collections import OrderedDict
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from irprune.errors import IrpruneError
from irprune.run.ranks import Ranks

__all__ = ["mapped", "plain_twin"]

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
)
_STATE = "__composable_api"  # how the keys begin under which fully_shard keeps its state


def plain_twin(model: nn.Module, ranks: Ranks) -> nn.Module:
    """A module of the original class with the whole parameters of ``model``, on the CPU.

    All ranks call it.

    Args:
        model: The sharded module.
        ranks: Those that hold its parts.

    Raises:
        IrpruneError: Outside a group of ranks that work together.
    """
    if ranks.size == 1 and dist.get_world_size() > 1:
        raise IrpruneError(
            "the model is sharded over ranks that do not work together",
            type(model).__name__,
            "call irprune on all of them, without ranks=1",
        )
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    memo: dict[int, Any] = dict(_whole_parameters(model, ranks))
    memo |= {
        id(b): (b.full_tensor() if isinstance(b, DTensor) else b).detach().cpu().clone()
        for b in model.buffers()
    }
    for part in model.modules():
        held = vars(part)
        for name in _HOOKS:
            own = OrderedDict((k, v) for k, v in held[name].items() if not _is_torch(v))
            memo[id(held[name])] = own
        memo |= {id(v): None for k, v in held.items() if k.startswith(_STATE)}
    shards = [part for part in model.modules() if isinstance(part, FSDPModule)]
    # fully_shard has put a class of its own before that of the module, which refuses to be copied
    memo |= {id(part): object.__new__(type(part).__mro__[2]) for part in shards}
    for part in shards:
        vars(memo[id(part)]).update(copy.deepcopy(vars(part), memo))
    made: nn.Module = copy.deepcopy(model, memo) if id(model) not in memo else memo[id(model)]
    return made


def _is_torch(hook: Any) -> bool:
    """Whether a hook is one of those by which torch.distributed puts parameters together."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")


def _whole_parameters(model: nn.Module, ranks: Ranks) -> dict[int, nn.Parameter]:
    """For each parameter, by its identity, one with all of its values, mapped from a file."""
    folder = Path(ranks.first(tempfile.mkdtemp(prefix="irprune-") if ranks.leads else ""))
    writes = dist.get_node_local_rank(ranks.rank) == 0
    if writes:
        folder.mkdir(exist_ok=True)
    try:
        named = {id(p): p for p in model.parameters()}
        for number, p in enumerate(named.values()):
            whole = (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu()
            if writes:
                raw = whole.contiguous().reshape(-1).view(torch.uint8).numpy()
                raw.tofile(folder / str(number))
        ranks.gather(None)  # the files are there
        made = {
            key: nn.Parameter(mapped(folder / str(number), p), p.requires_grad)
            for number, (key, p) in enumerate(named.items())
        }
        ranks.gather(None)  # and mapped: they lie on the disk until the last map is gone
        return made
    finally:
        if writes:
            rmtree(folder, ignore_errors=True)


def mapped(file: Path, like: torch.Tensor) -> torch.Tensor:
    """What lies in ``file``, of the type and the whole shape of ``like``; changes are not written
    back."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    with file.open("rb") as held:
        view = mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.from_numpy(np.frombuffer(view, dtype=np.uint8)).view(like.dtype).view(like.shape)
