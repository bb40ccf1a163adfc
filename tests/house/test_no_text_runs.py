"""No text is run: sizes, attributes and options are data. The one exception is the source that
irprune itself emitted."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNERS = ("eval", "exec", "compile", "__import__")
ALLOWED = {
    ("irprune/emit/torch/module.py", "exec"): "the source of a module that irprune has written",
    ("irprune/emit/torch/module.py", "compile"): "the same source, so that traces show its lines",
}


def text_runs(root: Path) -> list[tuple[str, str]]:
    """File and name of each built-in call that runs text."""
    return [
        (str(path.relative_to(root)), node.func.id)
        for folder in ("irprune", "passes")
        for path in sorted((root / folder).rglob("*.py"))
        if "irprune/passes/" not in str(path)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in RUNNERS
    ]


def test_only_emitted_source_is_run() -> None:
    found = text_runs(ROOT)
    assert [x for x in found if x not in ALLOWED] == []
    assert set(found) == set(ALLOWED), "an allowance that nothing uses"


def test_a_run_of_text_is_found(tmp_path: Path) -> None:
    (tmp_path / "irprune").mkdir()
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "bad.py").write_text("def f(size):\n    return eval(size.expr, {})\n")
    (tmp_path / "irprune" / "fine.py").write_text("model.eval()\nre.compile('x')\n")
    assert text_runs(tmp_path) == [("passes/bad.py", "eval")]
