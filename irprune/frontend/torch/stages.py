"""A model in stages, of which each rank holds one (pipeline parallelism), as one model: a chain of
all stages whose parameters lie in files that each node writes once and all of its ranks map."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from irprune.errors import IrpruneError, gist
from irprune.frontend.torch.sharded import mapped
from irprune.run.ranks import Ranks

__all__ = ["Chain", "chain_of_stages"]


class Chain(nn.ModuleList):
    """Stages that run one after the other: each is called with what the one before gave, a tuple as
    several arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the last stage gives."""
        first, *rest = self
        made = first(*args, **kwargs)
        for stage in rest:
            made = stage(*made) if isinstance(made, tuple) else stage(made)
        return made


def chain_of_stages(stage: nn.Module, ranks: Ranks) -> Chain:
    """The chain of the stages of all ranks, in their order, on the CPU of each. All ranks call it;
    the stages are left as they are.

    Args:
        stage: That of this rank.
        ranks: Those that hold the stages.

    Raises:
        IrpruneError: For a stage whose class the others cannot import, and for one that is sharded
            itself or has parameters without values.
    """
    own = list({id(p): p for p in stage.parameters()}.values())
    if any(type(p.detach()) is not torch.Tensor or p.is_meta for p in own):
        raise IrpruneError(
            "a stage whose parameters are no plain tensors",
            type(stage).__name__,
            "give stages whose parameters lie on their rank",
        )
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in own
    }
    memo |= {id(b): b.detach().cpu().clone() for b in stage.buffers()}
    try:
        form = pickle.dumps(copy.deepcopy(stage, memo))
    except (pickle.PicklingError, TypeError, AttributeError) as refused:
        raise IrpruneError(
            f"a stage cannot be sent to the other ranks: {gist(refused)}",
            type(stage).__name__,
            "define its class in a module that all of them can import",
        ) from refused
    forms = ranks.gather(form)  # of modules that this program has made, on its own connection
    made = Chain([pickle.loads(f) for f in forms])
    folder = Path(ranks.first(tempfile.mkdtemp(prefix="irprune-") if ranks.leads else ""))
    writes = dist.get_node_local_rank(ranks.rank) == 0
    if writes:
        folder.mkdir(exist_ok=True)
    try:
        for owner, part in enumerate(made):
            _fill(part, owner, own, folder, writes, ranks)
        return made
    finally:
        if writes:
            rmtree(folder, ignore_errors=True)


def _fill(
    part: nn.Module, owner: int, own: list[nn.Parameter], folder: Path, writes: bool, ranks: Ranks
) -> None:
    """Put the parameters of the rank ``owner`` into ``part``, one at a time."""
    whole: dict[int, nn.Parameter] = {}
    for number, p in enumerate(list({id(p): p for p in part.parameters()}.values())):
        sent = own[number].detach().cpu() if ranks.rank == owner else None
        received = ranks.gather(sent)[owner]
        file = folder / f"{owner}-{number}"
        if writes and received is not None:
            received.contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)
        del received
        ranks.gather(None)  # the file is there
        whole[id(p)] = nn.Parameter(mapped(file, p), p.requires_grad)
    ranks.gather(None)  # and mapped: it lies on the disk until the last map is gone
    for module in part.modules():
        for name, held in module._parameters.items():
            if held is not None:
                module._parameters[name] = whole[id(held)]
