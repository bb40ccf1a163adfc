"""The operator table is the only place that knows operators: outside of ops/ no name of an operator
or of a family stands in a comparison, and there are no tables of such names.

What was asked of a name is a trait of the entry (``irprune.ops.registry.Op``)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from irprune.ops.onnx.importer import SPELLINGS
from irprune.ops.registry import load_table

ROOT = Path(__file__).resolve().parents[2]

# What is written as text, or recorded by torch, is called by its name somewhere: why, in one line.
ALLOWED = {
    "irprune/emit/torch/spelling.py": "how each ATen overload is written in Python",
    "irprune/frontend/torch/build.py": "which composites of ATen may alias is not in their schemas",
    "irprune/frontend/torch/export.py": "what torch's own passes put in the place of layers is undone",
    "irprune/frontend/torch/program_file.py": "the functions that a size in a stored program may call",
    "irprune/frontend/torch/by_value.py": "calls that read values, as torch dispatches them",
    "irprune/frontend/torch/trace.py": "what torch hands on of a small model is looked at",
    "irprune/frontend/torch/recorder.py": "calls that are no operators, as torch dispatches them",
    "irprune/frontend/torch/views.py": "writes through a view, by the ATen function that took it",
    "irprune/frontend/torch/size_nodes.py": "comparisons of sizes, by torch's names for them",
    "irprune/ir/open_sizes.py": "the arithmetic of sizes has operators of its own",
    "irprune/ir/size.py": "the arithmetic of sizes has operators of its own",
    "irprune/run/stored_tensor.py": "what reads no values of a tensor, as torch dispatches it",
}
# names of attributes and variables that hold the name of an operator or of a family
HOLDERS = {"op", "op_type", "family", "target", "spelled"}


@dataclass(frozen=True)
class Found:
    """A place that knows an operator by its name."""

    line: int
    what: str


def names() -> set[str]:
    """Every name that an operator has: of entries, ATen overloads and their functions, ONNX
    operators."""
    table = load_table().values()
    aten = {target for entry in table for target in entry.aten}
    return {
        *(entry.name for entry in table),
        *(entry.family for entry in table),
        *SPELLINGS,
        *(target for entry in table for target in entry.onnx),
        *aten,
        *(target.removeprefix("aten.") for target in aten),
        *(target.split(".")[1] for target in aten),
    }


def _strings(tree: ast.AST) -> list[str]:
    return [
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def _holds(tree: ast.expr) -> bool:
    """Whether an expression is, or is made of, the name of an operator."""
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute) and n.attr in HOLDERS:
            return ast.unparse(n.value) != "size"  # the arithmetic of sizes, see ir/size.py
        if isinstance(n, ast.Name) and n.id in HOLDERS:
            return True
        if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(("target_of", "aten_target")):
            return True
    return False


def _constants(tree: ast.Module) -> set[str]:
    """Module-level names that are bound to strings or containers of strings."""
    out = set()
    for n in tree.body:
        value = n.value if isinstance(n, (ast.Assign, ast.AnnAssign)) else None
        if value is not None and _strings(value):
            targets = n.targets if isinstance(n, ast.Assign) else [n.target]  # type: ignore[union-attr]
            out |= {t.id for t in targets if isinstance(t, ast.Name)}
    return out


def faults(source: str, known: set[str]) -> Iterator[Found]:
    """The places of ``source`` that know operators by name."""
    tree = ast.parse(source)
    told = _constants(tree)

    def literal(n: ast.expr) -> bool:
        if isinstance(n, ast.Subscript):
            return False
        return bool(_strings(n)) or any(
            isinstance(x, ast.Name) and x.id in told for x in ast.walk(n)
        )

    for n in ast.walk(tree):
        if isinstance(n, ast.Compare):
            sides = [n.left, *n.comparators]
            if any(map(_holds, sides)) and any(literal(s) and not _holds(s) for s in sides):
                yield Found(n.lineno, f"compares {ast.unparse(n)}")
        elif isinstance(n, ast.Match) and _holds(n.subject):
            yield Found(n.lineno, f"matches {ast.unparse(n.subject)}")
        elif isinstance(n, ast.Subscript) and isinstance(n.value, ast.Name) and n.value.id in told:
            if _holds(n.slice):
                yield Found(n.lineno, f"looks up {ast.unparse(n)}")
        elif isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute):
            if n.func.attr in ("startswith", "endswith") and _holds(n.func.value):
                yield Found(n.lineno, f"tests {ast.unparse(n)}")
            of = n.func.value
            table = n.func.attr == "get" and isinstance(of, ast.Name) and of.id in told
            if table and any(map(_holds, n.args)):
                yield Found(n.lineno, f"looks up {ast.unparse(n)}")
        elif isinstance(n, (ast.List, ast.Tuple, ast.Set, ast.Dict)):
            held = n.keys if isinstance(n, ast.Dict) else n.elts
            texts = [
                x.value for x in held if isinstance(x, ast.Constant) and isinstance(x.value, str)
            ]
            mine = [t for t in texts if t in known]
            if len(mine) > 2 and len(mine) > len(held) // 2 and not _plain(mine):
                yield Found(n.lineno, f"a table of {', '.join(mine[:3])} ...")
        if isinstance(n, ast.Constant) and isinstance(n.value, str):
            if n.value in known and n.value.startswith(("aten.", "torchvision.")):
                yield Found(n.lineno, f"names {n.value}")
        elif isinstance(n, ast.Attribute) and ast.unparse(n).startswith("torch.ops.aten."):
            yield Found(n.lineno, f"names {ast.unparse(n)}")


# words that operators share with reductions of scores, ways to choose and the like
_WORDS = {
    "sum",
    "mean",
    "max",
    "min",
    "prod",
    "norm",
    "conv",
    "conv_transpose",
    "depthwise",
    "matrix",
    "cut",
    "activation",
    "all",
}
_WORDS |= {"shape", "index", "slice", "reduce", "random", "uniform", "bias", "linear", "frozen"}


def _plain(found: list[str]) -> bool:
    return all(t in _WORDS for t in found)


def modules() -> Iterator[Path]:
    """The package and its passes, but for the table."""
    for folder in ("irprune", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if not place.startswith(("irprune/ops/", "irprune/passes/")):
                yield path


def test_only_the_table_knows_operators() -> None:
    known = names()
    found = {
        f"{place}:{fault.line}: {fault.what}"
        for path in modules()
        if (place := path.relative_to(ROOT).as_posix()) not in ALLOWED
        for fault in faults(path.read_text(), known)
    }
    assert not found, "\n".join(sorted(found))


def test_what_is_allowed_is_needed() -> None:
    known = names()
    idle = [p for p in ALLOWED if not list(faults((ROOT / p).read_text(), known))]
    assert not idle


@pytest.mark.parametrize(
    "fault",
    [
        "node.op == 'conv'",
        "node.op in ('conv', 'linear')",
        "_LAYERS = ('conv', 'linear')\nnode.op not in _LAYERS",
        "'norm' in node.op",
        "entry.family == 'conv'",
        "node.op.startswith('conv')",
        "_STATE = {'conv': 1}\n_STATE.get(node.op)",
        "_STATE = {'conv': 1}\n_STATE[node.op]",
        "node.origin.target == 'aten.linear.default'",
        "target_of(node) == 'Constant'",
        "proto.op_type in {'Conv', 'Gemm'}",
        "x = {'relu', 'gelu', 'silu', 'mish'}",
        "match node.op:\n    case 'conv':\n        pass",
        "func is torch.ops.aten.linear.default",
    ],
)
def test_the_lint_sees(fault: str) -> None:
    assert list(faults(fault, names()))


@pytest.mark.parametrize(
    "sound",
    [
        "node.op == other.op",
        "weight.kind == 'parameter'",
        "how in ('sum', 'mean', 'max', 'prod')",
        "entry.is_view and entry.family",
        "node.attrs['dim'] == 'same'",
    ],
)
def test_the_lint_leaves(sound: str) -> None:
    assert not list(faults(sound, names()))
