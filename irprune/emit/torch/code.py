"""Python code as trees: what a model's file says enters generated source only as an identifier that
was checked or as a literal.

No text of a name is ever pasted into code. An expression is a ``Code``, made of other expressions
by the functions here; ``quote`` fills the holes of a template that irprune itself wrote. The text
comes from the tree at the end, and ``parsed_as_meant`` compares what Python reads in it with the
tree: line by line in functions, so that no more than the tree of a line is held, and then the frame
around the lines."""

from __future__ import annotations

import ast
import copy
import functools
import keyword
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irprune.emit.torch.text_of import INFIX, text_of
from irprune.errors import IrpruneError, printable

__all__ = [
    "DEVICE",
    "INFIX",
    "Code",
    "Function",
    "Line",
    "Parameters",
    "Written",
    "assign",
    "attribute",
    "call",
    "delete",
    "identifier",
    "infix",
    "is_identifier",
    "literal",
    "parsed_as_meant",
    "quote",
    "statement",
    "subscript",
    "tuple_of",
    "variable",
]


class Code:
    """An expression. Two are equal where their trees are."""

    __slots__ = ("tree",)

    def __init__(self, tree: ast.expr) -> None:
        self.tree = tree

    def __str__(self) -> str:
        return ast.unparse(self.tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and _same(self.tree, other.tree)

    def __hash__(self) -> int:
        return hash(str(self))


# -- names -----------------------------------------------------------------------------------------


def is_identifier(text: str) -> bool:
    """Whether Python reads ``text`` as one name, and as this one: it reads some letters as others
    (``ª`` as ``a``)."""
    return (
        text.isidentifier()
        and not keyword.iskeyword(text)
        and unicodedata.normalize("NFKC", text) == text
    )


def identifier(text: str) -> str:
    """``text`` where it is an identifier, and one like it in ASCII letters where it is not."""
    if is_identifier(text):
        return text
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in text)
    return plain + "_" if keyword.iskeyword(plain) else f"v_{plain}"


def variable(text: str) -> Code:
    """The variable ``text``. Raises ValueError for what is no identifier."""
    if not is_identifier(text):
        raise ValueError(f"{text!r} is no identifier")
    return Code(ast.Name(text))


def attribute(of: Code, text: str) -> Code:
    """``of.text``. Raises ValueError for what is no identifier."""
    if not is_identifier(text):
        raise ValueError(f"{text!r} is no identifier")
    return Code(ast.Attribute(of.tree, text))


# -- expressions -----------------------------------------------------------------------------------


def literal(x: Any) -> Code:
    """``x`` as code: numbers, strings, lists, torch's dtypes, and ``Code`` as it is. Raises
    IrpruneError for what has no literal."""
    if isinstance(x, Code):
        return x
    if isinstance(x, (list, tuple)):
        return Code(ast.List([literal(v).tree for v in x]))
    if isinstance(x, str):
        return Code(ast.Constant(str(x)))
    if x is None or isinstance(x, bool):
        return Code(ast.Constant(x))
    if isinstance(x, int):
        return _signed(int(x), x < 0)
    if isinstance(x, float):
        if not math.isfinite(x):
            return call("float", [repr(float(x))])
        return _signed(float(x), math.copysign(1.0, x) < 0)
    if isinstance(x, complex):
        return call("complex", [x.real, x.imag])
    if isinstance(x, (torch.dtype, torch.layout, torch.memory_format)):
        return _dotted(str(x))
    if isinstance(x, torch.device):
        return call("torch.device", [str(x)])
    raise IrpruneError(
        f"a {type(x).__name__} cannot be written as source",
        "",
        "numbers, texts and lists of them can",
    )


def _signed(x: float, negative: bool) -> Code:
    """Python has no negative literals: a minus stands before the number."""
    return Code(ast.UnaryOp(ast.USub(), ast.Constant(-x)) if negative else ast.Constant(x))


