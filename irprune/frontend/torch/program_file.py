"""``.pt2`` files, which may come from a stranger.

``torch.export.load`` unpickles what it finds, runs the text of sizes and guards, imports modules
that the file names, makes Python source of its names, and loads compiled libraries. So the archive
is looked through first: what it pickles must load with ``weights_only=True``, every text must be of
the kind that belongs at its place, and nothing else may lie in the archive. The checks read the
archive with the reader that torch loads it with."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, first_line, option, printable

__all__ = ["load_program"]

_TRUST = f"say {option('trust', 'True')} if you trust whoever made the file"


def load_program(path: Path, trust: bool = False) -> Any:
    """The program in a ``.pt2`` file.

    Args:
        path: The file, as ``torch.export.save`` writes it.
        trust: Load it whatever it holds, its code included.

    Raises:
        IrpruneError: For what is no program, and, without ``trust``, for one that may run code of
            its own when it is loaded or run.
    """
    if not path.exists():
        raise IrpruneError("no such file", str(path), "check the path")
    if path.stat().st_size == 0:
        raise IrpruneError("the file is empty", str(path), "write it again with torch.export.save")
    try:
        with quiet():
            if trust:
                return torch.export.load(str(path))
            return _checked(path)
    except _Untrusted as found:
        raise IrpruneError(
            f"the program may run code of its own: {found}", str(path), _TRUST
        ) from found
    except Exception as refused:  # zip, pickle and schema errors of many kinds
        raise IrpruneError(
            f"not a program of torch.export: {printable(first_line(refused))}",
            str(path),
            "write it with torch.export.save",
        ) from refused


class _Untrusted(Exception):
    """What in an archive is no plain data."""


def _checked(path: Path) -> Any:
    try:
        archive = PT2ArchiveReader(str(path))
    except (RuntimeError, AssertionError) as refused:
        raise IrpruneError(first_line(refused)) from refused
    with archive:
        _check_archive(archive.get_file_names(), archive.read_bytes)
    # not torch.export.load: that falls back to an older format, which it unpickles
    return load_pt2(str(path)).exported_programs["model"]


# -- the archive -----------------------------------------------------------------------------------

_MODELS, _WEIGHTS, _CONSTANTS = "models/", "data/weights/", "data/constants/"
_SAMPLES, _EXTRA = "data/sample_inputs/", "extra/"
_PLAIN = ("archive_format", "archive_version", "byteorder", "version")


def _check_archive(names: list[str], read: Callable[[str], bytes]) -> None:
    """Raises _Untrusted for a member that is no plain data."""
    for name in names:
        if name.startswith(_MODELS):
            _check_model(json.loads(read(name)), "")
        elif name.startswith(_SAMPLES):
            _check_pickle(name, read)
        elif name.startswith((_WEIGHTS, _CONSTANTS)):
            if name.endswith("config.json"):
                folder = name.rpartition("/")[0]
                for place, entry in json.loads(read(name))["config"].items():
                    _check_text("a key", place)
                    _check_payload(entry, folder, read)
            elif name.endswith(".pt"):  # of the first releases
                _check_pickle(name, read)
        elif not name.startswith((_EXTRA, ".data/")) and name not in _PLAIN:
            raise _Untrusted(f"it holds {name}, which is no data")


def _check_payload(entry: dict[str, Any], folder: str, read: Callable[[str], bytes]) -> None:
    place = str(entry["path_name"])
    if not re.fullmatch(r"(weight|tensor)_\w+", place):
        raise _Untrusted(f"it holds the object {place}")
    if entry["use_pickle"]:
        _check_pickle(f"{folder}/{place}", read)
    for text in _texts(entry.get("tensor_meta")):
        _check_text(*text)


def _check_pickle(name: str, read: Callable[[str], bytes]) -> None:
    data = read(name)
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as refused:  # whatever an unpickler raises
        raise _Untrusted(f"{name} needs unpickling") from refused


# -- the model -------------------------------------------------------------------------------------


def _check_model(x: Any, key: str) -> None:
    for text in _texts(x, key):
        _check_text(*text)


def _texts(x: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Every text below ``x`` with the key that it stands at; what is only shown is left out."""
    if isinstance(x, dict):
        for k, v in x.items():
            if k not in _SHOWN:
                yield "a key", k
                yield from _texts(v, k)
    elif isinstance(x, list):
        for v in x:
            yield from _texts(v, key)
    elif isinstance(x, str):
        yield key, x


