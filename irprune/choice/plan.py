"""The plan: what was chosen, as a small JSON that replays on the same model and on an ONNX export
of it.

A group is recorded by its places in weights, so that it is found again wherever the weights are: by
name, or, where an exporter renamed them, by shape and a few of their elements."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from irprune.base.atomic_write import cannot_write, write_text
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Weight
from irprune.ir.group import Group, Member, groups_of
from irprune.ir.selection import Selection
from irprune.ir.size import probe_of
from irprune.ops.arrays import is_meta, is_tensor

__all__ = ["VERSION", "Choice", "Plan", "Recorded", "Spot", "fingerprint", "probe"]

VERSION = 1


@dataclass(frozen=True)
class Spot:
    """A place of a group: dimension ``dim`` of ``weight``, its first element ``offset``, ``stride``
    between indices, and the (count, stride) of the axes it repeats over; ``row`` says which of them
    the rows of a choice per block belong to (-1: none). Where these stand in another dimension,
    ``beside`` is that dimension and the stride between them there."""

    weight: str
    dim: int
    offset: int
    stride: int
    blocks: tuple[tuple[int, int], ...] = ()
    row: int = -1
    beside: tuple[int, int] | None = None


@dataclass(frozen=True)
class Choice:
    """What is kept of one group: ascending indices, or one row of them for each index of the group
    called ``within``."""

    name: str
    size: int
    kept: tuple[int, ...] | tuple[tuple[int, ...], ...]
    members: tuple[Spot, ...]
    within: str = ""


@dataclass(frozen=True)
class Recorded:
    """A weight as the plan knew it: its shape, and ``probe`` of its values (None where it had
    none)."""

    shape: tuple[int, ...]
    probe: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """What was chosen on one model; ``irprune.apply_plan`` replays it on that model or on another
    form of it.

    Attributes:
        source: A hash of the structure of the model that it was made on.
        model: The name of that model.
        choices: The kept indices of each group that was cut.
        weights: The shape of each weight, and a few numbers by which it is known again.
        dropped: Sums whose branch goes as a whole, as in ``Selection``.
        low_rank: The rank of the two layers that replace the one of a weight.
        calibrated: Whether these layers were fitted to calibration data.
        rotated: Groups that were in another basis, so that their indices are of its directions.
        version: The version of the format.
    """

    source: str
    model: str
    choices: tuple[Choice, ...]
    weights: Mapping[str, Recorded] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    low_rank: Mapping[str, int] = field(default_factory=dict)
    calibrated: bool = False
    rotated: tuple[str, ...] = ()
    version: int = VERSION

    @staticmethod
    def from_graph(graph: Graph) -> Plan:
        """The plan of a graph.

        Args:
            graph: An analysed graph with a choice, before it is sliced.

        Returns:
            What was chosen in it.

        Raises:
            ValueError: Where there is no choice.
        """
        if graph.kept is None or graph.axes is None:
            raise ValueError("a plan is made after choose and before slice")
        return _recorded(graph, graph.kept)

    @staticmethod
    def read(plan: Plan | Mapping[str, Any] | str | Path) -> Plan:
        """A plan in whatever form it comes.

        Args:
            plan: A ``Plan``, plain data, JSON text or the path of a file.

        Returns:
            The plan.

        Raises:
            IrpruneError: Where it is none.
        """
        if isinstance(plan, Plan):
            return plan
        if isinstance(plan, str) and plan.lstrip().startswith("{"):
            try:
                return Plan.from_json(json.loads(plan))
            except ValueError as broken:
                raise IrpruneError(
                    f"the plan is no JSON: {broken}", "", "give what an earlier run wrote"
                ) from broken
        return Plan.load(plan) if isinstance(plan, (str, Path)) else Plan.from_json(plan)

    def digest(self) -> str:
        """What tells the plan from others.

        Returns:
            The SHA-256 of the plan as JSON, in hexadecimal digits: the same for equal plans.
        """
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data.

        Returns:
            Dictionaries and lists of text and numbers, as the file holds them.
        """
        return {"irprune": "plan", **asdict(self)}

    @staticmethod
    def from_json(data: Any, where: str = "") -> Plan:
        """A plan from plain data.

        Args:
            data: What ``as_json`` gives.
            where: The file that it was read from, for the message of an error.

        Returns:
            The plan.

        Raises:
            IrpruneError: Where it is none, or one of another version.
        """
        if not isinstance(data, Mapping) or data.get("irprune") != "plan":
            raise IrpruneError(
                "this is not a plan", where, "a plan is the JSON that an earlier run wrote"
            )
        if data.get("version") != VERSION:
            raise IrpruneError(
                f"the plan has version {data.get('version')!r}",
                where,
                f"this irprune reads version {VERSION}",
            )
        try:
            weights = {
                str(k): Recorded(
                    tuple(map(int, w["shape"])),
                    None if w["probe"] is None else tuple(map(float, w["probe"])),
                )
                for k, w in data["weights"].items()
            }
            return Plan(
                str(data["source"]),
                str(data["model"]),
                tuple(_choice(c) for c in data["choices"]),
                weights,
                {str(k): int(v) for k, v in data.get("dropped", {}).items()},
                {str(k): int(v) for k, v in data.get("low_rank", {}).items()},
                bool(data.get("calibrated", False)),
                tuple(map(str, data.get("rotated", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as broken:
            raise IrpruneError(
                f"the plan is damaged: {type(broken).__name__}: {broken}", where, "make it again"
            ) from broken

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all.

        Args:
            path: The file to write.

        Returns:
            ``path``.

        Raises:
            IrpruneError: Where the file cannot be written.
        """
        path = Path(path)
        if not path.parent.is_dir():
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise cannot_write(missing, path)
        return write_text(path, _text(self.as_json()))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """The plan in a file.

        Args:
            path: A file that ``save`` wrote.

        Returns:
            The plan.

        Raises:
            IrpruneError: Where there is none to read.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as refused:
            raise IrpruneError(
                f"the plan cannot be read: {refused.strerror}",
                str(path),
                "give what an earlier run wrote",
            ) from refused
        except ValueError as broken:
            raise IrpruneError(
                f"the plan is no JSON: {broken}",
                str(path),
                "give the file that an earlier run wrote",
            ) from broken
        return Plan.from_json(data, str(path))


def fingerprint(graph: Graph) -> str:
    """A hash of the graph's structure: operators in order, and names and shapes of weights; not
    their values."""
    text = hashlib.sha256()
    for node in graph.nodes:
        text.update(f"{node.op}({len(node.inputs)})\n".encode())
    for weight in graph.weights.values():
        text.update(f"{weight.name} {','.join(map(str, weight.shape))}\n".encode())
    return text.hexdigest()[:32]


def probe(weight: Weight) -> tuple[float, ...] | None:
    """A few numbers by which a weight is known again when its dimensions were permuted.

    First element, last element and sum of the diagonal stay; then for each dimension of more than
    one index the last element along it from the first, which tells where that dimension went. None
    for a weight without values, of one dimension, or not of floating point. Costs no more than the
    diagonal."""
    shape = weight.shape
    if sum(s != 1 for s in shape) < 2 or not is_real(weight.dtype):
        return None
    array = weight.load()
    if is_meta(array):
        return None
    n = min(int(probe_of(s)) for s in shape if s != 1)
    if is_tensor(array):
        array = array.detach()
    array = array.reshape([s for s in array.shape if s != 1])
    diagonal = [float(array[(i,) * array.ndim]) for i in range(min(n, 64))]
    ends = [
        float(array[tuple(-1 if k == d else 0 for k in range(array.ndim))])
        for d in range(array.ndim)
    ]
    return (
        float(array[(0,) * array.ndim]),
        float(array[(-1,) * array.ndim]),
        float(np.sum(diagonal)),
        *ends,
    )


def _recorded(graph: Graph, kept: Selection) -> Plan:
    groups = {g.axis: g for g in groups_of(graph)}
    choices = tuple(
        Choice(
            group.name,
            group.size,
            _tuples(kept.choice[leaf]),
            tuple(_spots(group, kept)),
            _outer(groups, kept, leaf),
        )
        for leaf, group in groups.items()
        if leaf in kept.choice
    )
    used = dict.fromkeys(spot.weight for c in choices for spot in c.members)
    weights = {
        name: Recorded(
            tuple(probe_of(s) for s in graph.weights[name].shape), probe(graph.weights[name])
        )
        for name in used
    }
    return Plan(
        fingerprint(graph),
        graph.name,
        choices,
        weights,
        kept.dropped,
        dict(graph.low_rank),
        rotated=tuple(groups[leaf].name for leaf in graph.rotated if leaf in groups),
    )


def _spots(group: Group, kept: Selection) -> list[Spot]:
    outer = kept.within.get(group.axis) if kept.choice[group.axis].ndim == 2 else None
    return [_spot(m, outer) for m in group.members]


def _spot(m: Member, outer: Axis | None) -> Spot:
    beside = None if outer is None else m.beside(outer)
    row = -1 if outer is None or beside is not None else m.slot.around.index(outer)
    return Spot(
        m.weight.name,
        m.dim,
        m.slot.offset,
        m.slot.stride,
        m.slot.blocks,
        row,
        beside and (beside[0], beside[1].stride),
    )


def _tuples(indices: Any) -> Any:
    return tuple(indices.tolist()) if indices.ndim == 1 else tuple(map(tuple, indices.tolist()))


def _outer(groups: Mapping[Axis, Group], kept: Selection, leaf: Axis) -> str:
    return groups[kept.within[leaf]].name if kept.choice[leaf].ndim == 2 else ""


def _choice(data: Mapping[str, Any]) -> Choice:
    rows = data["kept"]
    kept: Any = (
        tuple(tuple(map(int, r)) for r in rows)
        if rows and isinstance(rows[0], Sequence)
        else tuple(map(int, rows))
    )
    spots = tuple(
        Spot(
            str(s["weight"]),
            int(s["dim"]),
            int(s["offset"]),
            int(s["stride"]),
            tuple((int(n), int(k)) for n, k in s["blocks"]),
            int(s["row"]),
            None if s.get("beside") is None else (int(s["beside"][0]), int(s["beside"][1])),
        )
        for s in data["members"]
    )
    return Choice(str(data["name"]), int(data["size"]), kept, spots, str(data["within"]))


def _text(data: Mapping[str, Any]) -> str:
    """JSON with one line per choice and per weight."""

    def lines(items: Sequence[str], brackets: str) -> str:
        return (
            f"{brackets[0]}\n    " + ",\n    ".join(items) + f"\n  {brackets[1]}"
            if items
            else brackets
        )

    fields = []
    for key, value in data.items():
        if key == "choices":
            text = lines([json.dumps(c) for c in value], "[]")
        elif key == "weights":
            text = lines([f"{json.dumps(k)}: {json.dumps(w)}" for k, w in value.items()], "{}")
        else:
            text = json.dumps(value)
        fields.append(f'  "{key}": {text}')
    return "{\n" + ",\n".join(fields) + "\n}\n"
