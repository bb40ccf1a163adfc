"""What a prune can be told: one object, checked at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from irprune.api.checks import check_options
from irprune.choice.budget import wanted
from irprune.errors import IrpruneError
from irprune.latency.table import Table
from irprune.passes.choose import Choose
from irprune.passes.score import Score

if TYPE_CHECKING:
    import torch

__all__ = ["Options", "device_of"]

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """Everything that a prune can be told. See ``prune`` for what each means."""

    ratio: float = 0.5
    importance: Any = None
    scope: str | None = None
    keep: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    round_to: int | str | None = None
    budget: Mapping[str, float | str] | None = None
    min_channels: int = 1
    max_ratio: float = 1.0
    prefer: str = "heads"
    per_block: bool = True
    reduce: str | None = None
    normalise: str | None = None
    seed: int | None = None
    proof: bool = True
    strict: bool = False
    device: str = "auto"
    dynamic_shapes: Any = None
    repair: Any = None
    calibration: Any = None
    loss: Any = None
    threads: int = 0
    progress: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        else:
            object.__setattr__(self, "keep", tuple(self.keep))
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)):
            raise IrpruneError(
                f"ratio is {self.ratio!r}",
                "",
                "a number from 0 to 1: the share of every width that is dropped",
            )
        if self.device not in DEVICES and not str(self.device).startswith("cuda:"):
            raise IrpruneError(
                f"device is {self.device!r}",
                "",
                f"one of {', '.join(DEVICES)}, or cuda:0, cuda:1, ...",
            )
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 0:
            raise IrpruneError(
                f"threads is {self.threads!r}", "", "a whole number; 0 leaves it to onnxruntime"
            )
        if isinstance(self.calibration, Iterator):  # the criterion reads it, and the repair again
            object.__setattr__(self, "calibration", list(self.calibration))
        data = self.calibration is not None
        if self.importance is None:
            object.__setattr__(self, "importance", "osscar" if data else "magnitude")
        if self.scope is None:
            object.__setattr__(
                self, "scope", "knapsack" if data and self.budget is not None else "local"
            )
        if self.normalise is None:
            object.__setattr__(
                self, "normalise", "measured" if data and self.scope == "knapsack" else "mean"
            )
        if self.repair is None:
            object.__setattr__(self, "repair", data)
        self.choose()  # its own checks
        self.score()

    @classmethod
    def of(cls, **settings: Any) -> Options:
        """The options of those names. Raises IrpruneError for a name or a value that there is
        not."""
        for name in settings:
            if name not in cls.__dataclass_fields__:
                raise IrpruneError(
                    f"no option {name!r}", "", f"one of {', '.join(cls.__dataclass_fields__)}"
                )
        return cls(**settings)

    def score(self) -> Any:
        """The pass that scores."""
        assert self.normalise is not None
        return Score(
            self.importance,
            reduce=self.reduce,
            seed=self.seed,
            normalise=self.normalise,
            calibration=self.calibration,
            loss=self.loss,
        )

    def choose(self) -> Any:
        """The pass that chooses; of a latency in seconds the share comes later, when the original
        was measured."""
        assert self.scope is not None
        budget: Any = self.budget
        if isinstance(budget, Mapping) and "latency" in budget:
            share, seconds = wanted(budget["latency"])
            budget = {**budget, "latency": 1.0 if seconds else share}
        return Choose(
            self.ratio,
            self.ratios,
            self.scope,
            self.keep,
            self.round_to,
            self.min_channels,
            self.max_ratio,
            self.prefer,
            self.per_block,
            budget,
            self._times(),
        )

    def _times(self) -> Any:
        """The table of times on this machine, where the choice asks for it."""
        if self.round_to != "auto" and "latency" not in (self.budget or {}):
            return None
        return Table.here(self.device.split(":")[0], self.threads)


def device_of(name: str) -> torch.device:
    """The torch device that a name (``auto``, ``cpu``, ``cuda:1``) means here. Raises IrpruneError
    where there is no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise IrpruneError("there is no CUDA device here", "", "say device='cpu' or 'auto'")
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())  # as tensors name theirs
    return torch.device(name)