def call(
    function: Code | str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Code:
    """``function(...)``; ``function`` as text is a dotted name, arguments that are no code are
    literals."""
    for key in kwargs or {}:
        if not is_identifier(key):
            raise ValueError(f"{key!r} is no identifier")
    return Code(
        ast.Call(
            (_dotted(function) if isinstance(function, str) else function).tree,
            [literal(a).tree for a in args],
            [ast.keyword(k, literal(v).tree) for k, v in (kwargs or {}).items()],
        )
    )


def _dotted(path: str) -> Code:
    first, *rest = path.split(".")
    return functools.reduce(attribute, rest, variable(first))


def subscript(of: Code, items: Sequence[Code | slice]) -> Code:
    """``of[a, b:c]``; the bounds of a slice are literals or code, None where there is none."""

    def bound(x: Any) -> ast.expr | None:
        return None if x is None else literal(x).tree

    parts: list[ast.expr] = [
        ast.Slice(bound(i.start), bound(i.stop), bound(i.step)) if isinstance(i, slice) else i.tree
        for i in items
    ]
    return Code(ast.Subscript(of.tree, parts[0] if len(parts) == 1 else ast.Tuple(parts)))


def tuple_of(items: Iterable[Code]) -> Code:
    """``(a, b)``."""
    return Code(ast.Tuple([i.tree for i in items]))


def infix(left: Any, operator: str, right: Any) -> Code:
    """``left operator right``."""
    made = INFIX[operator]()
    a, b = literal(left).tree, literal(right).tree
    return Code(
        ast.Compare(a, [made], [b]) if isinstance(made, ast.cmpop) else ast.BinOp(a, made, b)
    )


@functools.lru_cache(maxsize=512)
def _template(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def quote(template: str, *holes: Any) -> Code:
    """``template``, an expression that irprune wrote, with ``_0``, ``_1``, ... replaced by
    ``holes``: code, or values that become literals."""
    return Code(_filled(_template(template), holes))


def _filled(tree: Any, holes: Sequence[Any]) -> Any:
    """A copy of a template with its holes filled."""
    if isinstance(tree, list):
        return [_filled(x, holes) for x in tree]
    if not isinstance(tree, ast.AST):
        return tree
    if isinstance(tree, ast.Name) and tree.id.startswith("_") and tree.id[1:].isdigit():
        return literal(holes[int(tree.id[1:])]).tree
    made = tree.__class__.__new__(tree.__class__)
    vars(made).update((k, _filled(x, holes)) for k, x in vars(tree).items())
    return made


# -- statements ------------------------------------------------------------------------------------


def statement(expression: Code) -> ast.stmt:
    """An expression as a statement of its own."""
    return ast.Expr(expression.tree)


def assign(target: Code, value: Code) -> ast.stmt:
    """``target = value``."""
    return ast.Assign([_stored(target.tree)], value.tree, lineno=0)  # ast.unparse asks for a line


def _stored(tree: ast.expr) -> ast.expr:
    if isinstance(tree, ast.Name):
        return ast.Name(tree.id, ast.Store())
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Tuple)):
            node.ctx = ast.Store()
    return tree


def delete(names: Sequence[str]) -> ast.stmt:
    """``del a, b``."""
    for text in names:
        variable(text)
    return ast.Delete([ast.Name(text, ast.Del()) for text in names])


@dataclass(frozen=True)
class Line:
    """Statements that stand on one line, or a comment; a comment may be any text."""

    statements: tuple[ast.stmt, ...] = ()
    comment: str = ""

    @functools.cached_property
    def text(self) -> str:
        """The source of the line."""
        if self.comment:
            return f"# {printable(self.comment)}"
        return "; ".join(map(text_of, self.statements))

    def checked(self, where: str) -> Written:
        """The line as text alone, whose trees need not be kept: those of a large model take more
        memory than its largest weight. Raises IrpruneError where Python reads something else in the
        text than its statements, or where it is no whole line."""
        text = self.text
        parsed_as_meant(text, self.statements, where)
        if len(text.splitlines()) > 1:
            raise _meant_otherwise(where)
        return Written(text, DEVICE in text and any(map(_names_device, self.statements)))


