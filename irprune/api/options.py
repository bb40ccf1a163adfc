"""What a prune was told: its options (``irprune.api.declarations``), checked and completed at the
door."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from irprune.api.declarations import OPTIONS, REPLAY, PruneOptions
from irprune.api.declared_metric import check_metric, searched
from irprune.api.option_kinds import one_of
from irprune.base.near import meant
from irprune.choice.budget import read_latency_budget
from irprune.errors import IrpruneError, option
from irprune.latency.table import Table
from irprune.passes.choose import Choose
from irprune.passes.score import Score
from irprune.run.images import Folder

if TYPE_CHECKING:
    import torch

    from irprune.api.rotation import Rotation
    from irprune.criteria.readings import Readings

__all__ = ["Options", "check_together", "device_of"]

_SETTLED = tuple({**REPLAY, **OPTIONS})  # the order in which defaults are found


class Options:
    """The options of one prune: checked, and each with its value.

    ``values`` holds them by name; each is an attribute as well.

    Args:
        **options: Those of ``prune``.

    Raises:
        IrpruneError: For a name or a value that there is not.
    """

    values: PruneOptions
    given: tuple[str, ...]  # the names of those that are no defaults
    readings: Readings | None  # of the calibration data, where several steps share them
    rotation: Rotation | None  # what became of widths that were rotated

    def __init__(self, **options: Unpack[PruneOptions]) -> None:
        given = cast("dict[str, Any]", options)
        self._given = dict(given)
        for name in given:
            if name not in OPTIONS:
                raise IrpruneError(f"no option {name!r}", "", meant(name, OPTIONS, one_of(OPTIONS)))
        values = {name: given.get(name, declared.default) for name, declared in OPTIONS.items()}
        for name, declared in OPTIONS.items():
            declared.check(values[name])
        check_together({name: value for name, value in given.items() if value is not None})
        for name in _SETTLED:
            values[name] = OPTIONS[name].settle(values[name], values)
        self.values = cast("PruneOptions", values)
        self.given = tuple(given)
        self.readings: Readings | None = None
        self.rotation: Rotation | None = None
        check_metric(values, {name for name, value in given.items() if value is not None})
        _check_low_rank(values)
        _check_rotate(values)
        self.choose()  # its own checks
        self.score()

    @property
    def searches(self) -> bool:
        """Whether the smallest model that keeps a metric is looked for."""
        return searched(self.values)

    @classmethod
    def of(cls, **settings: Any) -> Options:
        """``Options(**settings)``, as it was called up to 0.1."""
        warnings.warn("Options.of is Options", DeprecationWarning, stacklevel=2)
        return cls(**settings)

    def __getattr__(self, name: str) -> Any:
        if name not in OPTIONS:
            raise AttributeError(f"'Options' has no option {name!r}")
        return self.values[name]  # type: ignore[literal-required]

    def __repr__(self) -> str:
        told = ", ".join(
            f"{name}={value!r}"
            for name, value in self.values.items()
            if value is not OPTIONS[name].default
        )
        return f"Options({told})"

    @property
    def open_data(self) -> bool:
        """Whether neither data nor a criterion were chosen: what there is may decide."""
        told = self._given
        return all(told.get(name) is None for name in ("calibration", "importance", "loss"))

    def calibrated(self, data: Any) -> Options:
        """These options with ``data`` to calibrate on, and the defaults that go with it."""
        return Options(**{**self._given, "calibration": data})

    def score(self) -> Score:
        """The pass that scores."""
        values = self.values
        return Score(
            **{**self._of("score"), "calibration": self.readings or values["calibration"]},
            keep=tuple(values["keep"]),
            ratios=values["ratios"],
            prefer=values["prefer"],
        )

    def choose(self) -> Choose:
        """The pass that chooses; of a latency in seconds the share comes later, when the original
        was measured."""
        budget: Any = {self.values["minimise"]: 1.0} if self.searches else self.values["budget"]
        times = None
        if budget is not None and "latency" in budget:
            share, seconds = read_latency_budget(budget["latency"])
            budget = {**budget, "latency": 1.0 if seconds else share}
        if self.values["round_to"] == "auto" or "latency" in (budget or {}):
            times = Table.here(self.values["device"].split(":")[0], self.values["threads"])
        return Choose(**{**self._of("choose"), "budget": budget, "times": times})

    @property
    def timed(self) -> bool:
        """Whether the choice follows from times that are measured here."""
        return self.values["round_to"] == "auto" or "latency" in (self.values["budget"] or {})

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data: of code and data their names alone."""
        own = {name: declared.default for name, declared in OPTIONS.items() if name != "progress"}
        values: dict[str, Any] = dict(self.values)
        return {k: _plain(values[k]) for k, default in own.items() if values[k] is not default}

    def _of(self, to: str) -> dict[str, Any]:
        """The values of the options that the pass ``to`` takes."""
        return {
            name: self.values[name]  # type: ignore[literal-required]
            for name, declared in OPTIONS.items()
            if declared.to == to
        }


def _check_low_rank(values: Mapping[str, Any]) -> None:
    """Raises IrpruneError where ranks cannot be chosen as it is said."""
    if values["low_rank"] is not True:
        return
    name, budget = option("low_rank", "True"), values["budget"]
    if searched(values):  # for a budget that is looked for
        budget = {values["minimise"]: 1.0}
    if not budget:
        raise IrpruneError(
            f"{name} needs a budget, for which ranks compete with widths",
            "",
            f"say what may be left ({option('budget')}), or which ranks "
            f"({option('low_rank', repr({'fc*': 16}))})",
        )
    for measure in ("latency", "activation"):
        if measure in budget:
            raise IrpruneError(
                f"a budget on {measure} does not know what two layers cost",
                "",
                f"with {name} say macs, params or bytes",
            )
    if values["scope"] != "knapsack":
        raise IrpruneError(
            f"scope is {values['scope']!r}, in which ranks do not compete",
            "",
            f"with {name} the scope is 'knapsack'",
        )
    if values["uniform"]:
        raise IrpruneError(
            f"{name} and {option('uniform', 'True')} are both given",
            "",
            "no config says that a layer is two",
        )


def _check_rotate(values: Mapping[str, Any]) -> None:
    """Raises IrpruneError where a width cannot be rotated as well as what else is said."""
    if not values["rotate"]:
        return
    for name in ("keep_indices", "low_rank"):
        if values[name]:
            raise IrpruneError(
                f"{option('rotate')} and {option(name)} are both given",
                "",
                "one after the other: prune what comes out of the first",
            )


def check_together(given: Mapping[str, Any]) -> None:
    """Raises IrpruneError where two options are given that cannot be together."""
    for name in given:
        for other in OPTIONS[name].against:
            if other in given:
                raise IrpruneError(
                    f"{option(other, _shown(given[other]))} and {option(name, _shown(given[name]))} are "
                    "both given",
                    "",
                    "each of them says how much goes: give one",
                )


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Folder):
        return _plain(value.path)
    if isinstance(value, (str, Path)):
        return Path(value).name if Path(value).is_absolute() else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple) and all(isinstance(v, (str, int, float)) for v in value):
        return list(value)
    return str(getattr(value, "__name__", type(value).__name__))


def _shown(value: Any) -> str:
    return repr(dict(value) if isinstance(value, Mapping) else value)


def device_of(name: str) -> torch.device:
    """The torch device that a name (``auto``, ``cpu``, ``cuda:1``) means here. Raises IrpruneError
    where there is no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise IrpruneError("there is no CUDA device here", "", f"say {option('device', 'cpu')}")
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())  # as tensors name theirs
    return torch.device(name)
