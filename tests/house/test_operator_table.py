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

# Words that are not those of operators, although they are spelled alike: why, in one line.
ALLOWED = {
    "irprune/frontend/torch/program_file.py": "the functions that a size in a stored program may call",
    "irprune/frontend/torch/size_nodes.py": "comparisons of sizes, by torch's names for them",
    "irprune/frontend/torch/sizes.py": "the arithmetic of sizes, by sympy's names for it",
    "irprune/ir/open_sizes.py": "the arithmetic of sizes has operators of its own",
    "irprune/ir/size.py": "the arithmetic of sizes has operators of its own",
    "irprune/testing/fuzz_inputs.py": "writes models of these operators",
    "irprune/testing/random_nets.py": "writes models of these layers",
}
# names of attributes and variables that hold the name of an operator or of a family
HOLDERS = {"op", "op_type", "family", "target", "spelled"}
# methods that ask what a text has in it
TESTS = set(
    "startswith endswith removeprefix removesuffix partition split find index count".split()
)
# what a node of torch.fx is; not an operator
FX = {"placeholder", "call_function", "call_module", "get_attr", "output"}
# modules of torch.nn that compute nothing of their own
CONTAINERS = set(
    "Module Parameter Buffer Sequential ModuleList DataParallel DistributedDataParallel".split()
)


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
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value not in FX
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
    """Names that are bound to strings or containers of strings, in the module, in a class or in a
    function."""
    out = set()
    for n in ast.walk(tree):
        value = n.value if isinstance(n, (ast.Assign, ast.AnnAssign)) else None
        if value is not None and _strings(value) and not _holds(value):
            targets = n.targets if isinstance(n, ast.Assign) else [n.target]  # type: ignore[union-attr]
            out |= {t.id for t in targets if isinstance(t, ast.Name)}
    return out


def _texts(tree: ast.AST | None) -> list[str]:
    """The strings that stand in a literal one by one, or as the words of one that is split."""
    if isinstance(tree, (ast.List, ast.Tuple, ast.Set)):
        return [t for x in tree.elts for t in _texts(x)]
    if isinstance(tree, ast.Call) and ast.unparse(tree.func).endswith(("'.split", '".split')):
        return " ".join(_strings(tree.func)).split()
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return [tree.value]
    return []


def _layers(tree: ast.AST) -> list[str]:
    """The layers of ``torch.nn`` that an expression names."""
    return [
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and ast.unparse(n.value).startswith(("nn", "torch.nn"))
        and n.attr.lstrip("_")[:1].isupper()
        and n.attr not in CONTAINERS
    ]


def faults(source: str, known: set[str]) -> Iterator[Found]:
    """The places of ``source`` that know operators by name."""
    tree = ast.parse(source)
    constants = _constants(tree)
    for n in ast.walk(tree):
        if what := _what(n, known, constants):
            yield Found(n.lineno, f"{what} {ast.unparse(n)[:100]}")  # type: ignore[attr-defined]