def _names_device(statement: ast.stmt) -> bool:
    return any(isinstance(n, ast.Name) and n.id == DEVICE for n in ast.walk(statement))


DEVICE = "device"  # the variable that holds where a model runs


@dataclass(frozen=True)
class Written:
    """A line of which Python reads what was meant (``Line.checked``).

    Args:
        text: The source of the line.
        names_device: Whether it reads or sets the variable ``DEVICE``.
    """

    text: str
    names_device: bool


class Parameters:
    """The parameters of a function, given one after the other."""

    def __init__(self) -> None:
        self.plain: list[str] = []
        self.defaults: list[Code] = []
        self.rest: str | None = None
        self.named: list[tuple[str, Code | None]] = []
        self.starred = False

    def add(self, own: str, default: Code | None = None) -> None:
        """A parameter; behind a star it is given by keyword alone."""
        variable(own)
        if self.starred:
            self.named.append((own, default))
            return
        if default is None and self.defaults:
            raise ValueError(f"{own!r} without a default stands behind one that has one")
        self.plain.append(own)
        self.defaults += [] if default is None else [default]

    def star(self, own: str | None = None) -> None:
        """``*``, or ``*own`` for what is given beyond the others."""
        if own is not None:
            variable(own)
        self.starred, self.rest = True, own

    @property
    def tree(self) -> ast.arguments:
        """What stands between the parentheses."""
        return ast.arguments(
            [],
            [ast.arg(p) for p in self.plain],
            None if self.rest is None else ast.arg(self.rest),
            [ast.arg(p) for p, _ in self.named],
            [None if d is None else d.tree for _, d in self.named],
            None,
            [d.tree for d in self.defaults],
        )


@dataclass
class Function:
    """A function whose text keeps its comments. Its lines are checked; ``frame`` is what is left to
    be compared."""

    own: str
    parameters: Parameters
    lines: list[Written]

    @property
    def frame(self) -> ast.stmt:
        """The tree of the function with nothing in it."""
        variable(self.own)
        return ast.FunctionDef(self.own, self.parameters.tree, [ast.Pass()], [])

    def text(self, indent: str = "", lines: bool = True) -> str:
        """The source, each line behind ``indent``; without its ``lines`` that of the frame."""
        head = f"{indent}def {self.own}({ast.unparse(self.parameters.tree)}):\n"
        within = [line.text for line in self.lines] if lines else ["pass"]
        return head + "".join(f"{indent}    {text}\n" for text in within)


# -- the comparison --------------------------------------------------------------------------------


def parsed_as_meant(text: str, meant: Sequence[ast.stmt], where: str) -> None:
    """Raises IrpruneError where Python reads something else in ``text`` than the statements
    ``meant``."""
    try:
        found: list[ast.stmt] = ast.parse(text).body
    except (SyntaxError, ValueError):
        found = []
    if not _same(found, list(meant)):
        raise _meant_otherwise(where)


def _meant_otherwise(where: str) -> IrpruneError:
    return IrpruneError(
        "the source of the module does not say what it was meant to; it was not run",
        where,
        "report this as a bug",
    )


_PLACES = ("ctx", "kind", "type_comment", "type_params")


@functools.cache
def _fields(kind: type) -> tuple[str, ...] | None:
    """What of a kind of tree counts; None for what is no tree."""
    if not issubclass(kind, ast.AST):
        return None
    return tuple(f for f in kind._fields if f not in _PLACES)


def _same(a: Any, b: Any) -> bool:
    """Whether two trees are equal; places in the text, and whether a name is read or set, do not
    count."""
    kind = a.__class__
    if kind is not b.__class__:
        return False
    if kind is list:
        return len(a) == len(b) and all(map(_same, a, b))
    fields = _fields(kind)
    if fields is None:
        return bool(a == b)
    for field in fields:
        x, y = getattr(a, field, None), getattr(b, field, None)
        if x.__class__ is str:  # most are names
            if x != y:
                return False
        elif not _same(x, y):
            return False
    return True
