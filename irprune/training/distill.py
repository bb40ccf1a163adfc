"""Training a pruned model on the original: outputs, and values inside where they match.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; values inside as in Romero et
al., "FitNets", ICLR 2015, except that no projection is needed: a pruned layer's channels are known
channels of the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from irprune.api.pruned import Pruned
from irprune.base.near import meant
from irprune.errors import IrpruneError

__all__ = ["Distillation"]


class Distillation:
    """The loss of ``pruned.module`` against ``teacher`` on the same inputs; a context manager,
    since it watches the layers.

    ``temperature`` softens class scores (outputs of rank 2 or 3; others are compared by their mean
    square); ``layers`` name linear or convolution modules whose results are compared too, the
    teacher's at the channels that are kept, with ``weight``. Raises IrpruneError for a layer that
    one of the models does not have."""

    def __init__(
        self,
        teacher: nn.Module,
        pruned: Pruned,
        *,
        temperature: float = 2.0,
        layers: Sequence[str] = (),
        weight: float = 1.0,
    ) -> None:
        self.teacher, self.student = teacher, pruned.module
        self.temperature, self.weight = temperature, weight
        self.layers = list(layers)
        self._kept = pruned.kept
        self._seen: dict[tuple[str, str], torch.Tensor] = {}
        self._hooks: list[Any] = []
        for side, model in (("teacher", teacher), ("student", self.student)):
            modules = dict(model.named_modules())
            for name in self.layers:
                if name not in modules:
                    raise IrpruneError(
                        f"the {side} has no layer {name!r}",
                        "distillation",
                        meant(name, modules, "name a linear or convolution module"),
                    )
                self._hooks.append(modules[name].register_forward_hook(self._watch(side, name)))

    def _watch(self, side: str, name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: torch.Tensor) -> None:
            self._seen[side, name] = result

        return hook

    def __enter__(self) -> Distillation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss on one call's arguments; the teacher is run without gradients, in the mode it is
        in."""
        with torch.no_grad():
            theirs = self.teacher(*args, **kwargs)
        ours = self.student(*args, **kwargs)
        loss = torch.stack(
            [self._between(a, b) for a, b in zip(_tensors(ours), _tensors(theirs), strict=True)]
        ).sum()
        for name in self.layers:
            loss = loss + self.weight * self._inside(name)
        return loss

    def _between(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        if ours.dim() in (2, 3) and ours.shape[-1] > 1:
            t = self.temperature
            a, b = (
                (ours / t).flatten(0, -2).log_softmax(-1),
                (theirs / t).flatten(0, -2).log_softmax(-1),
            )
            return t * t * F.kl_div(a, b, reduction="batchmean", log_target=True)
        return F.mse_loss(ours, theirs)

    def _inside(self, name: str) -> torch.Tensor:
        """The mean squared difference of a layer's results, relative to the teacher's mean
        square."""
        ours, theirs = self._seen["student", name], self._seen["teacher", name]
        kept = self._kept.get(f"{name}.weight", [None])[0]
        weight = dict(self.teacher.named_parameters())[f"{name}.weight"]
        if kept is not None:
            theirs = theirs.index_select(
                1 if weight.dim() > 2 else theirs.dim() - 1,
                torch.tensor(kept, device=theirs.device),
            )
        return F.mse_loss(ours, theirs) / theirs.square().mean().clamp(min=1e-12)


def _tensors(tree: Any) -> list[torch.Tensor]:
    """Floating-point tensors of a result, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    if isinstance(tree, Mapping):
        return [t for v in tree.values() for t in _tensors(v)]
    if isinstance(tree, (list, tuple)):
        return [t for v in tree for t in _tensors(v)]
    return []
