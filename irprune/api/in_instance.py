"""What is put into the user's own instance before a cut is made in it: the basis of a rotated
width, and two layers in the place of one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

from irprune.errors import IrpruneError, gist

if TYPE_CHECKING:
    import torch

    from irprune.api.low_rank import LowRank
    from irprune.api.rotation import Rotation
    from irprune.ir.graph import Graph

__all__ = ["in_basis", "in_two"]


def in_basis(
    graph: Graph, rotation: Rotation | None, model: torch.nn.Module
) -> contextlib.AbstractContextManager[None]:
    """Put the basis of a rotated width of ``graph`` into ``model``; what stood there comes back
    where the rest fails."""
    if rotation is None:
        return contextlib.nullcontext()
    from irprune.frontend.torch.source import torch_source

    source = torch_source(graph).module
    assert source is not None
    return rotation.applied(model, source)


@contextlib.contextmanager
def in_two(graph: Graph, low_rank: LowRank | None, model: torch.nn.Module) -> Iterator[None]:
    """Put the two layers of ``graph`` into ``model`` where one was to become two; what stood there
    comes back where the rest fails."""
    if low_rank is None:
        yield
        return
    from irprune.frontend.torch.low_rank import put_layers
    from irprune.frontend.torch.source import torch_source

    source = torch_source(graph).module
    assert source is not None
    paths = [layer.name.rpartition(".")[0] for layer in low_rank.layers]
    layers = {path: copy.deepcopy(source.get_submodule(path)) for path in paths}
    try:
        before = put_layers(model, layers)
    except (AttributeError, KeyError) as missing:
        raise IrpruneError(
            f"the instance has no layer {gist(missing)}",
            type(model).__name__,
            "give the module that was pruned, or one of the same class",
        ) from missing
    try:
        yield
    except BaseException:
        put_layers(model, before)
        raise
