"""Pipeline parts: stages over ranks are pruned as one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from irprune.api.calls import prune
from irprune.api.declarations import PruneOptions
from irprune.api.pruned import Pruned
from irprune.errors import IrpruneError
from irprune.run.ranks import together

if TYPE_CHECKING:
    from torch import nn

__all__ = ["prune_stages"]


def prune_stages(
    stage: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[PruneOptions],
) -> tuple[nn.Module, Pruned]:
    """Prune a model of which each rank of a ``torch.distributed`` group holds one stage, as one
    graph: the plan is that of the whole. Stages run in the order of ranks, each with what the one
    before gave. All ranks call it.

    Args:
        stage: That of this rank; it is left as it is.
        args: The positional arguments of an example call of the whole, the same on every rank.
        kwargs: Its keyword arguments.
        **options: Those of ``irprune.prune``.

    Returns:
        The pruned stage of this rank, on its device, and what ``irprune.prune`` gives for the
        whole, whose weights lie in files.

    Raises:
        IrpruneError: As ``irprune.prune``; outside a group; for stages that cannot be sent; where
            ranks come to different plans.
    """
    from irprune.frontend.torch.stages import chain_of_stages

    with together(options.get("ranks")) as ranks:
        if ranks.size == 1:
            raise IrpruneError(
                "there is one rank, and so one stage",
                type(stage).__name__,
                "call it in a torch.distributed group; irprune.prune takes a whole model",
            )
        chain = chain_of_stages(stage, ranks)
        pruned = prune(chain, args, kwargs, **options)
        digest = pruned.plan.digest()
        first, *others = ranks.gather(digest)
        if any(theirs != first for theirs in others):
            raise IrpruneError("the ranks have chosen differently", "", "report this as a bug")
        place = next((p.device for p in stage.parameters()), None)
        pruned.apply_to(chain)
        own = chain[ranks.rank]
        return (own if place is None else own.to(place)).train(stage.training), pruned
