"""What a graph came from is its ``source``, of a stated type; nobody guesses it, or what an array
is, from the attributes that an object happens to have."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ("structure", "source", "array", "load", "weight", "held", "old")
"""Names that stand for what a graph keeps of its model, and for arrays of weights."""
PROBES = ("hasattr", "getattr")


def sniffs(root: Path) -> Iterator[str]:
    """Calls of ``hasattr``, and of ``getattr`` with a default, on a graph's source or an array."""
    for folder in ("irprune", "passes"):
        for path in sorted((root / folder).rglob("*.py")):
            if "irprune/passes/" in str(path):
                continue  # the same files by their other name
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in PROBES
                    and (node.func.id == "hasattr" or len(node.args) == 3)
                    and _last_name(node.args[0]) in SUBJECTS
                ):
                    yield f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"


def _last_name(e: ast.expr) -> str:
    if isinstance(e, ast.Call):
        return _last_name(e.func)
    return e.attr if isinstance(e, ast.Attribute) else e.id if isinstance(e, ast.Name) else ""


def test_nobody_sniffs_what_a_graph_came_from_or_what_an_array_is() -> None:
    assert list(sniffs(ROOT)) == []


def test_sniffing_is_found(tmp_path: Path) -> None:
    (tmp_path / "irprune").mkdir()
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "bad.py").write_text(
        "a = hasattr(graph.structure, 'in_spec')\n"
        "b = getattr(graph.source, 'stored', None)\n"
        "c = hasattr(weight.load(), 'detach')\n"
        "d = getattr(array, 'is_meta', False)\n"
        "fine = hasattr(os, 'sched_getaffinity') or getattr(source, 'name')\n"
    )
    assert [line.split(":")[1] for line in sniffs(tmp_path)] == ["1", "2", "3", "4"]
