"""ONNX spellings: how a node of a file is read into an entry of the operator table, and how a
changed one is written back.

``read(node)`` turns an ``OnnxNode`` into a ``Step``: the entry, which inputs are its operands, and
canonical (ATen-named) attributes; constants and shape arithmetic among the inputs become
attributes. ``write(edit, node)`` puts attributes that pruning changed back into the ONNX node.
Nothing here imports onnx: the capture decodes what readers need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from irprune.base.moved import renamed
from irprune.base.near import meant
from irprune.ir.body import Body
from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size
from irprune.ops.registry import (
    TABLE,
    Arg,
    Op,
    Sample,
    amend,
    is_product,
    load_table,
    register_onnx,
    spelling,
)
from irprune.ops.traits import CarriedFunction

__all__ = [
    "OF_SIZES",
    "PREVIOUS",
    "Edit",
    "InvalidOperands",
    "OnnxNode",
    "Spelling",
    "Step",
    "UnsupportedUse",
    "called",
    "extended",
    "multiplies",
    "refused",
    "runs",
    "runs_named",
    "same_attrs",
    "sampled",
    "spell",
    "spelling_of",
    "use",
    "variant",
]

__getattr__ = renamed(__name__, {"Unread": "UnsupportedUse", "Misfit": "InvalidOperands"})

PREVIOUS = -1  # stands for the result of the step before, where one ONNX node is read as several


class UnsupportedUse(Exception):
    """Raised by a reader that meets a use it does not cover; the node is kept as it is and its axes
    freeze with this text."""


class InvalidOperands(UnsupportedUse):
    """Raised by a reader for operands that the operator cannot take, whatever their values: the
    model is wrong. Within a body, which may never run, it is a use that is not covered."""


@dataclass
class OnnxNode:
    """An ONNX node as readers see it.

    ``target`` is ``Conv`` or ``com.microsoft::Gelu``, ``opset`` the version of its domain that the
    model imports; ``types`` has one entry per input (None where it is left out), ``outputs`` the
    names of the results up to the last that is read ("" where nobody reads one), ``results`` how
    many there are. ``constant(i)`` is the value of input ``i`` where it is known: an array, of
    objects where an element is a ``Sym``. ``inferred()`` asks ONNX's own inference for the types of
    the results; ``body(name, types)`` is the subgraph in an attribute, for inputs of these types;
    ``fresh()`` is a size that nothing else has.
    """

    target: str
    opset: int
    attrs: dict[str, Any]
    types: list[TensorType | None]
    outputs: list[str]
    results: int
    constant: Callable[[int], NDArray[Any] | None]
    inferred: Callable[[], list[TensorType]]
    body: Callable[[str, Sequence[TensorType]], Body]
    fresh: Callable[[], Size]

    def has(self, i: int) -> bool:
        return i < len(self.types) and self.types[i] is not None

    def type(self, i: int) -> TensorType:
        """The type of input ``i``. Raises UnsupportedUse where it is left out or its rank is
        unknown."""
        kind = self.types[i] if i < len(self.types) else None
        if kind is None or kind.shape is None:
            raise UnsupportedUse(
                f"input {i} of {self.target} has no known rank"
                if kind is not None
                else f"{self.target} lacks input {i}"
            )
        return kind

    def rank(self, i: int = 0) -> int:
        return self.type(i).rank

    def shape(self, i: int = 0) -> tuple[Size, ...]:
        return self.type(i).known

    def given(self, i: int) -> NDArray[Any] | None:
        """The known value of input ``i``; None where the input is left out. Raises UnsupportedUse
        where it is computed at run time."""
        if not self.has(i):
            return None
        value = self.constant(i)
        if value is None:
            raise UnsupportedUse(f"input {i} of {self.target} is computed at run time")
        return value

    def sizes(self, i: int) -> list[Size] | None:
        """``given(i)`` as a flat list of sizes."""
        value = self.given(i)
        return (
            None
            if value is None
            else [
                v if not isinstance(v, np.generic) else v.item() for v in value.reshape(-1).tolist()
            ]
        )

    def moved(self, name: str, i: int, since: int) -> list[Size] | None:
        """What was attribute ``name`` before opset ``since`` and is input ``i`` from then on, as a
        list."""
        if self.opset >= since:
            return self.sizes(i)
        value = self.attrs.get(name)
        return (
            None if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
        )


@dataclass(frozen=True)
class Step:
    """A node to be made: entry ``op`` over the ONNX inputs ``operands`` (positions, None, or
    ``PREVIOUS``).

    ``types`` are those of the results; None asks the axis rule of the entry, and ONNX's inference
    where that does not say. ``operands`` None means all inputs."""

    op: str
    operands: tuple[int | None, ...] | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    types: Sequence[TensorType] | None = None


class Edit(Protocol):
    """What ``write`` may change in an ONNX node."""

    target: str
    opset: int
    attrs: Mapping[str, Any]

    def given(self, i: int) -> bool:
        """Whether input ``i`` is there."""

    def value(self, i: int) -> list[Size] | None:
        """What input ``i`` holds in the edited model, as a list; None where it is not known."""

    def dtype(self, i: int) -> str:
        """The element type of input ``i``."""

    def sizes(self, i: int, dims: Sequence[int]) -> list[Size]:
        """Sizes of input ``i`` before pruning."""

    def attr(self, name: str, value: Any) -> None:
        """Set an attribute; None takes it away."""

    def input(self, i: int, value: Sequence[Size]) -> None:
        """Let input ``i`` hold ``value`` in the element type that it has (int64 where it is not
        given): left alone where it would anyway, else an initializer, computed where a size is
        dynamic."""

    def become(self, target: str) -> None:
        """Make it operator ``target``, which takes its first input alone and no attributes."""

    def moved(self, name: str, i: int, since: int, value: Sequence[Size]) -> None:
        """``attr`` before opset ``since``, ``input`` from then on."""


Reader = Callable[[OnnxNode], "Step | Sequence[Step]"]
Writer = Callable[[Edit, Node], None]


@dataclass(frozen=True)
class Spelling:
    """An ONNX operator, the entries it is read into and uses of it for the generated tests
    (``tests/onnxcheck.py``)."""

    target: str
    read: Reader
    write: Writer | None
    entries: tuple[str, ...]
    samples: tuple[Sample, ...] = ()


SPELLINGS: dict[str, Spelling] = {}


def spell(
    entries: str | Iterable[str],
    *targets: str,
    read: Reader | None = None,
    write: Writer | None = None,
) -> None:
    """Declare that ONNX operators ``targets`` are read into ``entries``; without ``read``: same
    operands, no attributes.

    Raises ValueError for an operator spelled twice and for an entry that the table lacks.
    """
    names = (entries,) if isinstance(entries, str) else tuple(entries)
    for name in names:
        if name not in TABLE:
            load_table()  # the caller lies outside of it
        if name not in TABLE:
            hint = meant(name, TABLE, "import the file that declares it first")
            raise ValueError(f"{', '.join(targets)}: the table has no entry {name!r}; {hint}")
    for target in targets:
        if target in SPELLINGS:
            raise ValueError(
                f"ONNX operator {target!r} is spelled twice: in {SPELLINGS[target].entries} and in {names}"
            )
        made = Spelling(target, read or _plain(names[0]), write, names)
        SPELLINGS[target] = made
        register_onnx(TABLE[names[0]], target, made)


def use(
    *args: Arg | None,
    free: int,
    opset: int = 0,
    read: tuple[int, ...] | None = None,
    **attrs: Any,
) -> Sample:
    """A sample of an ONNX operator: its inputs, and attributes by name."""
    return Sample(args, attrs, free, "", read, opset)


def sampled(targets: str, *samples: Sample) -> None:
    """Give each of the operators ``targets`` (words) these samples for the generated tests. Raises
    ValueError for an operator that is not spelled."""
    for target in targets.split():
        if target not in SPELLINGS:
            load_table()
        if target not in SPELLINGS:
            hint = meant(target, SPELLINGS, "spell it first")
            raise ValueError(f"samples of {target!r}, which is not spelled; {hint}")
        made = SPELLINGS[target]
        SPELLINGS[target] = replace(made, samples=(*made.samples, *samples))


def called(node: OnnxNode, body: Body) -> Step:
    """A node whose operator ONNX defines by ``body``, a function of its inputs."""
    types = [v.type for v in body.graph.outputs]
    attrs = {"own": 0, "target": node.target, "body": body, "count": len(node.outputs)}
    return Step("called", None, attrs, types[: len(node.outputs)])


def refused(target: str, count: int, why: str) -> Step:
    """A use of the ONNX operator ``target``, of ``count`` inputs, that no reader covers."""
    return Step("opaque", tuple(range(count)), {"target": target, "why": why})


def _plain(name: str) -> Reader:
    return lambda node: Step(name)


def spelling_of(target: str) -> Spelling | None:
    """The spelling of an ONNX operator, or None where the table has none."""
    load_table()
    found = SPELLINGS.get(target)
    if found is None and (entry := spelling("onnx", target)) is not None:
        found = SPELLINGS[target] = Spelling(target, _plain(entry.name), None, (entry.name,))
    return found


def multiplies(name: str) -> bool:
    """Whether an ONNX operator, of whatever domain, is a product of tensors: what its time grows
    with are multiply-accumulates. Runtimes put the layout that they changed to before the name."""
    load_table()
    plain = name.removeprefix("Nhwc")
    domains = ("", "com.microsoft::")
    entries = [
        TABLE[e] for d in domains if (s := SPELLINGS.get(d + plain)) is not None for e in s.entries
    ]
    return any(map(is_product, entries))


OF_SIZES = {
    "+": "Add",
    "-": "Sub",
    "*": "Mul",
    "//": "Div",  # sizes are not negative, so rounding towards zero is rounding down
    "%": "Mod",
    "neg": "Neg",
    "min": "Min",
    "max": "Max",
}
"""The ONNX operators that compute sizes, by the operators of ``irprune.ir.size``."""


# -- running in torch ------------------------------------------------------------------------------


def runs(name: str, results: int = 1) -> CarriedFunction:
    """An ``Op.run`` that calls ``irprune.ops.onnx.functions.<name>(*operands, **attrs)``, whose
    source emitted modules carry.

    ``results`` are as many as the function gives, whether or not a node names them all. Where a
    node has a ``Body``, the function takes the first ``own`` operands; whoever runs the node puts
    functions of their own inputs in place of bodies."""

    def run(torch: Any, node: Node, operands: Sequence[Any]) -> Any:
        from irprune.ops.dtypes import torch_attribute
        from irprune.ops.onnx import functions

        attrs = {k: torch_attribute(k, v) for k, v in node.attrs.items() if k != "own"}
        return getattr(functions, name)(*operands[: node.attrs.get("own")], **attrs)

    return CarriedFunction(run, name, results)


def _run_named(torch: Any, node: Node, operands: Sequence[Any]) -> Any:
    from irprune.ops.onnx import functions

    attrs = {k: v for k, v in node.attrs.items() if k != "function"}
    return getattr(functions, node.attrs["function"])(*operands, **attrs)


runs_named = CarriedFunction(_run_named, "")
"""An ``Op.run`` that calls the function which attribute ``function`` of the node names."""


def variant(base: str, name: str, run: str, results: int = 1, **changes: Any) -> Op:
    """An entry like ``base`` in rule, sizes and silence, run by
    ``irprune.ops.onnx.functions.<run>``: what no ATen overload says."""
    made = replace(
        TABLE[base],
        **{
            "name": name,
            "aten": {},
            "onnx": {},
            "call": None,
            "run": runs(run, results),
            "samples": (),
            **changes,
        },
    )
    if name in TABLE:
        raise ValueError(f"operator {name!r} is declared twice")
    TABLE[name] = made
    return made


def extended(name: str, run: str, results: int = 1) -> None:
    """Let nodes of entry ``name`` that came from ONNX be run by
    ``irprune.ops.onnx.functions.<run>``, unless ``Op.call`` gives an overload."""
    amend(name, run=runs(run, results))


def same_attrs(*names: str) -> Writer:
    """A writer for attributes that ONNX has under the same name as the entry."""

    def write(edit: Edit, node: Node) -> None:
        for name in names:
            edit.attr(name, node.attrs[name])

    return write
