"""The text form of a graph: ``to_text`` prints it, ``irprune.ir.parse`` reads it back, and print →
parse → print is the identity.

::

    graph Net with axes {
      axis c0 = 64 keep=[0:16, 20, 22:32]
      axis c1 = 4 role="group"
      axis c2 = 16 whole="kept: it matches 'head*'"

      %x: f32[1, 3, 8, 8] = input
      %conv.weight: f32[(c1 c2), 3, 3, 3] = parameter {aliases=["tied.weight"]}

      %conv2d: f32[1, (c1 c2), 8, 8] = conv(%x, %conv.weight) {stride=[1, 1]}  # net.py:12 in conv
      %cat: f32[1, ((c1 c2)+c0), 8, 8] = cat(%conv2d, %y) {dim=1}
      return %cat
    }

A dimension prints as its axis: a free leaf by name, a product ``(outer inner)``, a sum
``(first+second)``; what is frozen prints as its size. Without axes every dimension is its size.
``keep`` is the choice (ranges are half open; one list per index of the outer axis where each block
has its own: ``keep=[0:2] [1, 3] within=c1``) and ``whole`` says why a leaf takes no part in it. A
missing operand is ``-``; ``foldable`` marks an operator that slicing replaces by a constant where
an axis of it shrinks. The comment is where the node came from. Weights have no values here: a
parsed weight raises IrpruneError when it is loaded. Scores, and what a capture keeps for emitting,
are not in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from irprune.ir.axis import LEAF, PRODUCT, Axis, factors, find, leaves, parts
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.selection import Indices, Selection
from irprune.ir.size import Size, Sym, symbols

__all__ = ["Opaque", "to_text"]

NAME = re.compile(r"[A-Za-z0-9_./$-]*[A-Za-z0-9_/$]")  # what needs no quotes
_WORD = re.compile(r"[A-Za-z_]\w*")


class Opaque:
    """An attribute that has no literal: an array, a subgraph. Only its description is in the
    text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def to_text(graph: Graph, marks: Mapping[Node | Value, str] | None = None) -> str:
    """The text of ``graph``; ``marks`` puts a message as a comment below the line of a node, an
    input or a weight."""
    return "\n".join(lines_of(graph, marks)[0]) + "\n"


def lines_of(
    graph: Graph, marks: Mapping[Node | Value, str] | None = None
) -> tuple[list[str], list[int]]:
    """The lines of the text, and the positions of those that are marks."""
    return _Printer(graph, marks or {}).print()


def quoted(name: str) -> str:
    """A name as it is written: bare where it can be."""
    return name if NAME.fullmatch(name) else json.dumps(name)


class _Printer:
    def __init__(self, graph: Graph, marks: Mapping[Node | Value, str]) -> None:
        self.graph = graph
        self.marks = marks
        self.names: dict[Axis, str] = {}
        self.known: dict[Axis, str | None] = {}  # text of an axis, None where all of it is frozen

    def print(self) -> tuple[list[str], list[int]]:
        graph = self.graph
        body: list[str] = []
        marked: list[int] = []

        def line(text: str, about: Node | Value) -> None:
            body.append(text)
            if about in self.marks:
                marked.append(len(body))
                body.append("  # ^^^ " + " ".join(self.marks[about].split()))

        if graph.axes is not None:
            self._name_leaves()
        for v in graph.inputs:
            line(f"  {self.value(v)} = input", v)
        for w in graph.weights.values():
            line(f"  {self.value(w)} = {_weight(w)}", w)
        if body:
            body.append("")
        for node in graph.nodes:
            line(self.node(node), node)
        body.append(f"  return {', '.join('%' + quoted(v.name) for v in graph.outputs)}".rstrip())
        axes = [self._axis(leaf, name) for leaf, name in self.names.items()]
        head = [
            f"graph {quoted(graph.name)}{' with axes' if graph.axes is not None else ''} {{",
            *axes,
            *([""] if axes else []),
        ]
        return [*head, *body, "}"], [len(head) + k for k in marked]

    # -- axes --------------------------------------------------------------------------------------

    def _name_leaves(self) -> None:
        """c0, c1 ... in the order in which the leaves are met, passing over the symbols of
        sizes."""
        taken = {
            word
            for v in self.graph.values()
            for s in v.type.shape or ()
            if isinstance(s, Sym)
            for word in symbols(s)
        }
        count = 0
        for value in self.graph.values():
            for a in value.axes or ():
                for x in leaves(a):
                    if x in self.names or not _is_free(x):
                        continue
                    while f"c{count}" in taken:
                        count += 1
                    self.names[x] = f"c{count}"
                    count += 1

    def _axis(self, leaf: Axis, name: str) -> str:
        out = f"  axis {name} = {leaf.size}"
        if leaf.role:
            out += f" role={json.dumps(leaf.role)}"
        kept = self.graph.kept
        if kept is not None and leaf in kept.choice:
            out += f" keep={_choice(kept, leaf)}"
            if leaf in kept.within:
                out += f" within={self.names[kept.within[leaf]]}"
        if leaf in self.graph.skipped:
            out += f" whole={json.dumps(self.graph.skipped[leaf])}"
        return out

    def axis(self, a: Axis) -> str | None:
        """The text of an axis with a free leaf in it; None where all of it is frozen."""
        a = find(a)
        if a not in self.known:
            self.known[a] = self._composite(a) if a.kind != LEAF else self.names.get(a)
        return self.known[a]

    def _composite(self, a: Axis) -> str | None:
        many, sign = (factors(a), " ") if a.kind == PRODUCT else (parts(a), "+")
        texts = [self.axis(x) for x in many]
        if all(t is None for t in texts):
            return None
        return (
            "("
            + sign.join(
                t if t is not None else _size(x.size) for t, x in zip(texts, many, strict=True)
            )
            + ")"
        )

    # -- values and nodes --------------------------------------------------------------------------

    def type(self, value: Value) -> str:
        shape = value.type.shape
        if (
            shape is None
            or self.graph.axes is None
            or value.axes is None
            or len(value.axes) != len(shape)
        ):
            return str(value.type)
        dims = [self.axis(a) or str(s) for a, s in zip(value.axes, shape, strict=True)]
        return f"{value.dtype}[{', '.join(dims)}]"

    def value(self, value: Value) -> str:
        return f"%{quoted(value.name)}: {self.type(value)}"

    def node(self, node: Node) -> str:
        made = ", ".join(map(self.value, node.outputs))
        axes = self.graph.axes
        call = (
            "foldable "
            if axes is not None and node.outputs and node.out.name in axes.opened
            else ""
        ) + quoted(node.op)
        operands = ", ".join("-" if v is None else "%" + quoted(v.name) for v in node.inputs)
        attrs = (
            f" {{{', '.join(f'{quoted(k)}={literal(v)}' for k, v in node.attrs.items())}}}"
            if node.attrs
            else ""
        )
        return f"  {made}{' = ' if made else ''}{call}({operands}){attrs}{_origin(node)}"


