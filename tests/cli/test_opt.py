"""``irprune opt``, ``ops`` and ``passes``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shared import MY_PASS, NET

from irprune import cli
from irprune.driver.passes import (
    Pass,
    name_of,
)
from irprune.driver.registry import standard
from irprune.ir.parse import from_text
from irprune.passes.canonicalize import Canonicalize
from irprune.passes.dead_code import DeadCode


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.irp"
    path.write_text(NET)
    return path


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.run(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_opt_prints_the_graph(capsys: pytest.CaptureFixture[str], net: Path) -> None:
    assert command(capsys, "opt", str(net)) == (0, NET, "")
    code, out, err = command(
        capsys,
        "opt",
        str(net),
        "-p",
        "canonicalize,infer-axes",
        "--time",
        "--print-after-all",
        "--print-diff",
    )
    assert (
        code == 0
        and out.startswith("graph Net with axes {\n  axis c0 = 8\n  axis c1 = 24\n")
        and "identity" not in out
    )
    assert (
        "# after canonicalize (changed)" in err
        and "+++ after infer-axes" in err
        and "infer-axes" in err.splitlines()[-2]
    )
    assert command(capsys, "opt", str(net), "--quiet") == (0, "", "")


def test_opt_runs_the_tutorials_pass(
    capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.irp"
    passes = "analyse,protect-small{least=16}"
    code, said, err = command(
        capsys,
        "opt",
        str(net),
        "--load",
        str(MY_PASS),
        "-p",
        passes,
        "--print-diff",
        "-o",
        str(out),
    )
    assert (code, said) == (0, "")
    assert "-  %up: f32[c0, 4] = parameter\n-  %mid: f32[c1, c0] = parameter" in err
    assert "+  %up: f32[8, 4] = parameter\n+  %mid: f32[c0, 8] = parameter" in err
    assert "axis c0 = 24" in out.read_text()


def test_opt_goes_on_from_a_text(
    capsys: pytest.CaptureFixture[str], net: Path, tmp_path: Path
) -> None:
    """The choice is in the text: it is cut from there as from the graph itself."""
    chosen = tmp_path / "chosen.irp"
    text = command(capsys, "opt", str(net), "-p", "analyse")[1]
    chosen.write_text(text.replace("axis c1 = 24", "axis c1 = 24 keep=[0:12]"))
    code, out, _ = command(capsys, "opt", str(chosen), "-p", "cut")
    assert (
        code == 0
        and "%mid: f32[12, 8] = parameter" in out
        and "%down: f32[3, 12] = parameter" in out
    )


def test_opt_takes_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    place = f"{Path(__file__).parents[2] / 'models' / 'glu.py'}:build"
    code, out, err = command(capsys, "opt", place, "-p", "prune", "--json", "--deep")
    assert code == 0, err
    made = json.loads(out)
    assert [p["pass"] for p in made["passes"]] == [name_of(p) for p in standard().parse("prune")]
    assert (
        made["changed"]
        and from_text(made["text"]).weights
        and all(p["seconds"] >= 0 for p in made["passes"])
    )


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["opt", "none.irp"], 2, "irprune: no such file (none.irp); check the path"),
        (["opt", "{net}", "-p", "slise"], 2, "irprune: no pass 'slise'; did you mean slice?"),
        (
            ["opt", "{net}", "-p", "choose"],
            2,
            "irprune: nothing is analysed (choose; in choose, the first pass); run infer-axes first",
        ),
        (
            ["opt", "{net}", "-p", "infer-axes,score"],
            2,
            "irprune: the weight 'up' has no values (net.irp; in score, after infer-axes)",
        ),
        (
            ["opt", "{net}", "-p", "slice"],
            2,
            "irprune: nothing is chosen (slice; in slice, the first pass)",
        ),
        (
            ["opt", "{net}", "-p", "dead-code", "--load", "none.py"],
            2,
            "irprune: no such file (none.py)",
        ),
        (
            ["opt", "{broken}"],
            2,
            "irprune: not the text of a graph: 'graph' expected at 'nonsense' (broken.irp:1)",
        ),
        (
            ["opt", "{wrong}"],
            1,
            "irprune: the graph is broken before the first pass: %a: sizes 4 and 5 meet",
        ),
        (["ops", "nothing*"], 2, "irprune: no operator matches 'nothing*'"),
    ],
)
def test_bad_input_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], net: Path, argv: list[str], code: int, says: str
) -> None:
    broken, wrong = net.with_name("broken.irp"), net.with_name("wrong.irp")
    broken.write_text("nonsense")
    wrong.write_text(NET.replace("%up: f32[8, 4]", "%up: f32[8, 5]"))
    paths = {"{net}": str(net), "{broken}": str(broken), "{wrong}": str(wrong)}
    got, out, err = command(capsys, *(paths.get(a, a) for a in argv))
    assert (got, out) == (code, "") and err.splitlines()[-1].startswith(says)
    assert "Traceback" not in err


def test_ops_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "ops")
    assert code == 0 and out.splitlines()[-1].split()[1] == "operators,"
    code, out, _ = command(capsys, "ops", "aten.conv2d.default", "--json")
    (row,) = json.loads(out)["operators"]
    assert row["name"] == "conv" and "Conv" in row["onnx"] and row["family"] == "conv"


def test_passes_lists_names_options_and_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "passes", "--load", str(MY_PASS))
    assert code == 0
    assert (
        f"protect-small  (from {MY_PASS})\n    Freeze every coupled group with fewer than least channels.\n    least=16\n"
        in out
    )
    made = json.loads(command(capsys, "passes", "--json")[1])
    rows = {r["name"]: r for r in made["passes"]}
    assert (
        rows["choose"]["options"]["ratio"] == "0.5"
        and rows["repair-bias"]["from_python"]
        and not rows["slice"]["from_python"]
    )
    assert made["pipelines"]["cut"] == ["slice", "dead-code"]
    assert set(rows) == set(standard().passes) and all(
        isinstance(p, type) and isinstance(p(), Pass) for p in (Canonicalize, DeadCode)
    )
