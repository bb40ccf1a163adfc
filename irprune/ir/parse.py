"""Reading the text form of a graph (``irprune.ir.text``), line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from irprune.errors import IrpruneError
from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Graph, GraphError, Origin, TensorType, Value, Weight
from irprune.ir.selection import Selection
from irprune.ir.size import parse_size
from irprune.ir.text import NAME, Opaque

__all__ = ["from_text"]

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_WORD = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"-?(?:inf|nan|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w.])")
_COMMENT = re.compile(r'((?:"(?:[^"\\]|\\.)*"|[^"#])*)(?:#(.*))?')


def from_text(text: str, source: str = "text") -> Graph:
    """The graph that ``text`` describes. Raises IrpruneError naming ``source`` and the line that
    cannot be read."""
    return _Parser(text, source).parse()


class _Line:
    """One line, read from left to right."""

    def __init__(self, text: str, fail: Callable[[str], NoReturn]) -> None:
        self.text, self.at, self.fail = text.strip(), 0, fail

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1

    def take(self, pattern: str | re.Pattern[str]) -> str | None:
        """What matches here, or None; blanks before it are passed over."""
        self._skip()
        found = re.compile(pattern).match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def need(self, pattern: str | re.Pattern[str], what: str) -> str:
        found = self.take(pattern)
        if found is None:
            rest = self.text[self.at : self.at + 20]
            self.fail(f"{what} expected at {rest!r}" if rest else f"{what} expected at the end")
        return found

    def name(self) -> str:
        """A bare or a quoted name."""
        text = self.take(_STRING)
        return json.loads(text) if text is not None else self.need(NAME, "a name")

    def inside(self, left: str, right: str) -> str:
        """The text between ``left``, which comes next, and the ``right`` that closes it."""
        self.need(re.escape(left), repr(left))
        depth, start = 1, self.at
        while self.at < len(self.text):
            c = self.text[self.at]
            depth += (c == left) - (c == right)
            text = _STRING.match(self.text, self.at)
            self.at = text.end() if text is not None else self.at + 1
            if depth == 0:
                return self.text[start : self.at - 1]
        self.fail(f"{left!r} is not closed")

    def end(self) -> None:
        self._skip()
        if self.at < len(self.text):
            self.fail(f"{self.text[self.at : self.at + 20]!r} is too much")


def _split(text: str, sign: str) -> list[str]:
    """``text`` cut at every ``sign`` outside of parentheses; blanks around the pieces go."""
    out, depth, start = [], 0, 0
    for k, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if c == sign and depth == 0:
            out.append(text[start:k].strip())
            start = k + 1
    return [*out, text[start:].strip()]


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self.lines = text.splitlines()
        self.source = source
        self.number = 0
        self.graph = Graph()
        self.axes: Axes | None = None
        self.leaves: dict[str, Axis] = {}
        self.values: dict[str, Value] = {}
        self.choice: dict[Axis, Any] = {}
        self.within: dict[Axis, str] = {}

    def fail(self, what: str) -> NoReturn:
        raise IrpruneError(
            f"not the text of a graph: {what}",
            f"{self.source}:{self.number}",
            "give a text that irprune printed",
        )

    def parse(self) -> Graph:
        state = "head"
        for whole in self.lines:
            self.number += 1
            found = _COMMENT.fullmatch(whole)
            if found is None:
                self.fail("a quote is not closed")
            text, comment = found[1].strip(), (found[2] or "").strip()
            if text:
                try:
                    state = self._read(state, text, comment)
                except (ValueError, GraphError) as wrong:
                    self.fail(str(wrong))
        if state != "done":
            self.fail("it is empty" if state == "head" else "it ends before the graph does")
        try:
            return self._finished()
        except ValueError as wrong:
            self.fail(str(wrong))

    def _read(self, state: str, text: str, comment: str) -> str:
        """Read one line; returns what comes next: the ``head``, the ``body``, the ``end`` or
        nothing any more (``done``)."""
        line = _Line(text, self.fail)
        if state == "head":
            self._head(line)
            return "body"
        if state == "end":
            line.need(r"\}", "'}'")
            line.end()
            return "done"
        if state == "done":
            self.fail("something follows the end of the graph")
        if line.take(r"return\b") is not None:
            self._return(line)
            return "end"
        if line.take(r"axis\b(?= )") is not None:
            self._axis(line)
        else:
            self._statement(line, comment)
        return "body"

    def _finished(self) -> Graph:
        if self.axes is not None:
            self.graph.axes = self.axes
            if self.choice:
                self.graph.kept = Selection(
                    self.choice, {a: self._leaf(name) for a, name in self.within.items()}
                )
        return self.graph

    # -- lines -------------------------------------------------------------------------------------

    def _head(self, line: _Line) -> None:
        line.need(r"graph\b", "'graph'")
        self.graph.name = line.name()
        if line.take(r"with axes\b") is not None:
            self.axes = Axes()
        line.need(r"\{", "'{'")
        line.end()

    def _axis(self, line: _Line) -> None:
        if self.axes is None:
            self.fail("an axis in a graph without axes")
        name = line.need(_WORD, "a name")
        if name in self.leaves:
            self.fail(f"two axes are called {name}")
        line.need("=", "'='")
        leaf = self.leaves[name] = self.axes.leaf(int(line.need(r"\d+", "a size")))
        while (key := line.take(r"role|keep|within|whole")) is not None:
            line.need("=", "'='")
            if key == "keep":
                rows = [_indices(line.inside("[", "]"))]
                while line.take(r"(?=\[)") is not None:
                    rows.append(_indices(line.inside("[", "]")))
                self.choice[leaf] = rows
            elif key == "within":
                self.within[leaf] = line.need(_WORD, "the name of an axis")
            elif key == "role":
                leaf.role = json.loads(line.need(_STRING, "a text in quotes"))
            else:
                self.graph.skipped[leaf] = json.loads(line.need(_STRING, "a text in quotes"))
        if leaf in self.choice:
            rows = self.choice[leaf]
            self.choice[leaf] = np.asarray(rows if leaf in self.within else rows[0], dtype=np.int64)
        line.end()

    def _leaf(self, name: str) -> Axis:
        if name not in self.leaves:
            self.fail(f"no axis {name}")
        return self.leaves[name]

    def _return(self, line: _Line) -> None:
        while line.take("%") is not None:
            self.graph.outputs.append(self._value(line.name()))
            if line.take(",") is None:
                break
        line.end()

    def _statement(self, line: _Line, comment: str) -> None:
        results: list[tuple[str, TensorType, tuple[Axis, ...] | None]] = []
        while line.take("%") is not None:
            name = line.name()
            line.need(":", "':'")
            results.append((name, *self._type(line)))
            if line.take(",") is None:
                line.need("=", "'='")
                break
        kind = line.take(r"(input|parameter|buffer|constant)(?![\w./$(-])")
        if kind is not None and len(results) != 1:
            self.fail(f"one {kind} at a time")
        if kind == "input":
            self._define(self.graph.add_input(*results[0][:2]), results[0][2])
        elif kind is not None:
            self._weight(line, kind, *results[0])
        else:
            self._node(line, results, comment)
        line.end()

    def _weight(
        self, line: _Line, kind: str, name: str, type: TensorType, axes: tuple[Axis, ...] | None
    ) -> None:
        extra = self._attrs(line)
        aliases, trainable = (
            tuple(extra.pop("aliases", ())),
            bool(extra.pop("trainable", kind == "parameter")),
        )
        weight = Weight(name, type, _no_values(name, self.source), kind, aliases, trainable)
        if extra:
            self.fail(f"a weight has no {next(iter(extra))!r}")
        self._define(self.graph.add_weight(weight), axes)

    def _node(
        self,
        line: _Line,
        results: list[tuple[str, TensorType, tuple[Axis, ...] | None]],
        comment: str,
    ) -> None:
        foldable = line.take(r"foldable\b(?!\()") is not None
        op = self._op(line)
        operands: list[Value | None] = []
        line.need(r"\(", "'('")
        while line.take(r"\)") is None:
            if operands:
                line.need(",", "','")
            operands.append(
                None
                if line.take("-") is not None
                else self._value(line.need("%", "an operand") and line.name())
            )
        source, _, scope = (
            ("", "", comment[3:]) if comment.startswith("in ") else comment.partition(" in ")
        )
        node = self.graph.add(
            op,
            operands,
            self._attrs(line),
            [r[:2] for r in results],
            Origin(scope=scope, source=source),
        )
        for value, (_, _, axes) in zip(node.outputs, results, strict=True):
            self._define(value, axes)
        if foldable and self.axes is not None:
            self.axes.opened[node.out.name] = None

    def _op(self, line: _Line) -> str:
        text = line.take(_STRING)
        return json.loads(text) if text is not None else line.need(NAME, "an operator")

    # -- pieces ------------------------------------------------------------------------------------

    def _define(self, value: Value, axes: tuple[Axis, ...] | None) -> None:
        if value.name in self.values:
            self.fail(f"two values are called %{value.name}")
        value.axes = axes
        self.values[value.name] = value

    def _value(self, name: str) -> Value:
        if name not in self.values:
            self.fail(f"%{name} is not defined before it is read")
        return self.values[name]

    def _type(self, line: _Line) -> tuple[TensorType, tuple[Axis, ...] | None]:
        dtype = line.need(r"\w+", "an element type")
        text = line.inside("[", "]")
        if text == "?":
            return TensorType(dtype, None), None
        dims = _split(text, ",") if text.strip() else []
        if self.axes is None:
            return TensorType(dtype, tuple(map(parse_size, dims))), None
        axes = tuple(self._dim(d) for d in dims)
        return TensorType(dtype, tuple(a.size for a in axes)), axes

    def _dim(self, text: str) -> Axis:
        assert self.axes is not None
        if text in self.leaves:
            return self.leaves[text]
        if not any(word in self.leaves for word in _WORD.findall(text)):
            return self.axes.frozen(parse_size(text), "as the text says")
        if not (text.startswith("(") and text.endswith(")")):
            self.fail(f"{text!r} is no dimension")
        terms, inner = _split(text[1:-1], "+"), [x for x in _split(text[1:-1], " ") if x]
        if len(terms) > 1:
            return self.axes.sum([self._dim(t) for t in terms])
        return self.axes.product([self._dim(t) for t in inner])

    def _attrs(self, line: _Line) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if line.take(r"\{") is None:
            return out
        while line.take(r"\}") is None:
            if out:
                line.need(",", "','")
            key = line.name()
            line.need("=", "'='")
            out[key] = self._literal(line)
        return out

    def _literal(self, line: _Line) -> Any:
        if (text := line.take(_STRING)) is not None:
            return json.loads(text)
        if (text := line.take(_NUMBER)) is not None:
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        if line.take(r"\[") is not None:
            return self._items(line, r"\]")
        if line.take(r"opaque\(") is not None:
            made = Opaque(json.loads(line.need(_STRING, "a text in quotes")))
            line.need(r"\)", "')'")
            return made
        if (text := line.take(r"(None|True|False)\b")) is not None:
            return {"None": None, "True": True, "False": False}[text]
        if line.take(r"(?=\()") is not None:
            start = line.at
            inside = line.inside("(", ")")
            if inside and len(_split(inside, ",")) == 1:  # no comma, so no tuple
                return parse_size(f"({inside})")
            line.at = start + 1
            return tuple(self._items(line, r"\)"))
        return parse_size(line.need(_WORD, "a value"))

    def _items(self, line: _Line, close: str) -> list[Any]:
        out: list[Any] = []
        while line.take(close) is None:
            if out:
                line.need(",", "','")
                if line.take(close) is not None:
                    break
            out.append(self._literal(line))
        return out


def _indices(text: str) -> list[int]:
    """``0:16, 20`` as a list."""
    out: list[int] = []
    for piece in filter(None, _split(text, ",")):
        first, _, last = piece.partition(":")
        if not first.isdigit() or not (last.isdigit() or last == ""):
            raise ValueError(f"{piece!r} is no range of indices")
        out += range(int(first), int(last) if last else int(first) + 1)
    return out


def _no_values(name: str, source: str) -> Callable[[], Any]:
    def load() -> Any:
        raise IrpruneError(
            f"the weight {name!r} has no values",
            source,
            "the text form holds none: run this on the model itself",
        )

    return load
