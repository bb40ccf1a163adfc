"""The text of a tree of Python code, as ``ast.unparse`` writes it, which goes through several calls
for each node.

The forms that most lines of a module are made of are written here directly; a tree with anything
else in it goes to ``ast.unparse``. Whoever uses the text compares what Python reads in it with the
tree (``irprune.emit.torch.code.parsed_as_meant``)."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

__all__ = ["INFIX", "text_of"]

INFIX: dict[str, type[ast.operator] | type[ast.cmpop]] = {
    "+": ast.Add,
    "-": ast.Sub,
    "*": ast.Mult,
    "/": ast.Div,
    "//": ast.FloorDiv,
    "%": ast.Mod,
    "@": ast.MatMult,
    "**": ast.Pow,
    "&": ast.BitAnd,
    "|": ast.BitOr,
    "^": ast.BitXor,
    "==": ast.Eq,
    "!=": ast.NotEq,
    "<": ast.Lt,
    "<=": ast.LtE,
    ">": ast.Gt,
    ">=": ast.GtE,
}
_SIGNS = {kind: sign for sign, kind in INFIX.items()}
_ATOMS = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)  # what needs no parentheses anywhere


def text_of(tree: ast.AST) -> str:
    """The source of an expression or a statement that stands alone."""
    write = _FORMS.get(tree.__class__)
    text = write(tree) if write is not None else None
    return ast.unparse(tree) if text is None else text


def _atom(tree: ast.expr) -> str | None:
    return text_of(tree) if tree.__class__ in _ATOMS else None


def _attribute(tree: ast.Attribute) -> str | None:
    of = _atom(tree.value)
    return None if of is None else f"{of}.{tree.attr}"


def _subscript(tree: ast.Subscript) -> str | None:
    of = _atom(tree.value)
    plain = tree.slice.__class__ in (ast.Name, ast.Constant, ast.UnaryOp)
    return f"{of}[{text_of(tree.slice)}]" if plain and of is not None else None


def _constant(tree: ast.Constant) -> str | None:
    value = tree.value
    if value is None or value.__class__ in (str, int, bool):
        return repr(value)
    return repr(value) if value.__class__ is float and math.isfinite(value) else None


def _unary(tree: ast.UnaryOp) -> str | None:
    number = tree.operand.__class__ is ast.Constant and tree.op.__class__ is ast.USub
    return f"-{text_of(tree.operand)}" if number else None


def _list(tree: ast.List) -> str:
    return f"[{', '.join(map(text_of, tree.elts))}]"


def _tuple(tree: ast.Tuple) -> str:
    inside = ", ".join(map(text_of, tree.elts))
    return f"({inside},)" if len(tree.elts) == 1 else f"({inside})"


def _call(tree: ast.Call) -> str | None:
    function = _atom(tree.func)
    if function is None:
        return None
    given = [text_of(a) for a in tree.args]
    for pair in tree.keywords:
        if pair.arg is None:
            return None
        given.append(f"{pair.arg}={text_of(pair.value)}")
    return f"{function}({', '.join(given)})"


def _operand(tree: ast.expr) -> str | None:
    return text_of(tree) if tree.__class__ is ast.Constant else _atom(tree)


def _binary(tree: ast.BinOp) -> str | None:
    left, right = _operand(tree.left), _operand(tree.right)
    if left is None or right is None:
        return None
    return f"{left} {_SIGNS[tree.op.__class__]} {right}"


def _compare(tree: ast.Compare) -> str | None:
    left, right = _operand(tree.left), _operand(tree.comparators[0])
    sign = _SIGNS.get(tree.ops[0].__class__)
    if left is None or right is None or sign is None or len(tree.ops) > 1:
        return None
    return f"{left} {sign} {right}"


def _assign(tree: ast.Assign) -> str | None:
    plain = len(tree.targets) == 1 and tree.targets[0].__class__ is ast.Name
    plain = plain and tree.type_comment is None
    return f"{text_of(tree.targets[0])} = {text_of(tree.value)}" if plain else None


def _delete(tree: ast.Delete) -> str | None:
    plain = all(t.__class__ is ast.Name for t in tree.targets)
    return f"del {', '.join(map(text_of, tree.targets))}" if plain else None


_FORMS: dict[type, Callable[[Any], str | None]] = {
    ast.Name: lambda tree: str(tree.id),
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.Constant: _constant,
    ast.UnaryOp: _unary,
    ast.List: _list,
    ast.Tuple: _tuple,
    ast.Call: _call,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Expr: lambda tree: _atom(tree.value),
    ast.Assign: _assign,
    ast.Delete: _delete,
}