def _what(n: ast.AST, known: set[str], constants: set[str]) -> str:
    """What ``n`` does with the name of an operator; "" where it does nothing with one."""

    def literal(x: ast.expr) -> bool:
        if isinstance(x, ast.Subscript):
            return False
        names = {y.id for y in ast.walk(x) if isinstance(y, ast.Name)}
        return bool(_strings(x)) or not names.isdisjoint(constants)

    def table(x: ast.expr) -> bool:
        """Whether it is a literal, or a name that is bound to one."""
        plain = isinstance(x, (ast.Dict, ast.List, ast.Tuple, ast.Set))
        return plain or (isinstance(x, ast.Name) and x.id in constants)

    def of_operators(texts: list[str]) -> bool:
        """Whether most of them name operators, and not all are words that others have as well."""
        mine = [t for t in texts if t in known]
        return len(mine) > 2 and len(mine) > len(texts) // 2 and not _WORDS.issuperset(mine)

    match n:
        case ast.Compare():
            sides = [n.left, *n.comparators]
            if any(map(_holds, sides)) and any(literal(s) and not _holds(s) for s in sides):
                return "compares"
            sizes = "size.op" in map(ast.unparse, sides)  # has words of its own, see ir/size.py
            named = {t for s in sides for t in _texts(s)} & known - _WORDS
            return "compares" if (named and not sizes) or any(map(_layers, sides)) else ""
        case ast.Match() if _holds(n.subject):
            return "matches"
        case ast.MatchValue():
            return "matches" if {*_texts(n.value)} & known - _WORDS else ""
        case ast.Subscript() if table(n.value) and _holds(n.slice):
            return "looks up"
        case ast.Call(func=ast.Attribute(value=of, attr=method)):
            letters = any(c.isalpha() for a in n.args for t in _strings(a) for c in t)
            if letters and method in TESTS and _holds(of):
                return "tests"
            if letters and ast.unparse(of) == "re" and any(map(_holds, n.args[1:])):
                return "tests"
            if method in ("get", "count", "index") and table(of) and any(map(_holds, n.args)):
                return "looks up"
            return "is a table:" if of_operators(_texts(n)) else ""
        case ast.Call(func=ast.Name("isinstance" | "issubclass")):
            return "tests" if any(map(_layers, n.args[1:])) else ""
        case ast.Dict(keys, values):
            columns = ([t for x in column for t in _texts(x)] for column in (keys, values))
            return "is a table:" if any(map(of_operators, columns)) else ""
        case ast.Set() if {*_texts(n)} & known - _WORDS:
            return "is a set:"
        case ast.List() | ast.Tuple() | ast.Set():
            layers = [x for x in n.elts if isinstance(x, ast.Attribute) and _layers(x)]
            return "is a table:" if of_operators(_texts(n)) or len(layers) > 2 else ""
        case ast.Constant(str(text)) if text in known:
            return "names" if text.startswith(("aten.", "torchvision.")) else ""
        case ast.Attribute():
            return "names" if ast.unparse(n) == "torch.ops.aten" else ""
    return ""


# words that operators share with reductions of scores, ways to choose and the like
_WORDS = set(
    "sum mean max min prod norm conv conv_transpose depthwise matrix cut activation all shape index "
    "slice reduce random uniform bias linear frozen trace complex to empty compare split Split".split()
)


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
        "aten = torch.ops.aten\nfunc is aten.linear.default",
        "entry.name == 'softmax'",
        "kind = node.op\nif kind in ('softmax', 'gelu'):\n    pass",
        "def f(node):\n    layers = ('conv', 'linear')\n    return node.op in layers",
        "class A:\n    layers = ('conv', 'linear')\n    def f(self, node):\n        return node.op in layers",
        "{'conv': 1}.get(node.op)",
        "{'conv': 1}[node.op]",
        "('conv', 'linear').count(node.op)",
        "re.match('conv.*', node.op)",
        "node.op.removeprefix('conv')",
        "match kind:\n    case 'softmax':\n        pass",
        "x = {'+': 'Add', '-': 'Sub', '*': 'Mul'}",
        "x = frozenset('relu gelu silu mish'.split())",
        "isinstance(module, nn.Conv2d)",
        "type(module) is torch.nn.Linear",
        "issubclass(kind, nn.modules.batchnorm._NormBase)",
        "x = [nn.Conv1d, nn.Conv2d, nn.Conv3d]",
        "{n.op_type for n in nodes} & {'Conv', 'Gemm'}",
        "node.op[:4] == 'conv'",
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
        "node.op == 'call_function'",
        "isinstance(module, (nn.Module, nn.Sequential))",
        "layers = [nn.Linear(8, 8), nn.ReLU()]",
        "node.origin.target.split('.')",
    ],
)
def test_the_lint_leaves(sound: str) -> None:
    assert not list(faults(sound, names()))