# texts that torch keeps as texts: traces, and the values of arguments, which it writes as literals
_SHOWN = ("metadata", "as_string", "as_strings", "torch_version")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)?")
_PLAIN_TEXT = re.compile(r"[^\"'\\\x00-\x1f\x7f\u2028\u2029()]*")
_NAMESPACES = ("aten", "prims", "torchvision", "higher_order", "quantized_decomposed")
_OPERATOR = re.compile(
    rf"torch\.ops\.({'|'.join(_NAMESPACES)})(\.\w+)+|math\.\w+|torch\.(_?sym_\w+|_sym_\w+)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_"
    r"|invert|getitem|lshift|rshift|abs|is_|is_not|iadd|isub|imul)"
)
_INFIX_NAMES = re.compile(r"__i?(and|or|xor|lshift|rshift)__")


def _check_text(key: str, text: str) -> None:
    """Raises _Untrusted where ``text`` is none of the kind that stands at ``key``."""
    if key == "expr_str":
        fits = _is_size(text)
    elif key == "guards_code":
        fits = _is_guard(text)
    elif key in ("in_spec", "out_spec"):
        fits = not text or _is_structure(json.loads(text))
    elif key in ("target", "as_operator"):
        fits = _is_operator(text)
    elif key in ("name", "as_name"):
        fits = _NAME.fullmatch(text) is not None
    else:
        fits = _PLAIN_TEXT.fullmatch(text) is not None
    if not fits:
        raise _Untrusted(f"'{key}' is {printable(text, 80)!r}")


def _is_operator(text: str) -> bool:
    parts = text.split(".")
    private = [p for p in parts if p.startswith("__") and not _INFIX_NAMES.fullmatch(p)]
    opens = "from_file" in parts  # maps a file, or makes one
    name = _PLAIN_TEXT.fullmatch(text) and "." not in text  # the signature: what is mutated
    return bool(name or (_OPERATOR.fullmatch(text) and not private and not opens))


_SIZES = frozenset(
    "Symbol Dummy Integer Float Rational Mul Add Pow Max Min Mod Abs And Or Not Eq Ne Lt Le Gt Ge "
    "Equality Unequality StrictLessThan StrictGreaterThan LessThan GreaterThan Piecewise ITE "
    "ExprCondPair FloorDiv CleanDiv CeilDiv CeilToInt FloorToInt TruncToInt TruncToFloat "
    "RoundToInt RoundDecimal IntTrueDiv FloatTrueDiv PythonMod ModularIndexing Where ToFloat "
    "PowByNatural FloatPow Identity floor ceiling sqrt "
    "OpaqueUnaryFn_sqrt OpaqueUnaryFn_log OpaqueUnaryFn_log2 OpaqueUnaryFn_exp".split()
)
_VALUES = frozenset("true false oo int_oo nan Zero One Half NegativeOne Infinity".split())
_WORD = re.compile(r"[\w.+-]*")
_ARITHMETIC = (
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.BoolOp,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.Tuple,
    ast.expr_context,
    ast.keyword,
    ast.Expression,
)


def _tree(text: str) -> ast.Expression | None:
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return None


def _is_size(text: str) -> bool:
    """Whether ``text`` is arithmetic over symbols, as sympy prints it: calls of known functions
    alone, and texts that are words."""
    tree = _tree(text)
    if tree is None:
        return False
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in _SIZES:
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not _WORD.fullmatch(node.value):
                return False
        elif isinstance(node, ast.Name):
            plain = re.fullmatch(r"[a-z]+\d+", node.id) or node.id in _VALUES
            if id(node) not in called and not plain:
                return False
        elif not isinstance(node, _ARITHMETIC):
            return False
    return True


_ASKED = frozenset("size stride shape dtype device storage_offset dim numel item math".split())
_ASKING = frozenset("L G math max min float int len round abs torch".split())


def _is_guard(text: str) -> bool:
    """Whether ``text`` compares sizes of the inputs, as torch prints its guards."""
    tree = _tree(text)
    if tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whole = isinstance(node.value, ast.Name) and node.value.id == "math"
            if node.attr not in _ASKED and not (whole and node.attr in ("ceil", "floor", "trunc")):
                return False
        elif isinstance(node, ast.Name):
            if node.id not in _ASKING and node.id not in _SIZES:
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not re.fullmatch(r"\w*", node.value):
                return False
        elif not isinstance(node, (ast.Call, ast.Subscript, *_ARITHMETIC)):
            return False
    return True


_FACTORIES = tuple(("builtins", name) for name in ("list", "dict", "int", "float", "str", "set"))


def _is_structure(x: Any) -> bool:
    """Whether a pytree names nothing that is to be imported."""
    if isinstance(x, dict):
        if "__enum__" in x or "fqn" in x:
            return False
        made = x.get("default_factory_module"), x.get("default_factory_name")
        if made != (None, None) and made not in _FACTORIES:
            return False
        context = x.get("context")
        if isinstance(context, str) and not _is_structure(_json(context)):
            return False
        return all(map(_is_structure, x.values()))
    return all(map(_is_structure, x)) if isinstance(x, list) else True


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
