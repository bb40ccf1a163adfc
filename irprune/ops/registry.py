"""The operator table: one ``Op`` per operator, the only place that knows operator names.

An entry is made by ``op(...)`` in the file of its family. Its axis rule is a signature where a
string can say it (``irprune.ops.rule.signature``), else a function ``rule(axes, node)``.
Nothing here imports torch or onnx."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from irprune.base.entry_points import load_entry_points
from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Graph, Node, Value
from irprune.ir.size import Size, identical
from irprune.ops.rule.signature import Signature, Unsupported
from irprune.ops.traits import Convolution, Kind, NnLayer, Quantised, Role

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "TABLE",
    "Arg",
    "Cut",
    "Op",
    "Rule",
    "Sample",
    "Unsupported",
    "amend",
    "aten_target",
    "convolution_of",
    "does_nothing",
    "draws",
    "is_fixed_norm",
    "is_product",
    "is_sum",
    "is_unread",
    "lookup",
    "may_mask",
    "op",
    "operand_as",
    "place_of",
    "quantised_in",
    "readers_of",
    "role_of",
    "same_type",
    "spelling",
]

Rule = Callable[[Axes, Node], None]
Owner = Callable[[Node, list[tuple[str, Value]]], str]


class Cut(Protocol):
    """What was chosen, asked by ``resize``: sizes and kept indices of axes after pruning."""

    def size(self, axis: Axis) -> Size:
        """The number of kept indices."""

    def kept(self, axis: Axis) -> NDArray[np.int64]:
        """The kept indices in terms of the original axis, ascending."""

    def changes(self, axis: Axis) -> bool:
        """Whether any index is dropped."""


@dataclass(frozen=True)
class Arg:
    """A sample operand: shape, element type and the range of its values, half open for integers.

    ``values`` are the values themselves. Those, and what is ``stored``, are initializers in the
    file that a sample of an ONNX operator becomes; all else are inputs of it."""

    shape: tuple[int, ...]
    dtype: str = "f32"
    low: float = -1.0
    high: float = 1.0
    values: tuple[float, ...] | None = None
    stored: bool = False


@dataclass(frozen=True)
class Sample:
    """One use of an operator for the generated tests (``tests/opcheck.py``).

    ``args`` are the operands in the order of the schema; a tuple stands for a list of tensors,
    which may also be given flat where it comes last. ``free`` is the number of leaf axes of size >
    1 that the rule must leave free, which keeps a rule from passing by freezing. ``target`` picks
    the ATen spelling (otherwise every one that takes it); ``attrs`` are the canonical attributes.
    ``read`` lists the results that are read, all by default.

    A sample of an ONNX operator (``spell(..., samples=...)``) has the operator's own inputs, one by
    one, and attributes; ``opset`` is the version of ai.onnx, 17 where it is 0, and ``read`` the
    results that are named, the first by default."""

    args: tuple[Arg | tuple[Arg | None, ...] | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    free: int | None = None
    target: str = ""
    read: tuple[int, ...] | None = None
    opset: int = 0


@dataclass(frozen=True)
class Op:
    """An operator.

    Args:
        name: Canonical name, as the text form prints it.
        rule: States the relations between the axes of operands and results; sets ``axes`` of every
            result.
        aten: ATen overloads -> {schema argument: canonical attribute} for those named differently.
        onnx: ONNX operators -> importer ``(OnnxNode) -> (operands, attrs)``; None where operands
            and attributes are as in ATen.
        call: ATen overload that runs a node which did not come from ATen, from its attributes; ""
            where ``run`` does. None means ``run``, or the first in ``aten`` where there is none.
        run: Runs the operator in torch where no ATen overload says it: ``run(torch, node,
            operands)``.
        resize: After the choice, rewrites attributes that hold sizes: ``resize(node, cut)``.
        silence: Runs the operator as if dropped indices were absent, where the value depends on who
            is present: ``silence(torch, node, operands, present, run)``, where ``present(value,
            dims)`` is the mask of what is kept along ``dims``, broadcastable to the value, or None
            where all of it is, and ``run(*operands)`` is the plain operator. Contracted letters of
            a signature are zeroed without being asked.
        creates: Makes a tensor from sizes alone: folded to a constant when an axis of it shrinks,
            unless ``resize`` suffices.
        macs: Multiply-accumulates as a sum of products of sizes of axes: ``macs(node) -> ((n, o,
            i), ...)``, one tuple of axes per product; a tuple that is empty counts nothing.
        letters: Of a product of tensors: for each operand, then for the result, a letter per
            dimension.
        random: Draws its results: tests compare their shapes alone.
        uninitialised: Results are memory as it is, which is read only after it was written to.
        idle: Whether a use of it gives back its first operand as it is, so that canonicalize may
            drop it.
        strides: ATen overloads that depend on how their operand lies in memory -> the one that does
            not, "" where there is none.
        family: Heading that the printed table lists the entry under; nothing follows from it.
        operands: The role of each operand, by position, or a function of the node (``role_of``).
        adds: Whether a use of it is the plain sum of its two operands.
        is_view: Results are views of the first operand: they take no memory of their own.
        free: Takes no time worth counting: views, casts and what is made from sizes alone.
        joins: A runtime makes it part of the convolution before it.
        counts: The sizes of its results, or the number that it gives, depend on the values of its
            operands.
        drops: Leaves elements out at random while training, and does nothing else.
        stops: Passes no gradient on, and does nothing else.
        rearranges: Every element of the results is one of the operands', moved, repeated or cast,
            so that what elements are carries over.
        learned: Whether a stored operand may be learned; False for comparisons, selections and
            bounds.
        linear: Of a product of tensors: whether a use of it gives the product itself; None means
            that every one does.
        asserts: Raises for values that the graph is not right for; its result says nothing.
        unread: Stands for a use of an operator that no rule covers.
        rounds: Results are rounded to the steps of a quantised type.
        dequantises: Results are the numbers that the integers of the first operand stand for.
        convolution: The node as a convolution, None where it is none.
        quantised_as: Operands that hold integers which stand for numbers.
        indexes: Operands that hold positions, each with the size of what it points into.
        row_bytes: The rows of its operands must be multiples of so many bytes, or the model itself
            runs no more; 1 where any will do.
        even_strides: It takes neighbours of its operand for pairs, whose strides must be even.
        kinds: What axes of the node are in the field's words.
        nn_layer: The ``torch.nn`` layer that it is a call of.
        trains: The attributes that a call of it takes, of which the last switches training on.
        rate: The attribute that says which share is left out at random, 0 outside of training;
            ``training_`` before it is what it is in training.
        layered: Puts a call of a ``torch.nn`` layer in the place of a node of a file, where it can:
            ``layered(graph, node, owner)``, with ``owner(node, held)`` the module that is to hold
            the parameters.
    """

    name: str
    rule: Rule
    aten: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    onnx: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[Node], str] | None = None
    run: Callable[..., Any] | None = None
    resize: Callable[[Node, Cut], None] | None = None
    silence: Callable[..., Any] | None = None
    creates: bool = False
    random: bool = False
    uninitialised: bool = False
    counts: bool = False
    idle: Callable[[Node], bool] | None = None
    strides: Mapping[str, str] = field(default_factory=dict)
    macs: Callable[[Node], tuple[tuple[Axis, ...], ...]] | None = None
    letters: Callable[[Node], tuple[list[str], ...]] | None = None
    samples: tuple[Sample, ...] = ()
    signature: Signature | None = None
    family: str = ""
    operands: tuple[Role, ...] | Callable[[Node], tuple[Role, ...]] = ()
    adds: Callable[[Node], bool] | None = None
    is_view: bool = False
    free: bool = False
    joins: bool = False
    drops: bool = False
    stops: bool = False
    rearranges: bool = False
    learned: bool = True
    asserts: bool = False
    unread: bool = False
    linear: Callable[[Node], bool] | None = None
    row_bytes: int = 1
    even_strides: bool = False
    rounds: bool = False
    dequantises: bool = False
    convolution: Callable[[Node], Convolution | None] | None = None
    quantised_as: Callable[[Node], Mapping[int, Quantised]] | None = None
    indexes: Callable[[Node], Iterable[tuple[int, Size]]] | None = None
    kinds: Callable[[Node], Iterable[Kind]] | None = None
    nn_layer: NnLayer | None = None
    trains: tuple[str, ...] = ()
    rate: str = ""
    layered: Callable[[Graph, Node, Owner], None] | None = None
    doc: str = ""


TABLE: dict[str, Op] = {}
_ATEN: dict[str, Op] = {}
_ONNX: dict[str, Op] = {}


def op(
    name: str,
    rule: Rule | str,
    *,
    aten: Iterable[str] | Mapping[str, Mapping[str, str]] = (),
    onnx: Iterable[str] | Mapping[str, Any] = (),
    fixed: str = "",
    sizes: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    family: str = "other",
    doc: str = "",
    **rest: Any,
) -> Op:
    """Declare an operator.

    ``rule`` as a string is a signature; ``fixed`` lists its letters that may not change size,
    ``sizes`` binds letters to integer attributes and ``roles`` marks letters (``{"g": "group"}``).
    ``family`` is the heading of the printed table; files bind it once with ``functools.partial``.

    Raises ValueError for a name or spelling declared twice, for a signature that cannot be read or
    does not say what is multiplied, and for a text where several are to be given; TypeError for a
    field that ``Op`` does not have.
    """
    signature = None
    if isinstance(rule, str):
        signature = Signature(
            rule, fixed=tuple(fixed.split()), sizes=dict(sizes or {}), roles=dict(roles or {})
        )
        if "macs" not in rest and not signature.counts:
            raise ValueError(
                f"operator {name!r}: {signature.text!r} does not say how often is multiplied: "
                "give macs="
            )
        rest.setdefault("macs", signature.macs)
        rule = signature.rule
    for told, given in (("aten", aten), ("onnx", onnx), ("samples", rest.get("samples", ()))):
        if isinstance(given, (str, Sample)):
            raise ValueError(f"operator {name!r}: {told} is {given!r}: give a tuple, ({given!r},)")
    aten_map = dict(aten) if isinstance(aten, Mapping) else {a: {} for a in aten}
    onnx_map = dict(onnx) if isinstance(onnx, Mapping) else dict.fromkeys(onnx)
    entry = Op(
        name,
        rule,
        {f"aten.{k}" if k.count(".") == 1 else k: v for k, v in aten_map.items()},
        onnx_map,
        signature=signature,
        family=family,
        doc=doc,
        **rest,
    )
    for target in entry.aten:
        if target.count(".") != 2 or ":" in target:
            raise ValueError(
                f"operator {name!r}: {target!r} is no overload, as in mylib.gate.default"
            )
    places = ((TABLE, [name]), (_ATEN, entry.aten), (_ONNX, entry.onnx))
    for table, keys in places:
        for key in keys:
            if key in table:
                raise ValueError(
                    f"operator {key!r} is declared twice: in {table[key].name!r} and in {name!r}"
                )
    for table, keys in places:
        table.update(dict.fromkeys(keys, entry))
    return entry


_LOADED: list[str] = []
# What stopped the table from loading: half a table would freeze in silence what the rest rules.
_BROKEN: list[Exception] = []


def load_table() -> dict[str, Op]:
    """The whole table; imports the family files on first use. Raises ImportError, every time, where
    one of them cannot be imported."""
    if _BROKEN:
        raise ImportError("the operator table cannot be loaded") from _BROKEN[0]
    if not _LOADED:
        _LOADED.append("done")
        try:
            _import_families()
            load_entry_points("irprune.operators")
        except Exception as broken:
            _BROKEN.append(broken)
            raise
    return TABLE


def _import_families() -> None:
    families, spellings = (
        importlib.import_module(f"irprune.ops.{name}") for name in ("aten", "onnx")
    )
    for info in sorted(pkgutil.iter_modules(families.__path__), key=lambda m: m.name):
        importlib.import_module(f"irprune.ops.aten.{info.name}")
    for info in sorted(pkgutil.iter_modules(spellings.__path__), key=lambda m: m.name):
        if info.name != "functions":  # torch, loaded when a node runs
            importlib.import_module(f"irprune.ops.onnx.{info.name}")


def register_onnx(entry: Op, target: str, how: Any) -> None:
    """Record that ONNX operator ``target`` is read into ``entry``. Raises ValueError where another
    entry has it."""
    if target in _ONNX and _ONNX[target] is not entry:
        raise ValueError(
            f"ONNX operator {target!r} is declared twice: in {_ONNX[target].name!r} and in {entry.name!r}"
        )
    _ONNX[target] = entry
    entry.onnx[target] = how  # type: ignore[index]


def amend(name: str, **changes: Any) -> Op:
    """Change fields of entry ``name``, wherever it stands: what another dialect adds to it."""
    old = TABLE[name]
    made = replace(old, **changes)
    for table in (TABLE, _ATEN, _ONNX):
        for key in [k for k, entry in table.items() if entry is old]:
            table[key] = made
    return made


def is_product(entry: Op) -> bool:
    """Whether the operator is a product of tensors, whose work are multiply-accumulates."""
    product = entry.letters is not None or entry.convolution is not None
    return product or (entry.macs is not None and entry.signature is None)


def lookup(node: Node) -> Op | None:
    """The entry of ``node``, or None where the table has none."""
    return load_table().get(node.op)


def spelling(dialect: str, target: str) -> Op | None:
    """The entry that an ATen overload (``aten.add.Tensor``) or an ONNX operator (``Add``,
    ``com.microsoft::Gelu``) spells."""
    load_table()
    return (_ATEN if dialect == "aten" else _ONNX).get(target)


def aten_target(node: Node) -> str:
    """The ATen overload that runs ``node``; "" where ``Op.run`` does."""
    if node.origin.dialect == "aten":
        return node.origin.target
    entry = lookup(node)
    if entry is None:
        return ""
    if entry.call is not None:
        return entry.call(node)
    return "" if entry.run is not None else next(iter(entry.aten), "")


def role_of(node: Node, i: int) -> Role:
    """What operand ``i`` is to the operator of ``node``; "" where the table does not say."""
    entry = lookup(node)
    if entry is None:
        return ""
    roles = entry.operands(node) if callable(entry.operands) else entry.operands
    return roles[i] if i < len(roles) else ""


def operand_as(node: Node, role: Role) -> Value | None:
    """The first operand of ``node`` in ``role``, None where it has none."""
    return next(
        (v for i, v in enumerate(node.inputs) if v is not None and role_of(node, i) == role), None
    )


def place_of(node: Node, role: Role) -> int:
    """The position of the operand in ``role``, whether or not ``node`` has it; -1 where its
    operator has none."""
    entry = lookup(node)
    roles = () if entry is None else entry.operands
    roles = roles(node) if callable(roles) else roles
    return roles.index(role) if role in roles else -1


def readers_of(value: Value) -> Iterator[tuple[Node, int]]:
    """The nodes that read ``value``, each with the operand that it is there."""
    for node in value.users:
        for i, v in enumerate(node.inputs):
            if v is value:
                yield node, i


def may_mask(weight: Value) -> bool:
    """Whether -inf has a meaning in ``weight``: it is looked up or added, so that it takes out what
    it stands at, and no product sums over it, which would make all of the result infinite."""
    return all(role_of(node, i) != "weight" for node, i in readers_of(weight))


def is_fixed_norm(node: Node) -> bool:
    """Whether ``node`` normalises by stored statistics: a batch norm outside of training, of which
    one result is read."""
    entry = lookup(node)
    return (
        entry is not None
        and operand_as(node, "mean") is not None
        and operand_as(node, "variance") is not None
        and not node.attrs.get("training")
        and not node.attrs.get("use_input_stats")
        and not any(v.users for v in node.outputs[1:])
    )


def is_unread(node: Node) -> bool:
    """Whether no rule covers ``node``: its operator has no entry, or not for this use."""
    entry = lookup(node)
    return entry is None or entry.unread


def draws(node: Node) -> bool:
    """Whether the results of ``node`` are drawn at random."""
    entry = lookup(node)
    return entry is not None and entry.random and not entry.uninitialised


def does_nothing(node: Node) -> bool:
    """Whether ``node`` gives back its first operand as it is, outside of training."""
    entry = lookup(node)
    return entry is not None and (
        entry.drops or entry.stops or (entry.idle is not None and entry.idle(node))
    )


def is_sum(node: Node) -> bool:
    """Whether ``node`` is the plain sum of its two operands."""
    entry = lookup(node)
    return (
        entry is not None
        and entry.adds is not None
        and len(node.inputs) == 2
        and None not in node.inputs
        and entry.adds(node)
    )


def convolution_of(node: Node) -> Convolution | None:
    """``node`` as a convolution; None where it is none."""
    entry = lookup(node)
    return None if entry is None or entry.convolution is None else entry.convolution(node)


def quantised_in(node: Node) -> Mapping[int, Quantised]:
    """The operands of ``node`` that hold integers which stand for numbers."""
    entry = lookup(node)
    return {} if entry is None or entry.quantised_as is None else entry.quantised_as(node)


def result(node: Node, i: int = 0) -> Value:
    """Result ``i`` of ``node``."""
    return node.outputs[i]


def same_type(node: Node) -> bool:
    """Whether the result has the type of the first operand: an operator that keeps the order of
    elements does nothing then."""
    a, b = node.operand(0).type, node.out.type
    return (
        a.dtype == b.dtype
        and a.static == b.static
        and a.rank == b.rank
        and all(map(identical, a.known, b.known))
    )