def _is_free(leaf: Axis) -> bool:
    return leaf.reason is None and leaf.size != 1


def _size(size: Size) -> str:
    """A size beside others: one word, or in parentheses."""
    text = str(size)
    return text if re.fullmatch(r"\w+", text) or _is_grouped(text) else f"({text})"


def _is_grouped(text: str) -> bool:
    """Whether the parenthesis that opens ``text`` closes at its end."""
    depth = 0
    for k, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return k == len(text) - 1 > 0
    return False


def _choice(kept: Selection, leaf: Axis) -> str:
    rows = kept.choice[leaf]
    return " ".join(f"[{_ranges(row)}]" for row in (rows if rows.ndim == 2 else [rows]))


def _ranges(indices: Indices) -> str:
    """Ascending indices as half-open ranges: ``0:16, 20, 22:32``."""
    out: list[str] = []
    first = last = -2
    for i in [*map(int, indices), -2]:
        if i == last + 1:
            last = i
            continue
        if first >= 0:
            out.append(str(first) if first == last else f"{first}:{last + 1}")
        first = last = i
    return ", ".join(out)


def _weight(w: Weight) -> str:
    extra = []
    if w.trainable != (w.kind == "parameter"):
        extra.append(f"trainable={w.trainable}")
    if w.aliases:
        extra.append(f"aliases={literal(list(w.aliases))}")
    return w.kind + (f" {{{', '.join(extra)}}}" if extra else "")


def _origin(node: Node) -> str:
    """The file's name and line, without its folder, and the module path."""
    source = re.split(r"[/\\]", node.origin.source)[-1]
    scope = " ".join(node.origin.scope.split())
    text = " ".join(x for x in (source, f"in {scope}" if scope else "") if x)
    return f"  # {text}" if text else ""


def literal(x: Any) -> str:
    """An attribute as it is written."""
    if x is None or isinstance(x, (bool, int)):
        return str(x)
    if isinstance(x, Sym):
        return _size(x)
    if isinstance(x, float):
        return repr(x)  # inf and nan among them
    if isinstance(x, str):
        return json.dumps(x)
    if isinstance(x, list):
        return f"[{', '.join(map(literal, x))}]"
    if isinstance(x, tuple):
        return f"({', '.join(map(literal, x))}{',' if len(x) == 1 else ''})"
    return f"opaque({json.dumps(x.text if isinstance(x, Opaque) else describe(x))})"


def describe(x: Any) -> str:
    """What kind of thing an attribute without a literal is; the same for equal arrays."""
    if isinstance(x, np.ndarray):
        array = np.ascontiguousarray(x)
        return f"{array.dtype}{list(array.shape)} {crc32(array.tobytes()):08x}"
    return f"{type(x).__name__} {getattr(x, 'name', '')}".strip()


def excerpt(graph: Graph, marks: Mapping[Node | Value, str], around: int = 3) -> str:
    """The lines about ``marks``, each with its message below it and a few lines on both sides."""
    lines, marked = lines_of(graph, marks)
    shown: dict[int, None] = dict.fromkeys(
        i for k in marked for i in range(max(0, k - 1 - around), min(len(lines), k + 1 + around))
    )
    out: list[str] = []
    last = -1
    for i in sorted(shown):
        if i != last + 1:
            out.append("  ...")
        out.append(lines[i])
        last = i
    return "\n".join(out)
