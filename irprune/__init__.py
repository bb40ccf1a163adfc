"""irprune: a compiler that makes neural networks smaller.

``irprune.prune(model, args)`` drops coupled channels of a PyTorch or ONNX model and proves the
result. Importing this module imports neither torch nor onnx; its names are loaded when they are
first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from irprune.base import moved

if TYPE_CHECKING:
    from irprune.api import Options, Pruned, apply_plan, capture, groups, prune
    from irprune.api.evaluate import evaluate
    from irprune.api.folder import load
    from irprune.api.stages import prune_stages
    from irprune.api.sweep import sweep
    from irprune.errors import CheckFailed, IrpruneError
    from irprune.training.iterative import schedule
    from irprune.training.optimizer import carry_optimizer, step_optimizer

__all__ = [
    "CheckFailed",
    "IrpruneError",
    "Options",
    "Pruned",
    "apply_plan",
    "capture",
    "carry_optimizer",
    "evaluate",
    "groups",
    "load",
    "prune",
    "prune_stages",
    "schedule",
    "step_optimizer",
    "sweep",
]

_AT = {
    "CheckFailed": "irprune.errors",
    "IrpruneError": "irprune.errors",
    "carry_optimizer": "irprune.training.optimizer",
    "evaluate": "irprune.api.evaluate",
    "load": "irprune.api.folder",
    "prune_stages": "irprune.api.stages",
    "schedule": "irprune.training.iterative",
    "step_optimizer": "irprune.training.optimizer",
    "sweep": "irprune.api.sweep",
}

moved.install()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'irprune' has no attribute {name!r}")
    value = getattr(import_module(_AT.get(name, "irprune.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
