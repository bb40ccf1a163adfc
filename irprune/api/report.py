"""What a prune did and what its checks measured: printable, JSON and HTML."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from irprune.analysis.describe import GroupLine
from irprune.api.page import render
from irprune.base.format import finite, human
from irprune.base.version import __version__
from irprune.errors import printable

if TYPE_CHECKING:
    from irprune.api.latency_search import Latency
    from irprune.api.low_rank import LowRank
    from irprune.api.narrow import Narrowed
    from irprune.api.quality import Quality
    from irprune.api.repair import Repaired
    from irprune.api.rotation import Rotation
    from irprune.api.speed import Speed
    from irprune.api.step_quality import StepQuality
    from irprune.api.trials import Trials
    from irprune.run.all_reduce import AllReduce
    from irprune.validate.parity import Parity
    from irprune.validate.proof_result import Proof
    from irprune.validate.read_back import ReadBack

__all__ = ["Change", "Report"]


@dataclass(frozen=True)
class Change:
    """A count before and after."""

    before: int
    after: int

    @property
    def left(self) -> float:
        """The share that is left."""
        return self.after / self.before if self.before else 1.0

    def __str__(self) -> str:
        return f"{human(self.before)} -> {human(self.after)} ({self.left:.1%})"


@dataclass
class Report:
    """What a prune did, and what its checks measured.

    Attributes:
        name: The name of the model.
        params: The number of parameters, before and after.
        macs: Multiply-accumulate operations of one call at ``sizes``, before and after.
        bytes: Bytes of all stored arrays, before and after.
        activation: Peak bytes of activations in one call, before and after.
        memory: Bytes by what they are for, before and after: weights, gradients, optimizer,
            activations, saved, cache (``irprune.analysis.memory.Memory``).
        communication: Bytes that a rank sends in a training step by how the ranks share it, before
            and after: ddp, fsdp, tensor (``irprune.analysis.memory.Communication``).
        all_reduce: Measured seconds of adding up the gradients over the ranks of the group, before
            and after; None where one process pruned. Like ``seconds`` in no report.json, which is
            the same on any number of ranks.
        groups: The groups that may be cut, each with its width before and after.
        frozen: The groups that may not, each with the reason.
        unruled: Operators without a rule, whose axes are frozen, and where each stands.
        notes: What else the user should know, a sentence each.
        proof: The comparison with the silenced original; None where none was asked for.
        parity: The comparison of the ONNX file with the module; None until one is written.
        read_back: What was written, read again by loaders that are not irprune's.
        rotation: What became of residual streams in the basis of their principal components; None
            where there are none.
        low_rank: What became of layers that are two of lower rank; None where there are none.
        repair: What a repair did; None where there was none.
        quality: Perplexity, agreement and divergence of a language model, on calibration data that
            were held out; None of others and without data.
        step: How good a step of a schedule is, beside the model that the schedule began with; None
            of others and without data.
        latency: Predicted and measured times; None without a budget on them.
        speed: Latency of the file that was written beside the original; None where none was timed.
        narrowed: The file in narrower numbers; None where none was asked for.
        trials: The models that were tried to keep a metric; None where none was to be kept.
        seconds: The time of each stage, in seconds.
        sizes: The shapes of inputs with open sizes at which costs were counted; "" where there are
            none.
        options: The options that differ from the defaults.
        command: The command line; "" where there was none.
        details: Collects what the page shows beyond this (``irprune.api.page.collect``).
    """

    name: str
    params: Change
    macs: Change
    bytes: Change
    activation: Change
    groups: tuple[GroupLine, ...] = ()
    frozen: tuple[GroupLine, ...] = ()
    unruled: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    proof: Proof | None = None
    parity: Parity | None = None
    low_rank: LowRank | None = None
    rotation: Rotation | None = None
    repair: Repaired | None = None
    quality: Quality | None = None
    step: StepQuality | None = None
    latency: Latency | None = None
    speed: Speed | None = None
    narrowed: Narrowed | None = None
    trials: Trials | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    sizes: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    memory: dict[str, Change] = field(default_factory=dict)
    communication: dict[str, Change] = field(default_factory=dict)
    all_reduce: AllReduce | None = None
    read_back: list[ReadBack] = field(default_factory=list)
    details: Callable[[], dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def cuts_nothing(self) -> bool:
        """Whether every group is whole, and every layer one."""
        return self.low_rank is None and all(g.kept == g.size for g in self.groups)

    def as_dict(self, timings: bool = False) -> dict[str, Any]:
        """Plain data for JSON.

        Args:
            timings: Whether the seconds that it took are among them; without them the same call
                gives the same data.

        Returns:
            Dictionaries and lists of text and numbers.
        """
        proof = self.proof.as_dict() if self.proof is not None else None
        took: dict[str, Any] = {}
        if timings:
            took["seconds"] = {k: round(v, 4) for k, v in self.seconds.items()}
            took["speed"] = self.speed.as_dict() if self.speed is not None else None
            took["all_reduce"] = asdict(self.all_reduce) if self.all_reduce is not None else None
        if proof is not None and not timings:
            del proof["seconds"]
        counts = {k: asdict(getattr(self, k)) for k in ("params", "macs", "bytes", "activation")}
        return {
            "version": __version__,
            "command": self.command,
            "options": self.options,
            "name": self.name,
            **counts,
            "memory": {k: asdict(c) for k, c in self.memory.items()},
            "communication": {k: asdict(c) for k, c in self.communication.items()},
            "groups": [asdict(g) for g in self.groups],
            "frozen": [asdict(g) for g in self.frozen],
            "unruled": self.unruled,
            "notes": self.notes,
            "proof": proof,
            "sizes": self.sizes,
            "parity": self.parity.as_dict() if self.parity is not None else None,
            "read_back": [r.as_dict(timings) for r in self.read_back],
            "low_rank": asdict(self.low_rank) if self.low_rank is not None else None,
            "rotation": self.rotation.as_dict() if self.rotation is not None else None,
            "repair": asdict(self.repair) if self.repair is not None else None,
            "quality": asdict(self.quality) if self.quality is not None else None,
            "step": self.step.as_dict() if self.step is not None else None,
            "latency": self.latency.as_dict() if self.latency is not None else None,
            "narrowed": self.narrowed.as_dict() if self.narrowed is not None else None,
            "trials": self.trials.as_dict() if self.trials is not None else None,
            **took,
        }

    def to_json(self, timings: bool = False, details: bool = False) -> str:
        """``as_dict`` as JSON; infinite errors are written as strings.

        Args:
            timings: As for ``as_dict``.
            details: Whether to add what ``irprune report`` makes the page of.

        Returns:
            The text of report.json.
        """
        data = self.as_dict(timings)
        if details and self.details is not None:
            data["details"] = {k: v for k, v in self.details().items() if k != "plan"}
            data |= self._timed()
        return json.dumps(finite(data), indent=1) + "\n"

    def text(self, seconds: bool = False) -> str:
        """The report as the command line prints it.

        Args:
            seconds: Whether the seconds of every stage stand below it.

        Returns:
            Lines of text.
        """
        if not seconds or not self.seconds:
            return str(self)
        took = ", ".join(f"{stage} {s:.2f} s" for stage, s in self.seconds.items())
        return f"{self}\n  seconds     {took}"

    def __str__(self) -> str:
        cut = [g for g in self.groups if g.kept < g.size]
        whole = [g for g in self.groups if g.kept == g.size]
        lines = [
            f"{self.name}: {len(cut)} groups cut, {len(whole)} left whole, {len(self.frozen)} frozen",
            f"  parameters  {self.params}",
            f"  MACs        {self.macs}",
            f"  bytes       {self.bytes}",
            f"  activation  {self.activation}",
            f"  proof       {self.proof if self.proof is not None else 'not asked for'}",
        ]
        if self.proof is not None:
            lines += [f"  note        {note}" for note in self.proof.notes]
        if self.sizes:
            lines.insert(3, f"  MACs at     {self.sizes}")
        if self.latency is not None:
            lines.insert(-1, f"  latency     {self.latency}")
        elif self.speed is not None:
            lines.append(f"  latency     {self.speed}")
        if self.all_reduce is not None:
            lines.append(f"  all-reduce  {self.all_reduce}")
        if self.trials is not None:
            lines.append(f"  metric      {self.trials}")
        if self.rotation is not None:
            lines.append(f"  rotation    {self.rotation}")
        if self.low_rank is not None:
            lines.append(f"  low rank    {self.low_rank}")
        if self.repair is not None:
            lines.append(
                f"  repair      {self.repair} (checked by that error, which may not rise; the proof is of the model before repair)"
            )
            lines += [f"  note        {note}" for note in self.repair.notes]
        if self.quality is not None:
            lines.append(f"  language    {self.quality}")
        if self.step is not None:
            lines.append(f"  step        {self.step}")
        if self.parity is not None:
            lines.append(f"  parity      {self.parity}")
        lines += [f"  read back   {found}" for found in self.read_back]
        if self.narrowed is not None:
            lines.append(f"  quantised   {self.narrowed}")
            lines += [f"  note        {note}" for note in self.narrowed.notes]
        lines += [f"  left whole  {line}" for line in _by_reason(whole)]
        lines += [f"  no rule for {op}: {where}" for op, where in self.unruled.items()]
        lines += [f"  note        {note}" for note in self.notes]
        return "\n".join(printable(line, _LONGEST) for line in lines)

    def to_html(self) -> str:
        """The report as one page that stands alone, for a browser without a network.

        Returns:
            The text of report.html.
        """
        data = {**self.as_dict(), **self._timed()}
        return render(finite(data), finite(self.details()) if self.details else None)

    def _timed(self) -> dict[str, Any]:
        """What was timed beside the original, where it was."""
        return {"speed": self.speed.as_dict()} if self.speed is not None else {}


_LONGEST = 4000  # characters of one line: names in a file have no end
_REASONS = 6  # as many are printed; the JSON and the page have all


def _by_reason(whole: list[GroupLine]) -> list[str]:
    """The groups that nothing was dropped from, one line for each reason."""
    found: dict[str, list[GroupLine]] = {}
    for g in whole:
        found.setdefault(g.reason, []).append(g)
    lines = [
        f"{gs[0].name}{f' and {len(gs) - 1} more' if len(gs) > 1 else ''}: {why}"
        for why, gs in found.items()
        if why
    ]
    return lines[:_REASONS] + (
        [f"{len(lines) - _REASONS} more reasons, in report.json"] if len(lines) > _REASONS else []
    )
