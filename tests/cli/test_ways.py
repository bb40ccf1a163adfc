"""How the command line behaves as a tool among others: help, suggestions, pipes, amounts, files of
options, quiet and verbose, JSON, extensions, what is refused before the work."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import irprune
from irprune.api.options import Options
from irprune.cli import COMMANDS, cli

Result = tuple[int, str, str]


@pytest.fixture
def call(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in a folder of its own and in a terminal of the usual width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS")
    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    irprune.prune(net, (torch.randn(2, 8),), ratio=0.0).onnx(tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def kept(out: str) -> int:
    return int(json.loads(out)["groups"][0]["kept"])


def test_without_a_word_it_prints_its_help(call: Callable[..., Result]) -> None:
    code, out, err = call()
    assert code == 0 and err == "" and out == call("--help")[1] and len(out.splitlines()) > 20
    for name in COMMANDS:
        assert max(map(len, call(name, "--help")[1].splitlines())) <= 80


def test_a_mistyped_command_is_told_the_near_ones(call: Callable[..., Result]) -> None:
    assert call("prun", "m.onnx")[::2] == (
        2,
        "irprune: No such command 'prun'; did you mean prune? `irprune` lists the commands\n",
    )
    assert "`irprune` lists" in call("zzz")[2]
    assert "Did you mean" in call("prune", "m.onnx", "--macz", "1")[2]


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("prune", "{m}", "--importance", "magnitde"), "magnitude"),
        (("prune", "{m}", "--repair", "least-square"), "least_squares"),
        (("prune", "{m}", "--metric", "cosin", "--max-drop", "1%"), "cosine"),
        (("prune", "{m}", "--scope", "globl"), "global"),
        (("prune", "{m}", "--prefer", "head_dims"), "head_dim"),
        (("prune", "{m}", "--quantize", "int9"), "int8"),
        (("prune", "{m}", "--divisible-by", "head=4"), "heads"),
        (("prune", "{m}", "--preprocess", "imagnet", "--calibration", "."), "imagenet"),
        (("opt", "{m}", "-p", "prepare,analise"), "analyse"),
        (("opt", "{m}", "-p", "choose{ration=0.5}"), "ratio"),
        (("validate", "{m}", "{m}", "--metric", "Cosinus"), "cosine"),
        (("inspect", "{m}", "--input", "inptu=1x8"), "input"),
        (("completion", "bsh"), "bash"),
        (("new", "criterium", "x"), "criterion"),
        (("inspect", "{py}:biuld"), "build"),
    ],
)
def test_a_mistyped_name_is_told_the_near_one(
    call: Callable[..., Result], file: Path, words: Sequence[str], near: str
) -> None:
    place = file.parent / "net.py"
    place.write_text("import torch\n\ndef build():\n    return torch.nn.Linear(2, 2)\n")
    code, _, err = call(*(w.replace("{m}", str(file)).replace("{py}", str(place)) for w in words))
    assert code == 2 and f"did you mean {near}" in err and err.count("\n") == 1


def test_a_mistyped_name_in_python_is_told_the_near_one() -> None:
    for option, value, near in (
        ("importance", "Magnitud", "magnitude"),
        ("scope", "isomorfic", "isomorphic"),
        ("device", "cdua", "cuda"),
        ("minimise", "param", "params"),
        ("budget", {"mac": 0.5}, "macs"),
        ("reduce", "meen", "mean"),
        ("ratoi", 0.5, "ratio"),
    ):
        with pytest.raises(irprune.IrpruneError, match=f"did you mean {near}"):
            Options(**{option: value})  # type: ignore[arg-type]


def test_a_pipe_takes_and_gives_files(
    call: Callable[..., Result], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "irprune", "prune", "-", "-o", "-", "--macs", "50%"],
        input=file.read_bytes(),
        capture_output=True,
        check=True,
    )
    model = onnx.load_model_from_string(made.stdout)
    onnx.checker.check_model(model)
    assert b"stdin: 1 groups cut" in made.stderr
    assert len(made.stdout) < 0.6 * file.stat().st_size and not Path("-").exists()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no model")))
    assert call("inspect", "-")[0] == 2


@pytest.mark.parametrize(
    ("argv", "left"),
    [
        (("--macs", "50%"), 32),
        (("--macs", "0.5"), 32),
        (("--macs", "0.384k"), 32),
        (("--macs", "384"), 32),
        (("--params", "0.1 K"), 7),
        (("--bytes", "620B"), 11),
        (("--ratio", "25%"), 48),
    ],
)
def test_amounts_are_read_as_people_write_them(
    call: Callable[..., Result], file: Path, argv: tuple[str, str], left: int
) -> None:
    code, out, _ = call("prune", file, "--json", "--input", "1x8", *argv)
    data = json.loads(out)
    assert code == 0 and kept(out) == pytest.approx(left, abs=1)
    for key in ("macs", "params", "bytes"):
        assert data[key]["after"] < data[key]["before"]


def test_amounts_that_are_none_are_refused(call: Callable[..., Result], file: Path) -> None:
    assert "the budget on macs is 'half'" in call("prune", file, "--macs", "half")[2]
    assert "a share is written 0.02 or 2%" in call("prune", file, "--macs", "2")[2]
    assert irprune.prune(str(file), budget={"params": "50%"}).report.params.left <= 0.5


def test_what_cannot_be_written_is_refused_before_the_work(
    call: Callable[..., Result], file: Path
) -> None:
    for argv, text in (
        (("-o", file), "the output is the model itself (" + str(file) + "); say --force"),
        (("-o", "x.xyz"), "no output format ends in '.xyz'"),
        (("-o", "x.pt2"), "MODEL is an ONNX file"),
        (("--plan", "p.json", "--ratio", "0.3"), "--plan and --ratio 0.3 are both given"),
    ):
        code, out, err = call("prune", file, *argv)
        assert (code, out) == (2, "") and text in err and "pruning" not in err, err
    before = file.read_bytes()
    assert call("prune", file, "-o", file, "--force")[0] == 0 and file.read_bytes() != before
    assert call("prune", file, "-o", "run.v2/")[0] == 0 and Path("run.v2/report.json").exists()


def test_a_dry_run_chooses_and_writes_nothing(call: Callable[..., Result], file: Path) -> None:
    code, out, err = call("prune", file, "-o", "out", "--dry-run")
    assert code == 0 and "dry run" in out and "wrote" not in err and not Path("out").exists()
    assert "proof       not asked for" in out


def test_quiet_and_verbose(call: Callable[..., Result], file: Path) -> None:
    assert call("prune", file, "-q")[2] == ""
    assert call("prune", file, "-q", "--ratio", "7")[2] != ""
    assert "seconds     capture" in call("prune", file, "-v")[1]


def test_json_has_a_schema_and_errors_are_objects(call: Callable[..., Result], file: Path) -> None:
    data = json.loads(call("prune", file, "--ratio", "30%", "--json")[1])
    assert data["schema"] == 1 and data["version"] == "0.1.0"
    assert data["options"]["ratio"] == 0.3 and data["options"]["importance"] == "magnitude"
    assert "progress" not in data["options"]
    assert data["command"] == "irprune prune m.onnx --ratio 30% --json"
    code, out, err = call("prune", file, "--ratio", "3", "--json")
    assert code == 2 and json.loads(out)["error"]["exit_code"] == 2
    assert json.loads(out)["error"]["message"] in err
    for argv in (("ops",), ("passes",), ("inspect", file), ("explain", file, "0.weight:0")):
        assert json.loads(call(*argv, "--json")[1])["schema"] == 1


def test_options_come_from_a_file(call: Callable[..., Result], file: Path) -> None:
    Path("pyproject.toml").write_text('[tool.irprune.prune]\nmacs = "30%"\nkeep = ["nothing*"]\n')
    assert "'nothing*' matches no weight" in call("prune", file)[2]
    Path("pyproject.toml").write_text(
        '[tool.irprune]\ndevice = "cpu"\n[tool.irprune.prune]\nmacs = "30%"\n'
    )
    assert kept(call("prune", file, "--json")[1]) == 19
    assert kept(call("prune", file, "--json", "--macs", "50%")[1]) == 32
    assert kept(call("prune", file, "--json", "--ratio", "0.5")[1]) == 32
    Path("own.toml").write_text("[prune]\nratio = 0.25\n")
    assert kept(call("--config", "own.toml", "prune", file, "--json")[1]) == 48
    assert kept(call("prune", file, "--json", "--config", "own.toml")[1]) == 48
    assert kept(call("prune", file, "--config=own.toml", "--json")[1]) == 48
    for text, said in (
        (
            '[tool.irprune.prune]\nmacz = "1"',
            "no option 'macz' (pyproject.toml); did you mean macs?",
        ),
        ('[tool.irprune]\nratioo = "1"', "no command has an option 'ratioo'"),
        ("[tool.irprune]\ntrust = true", "trust may run code"),
        ('[tool.irprune.prune]\neval = "a.py:b"', "eval may run code"),
        ("[tool]\nirprune = 3", "tool.irprune is no table"),
    ):
        Path("pyproject.toml").write_text(text)
        code, _, err = call("prune", file)
        assert code == 2 and said in err, err
    assert "no such file (gone.toml)" in call("--config", "gone.toml", "prune", file)[2]
    Path("pyproject.toml").write_text("[tool")  # somebody else's trouble
    assert call("prune", file)[0] == 0


def test_lines_fit_eighty_columns(
    call: Callable[..., Result], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for argv in (
        ("inspect", file),
        ("prune", file, "-v"),
        ("passes",),
        ("ops", "*conv*"),
        ("bench", file, "--seconds", "0.01"),
    ):
        out = call(*argv)[1]
        assert out and max(map(len, out.splitlines())) <= 80, argv
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, call("inspect", file)[1].splitlines())) <= 60


def test_a_folder_is_pruned_again_and_loaded(call: Callable[..., Result], file: Path) -> None:
    assert call("prune", file, "-o", "once")[0] == 0
    assert call("prune", "once", "-o", "twice")[0] == 0
    assert irprune.load("twice")(torch.randn(2, 8)).shape == (2, 4)
    widths = [
        json.loads(Path(f, "report.json").read_text())["groups"][0]["kept"]
        for f in ("once", "twice")
    ]
    assert widths == [32, 16]
    with pytest.raises(irprune.IrpruneError, match=r"no model\.py here"):
        irprune.load(".")


def test_completion(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_IRPRUNE_COMPLETE" in call("completion", shell)[1]
    for words, found in (
        ("irprune pr", "prune"),
        ("irprune prune m.onnx --importance taylor_", "taylor_squared"),
    ):
        made = subprocess.run(
            [sys.executable, "-c", "from irprune.cli import main; main()"],
            env={
                **os.environ,
                "_IRPRUNE_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            },
            capture_output=True,
            text=True,
        )
        assert made.stdout.split() == [f"plain,{found}"], made
    assert cli.name == "cli"


def test_extensions_are_taken_in(call: Callable[..., Result], file: Path) -> None:
    Path("my_first.py").write_text(
        "import numpy as np\nfrom irprune.criteria import criterion\n\n\nclass Late:\n"
        "    def scores(self, graph, groups, blocks):\n"
        "        return {g.axis: np.arange(float(g.size)) for g in groups}\n\n\n"
        "class Fails:\n    def scores(self, graph, groups, blocks):\n        raise KeyError('x')\n\n\n"
        "try:\n    from dataclasses import dataclass\n\n    @criterion('first_ones')\n    @dataclass(frozen=True)\n"
        "    class First:\n        def scores(self, graph, groups, blocks):\n"
        "            return {g.axis: -np.arange(float(g.size)) for g in groups}\nexcept ValueError:\n    pass\n"
    )
    code, _, err = call(
        "prune", file, "--load", "my_first.py", "--importance", "first_ones", "-o", "p.json"
    )
    assert code == 0, err
    assert json.loads(Path("p.json").read_text())["choices"][0]["kept"] == list(range(32))
    assert call("prune", file, "--importance", "my_first.py:Late", "-o", "p.json")[0] == 0
    assert json.loads(Path("p.json").read_text())["choices"][0]["kept"] == list(range(32, 64))
    code, _, err = call("prune", file, "--importance", "my_first.py:Fails")
    assert code == 2 and "Fails fails: KeyError" in err and "my_first.py:12" in err
    assert call("inspect", file, "--load", "my_first.py")[0] == 0
    code, _, err = call("explain", file, "0.weight", "--load", "gone.py")
    assert code == 2 and "no such file (gone.py)" in err


@pytest.mark.parametrize("kind", ["pass", "criterion", "operator"])
def test_a_new_file_comes_with_a_test_that_passes(
    call: Callable[..., Result], kind: str, tmp_path: Path
) -> None:
    assert call("new", kind, f"my-{kind}")[0] == 0
    made = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_my_{kind}.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and "1 passed" in made.stdout, made.stdout[-3000:]
    assert "the file exists" in call("new", kind, f"my_{kind}")[2]
    assert "'My Pass' is no name" in call("new", kind, "My Pass")[2]


def test_errors_speak_the_language_of_the_caller(
    call: Callable[..., Result], file: Path, tmp_path: Path
) -> None:
    for options, argv, python, typed in (
        ({"device": "cuda"}, ("--device", "cuda"), "say device=cpu", "say --device cpu"),
        (
            {"max_drop": 0.1},
            ("--max-drop", "10%"),
            "give evaluate, or calibration",
            "give --eval, or --calibration",
        ),
    ):
        with pytest.raises(irprune.IrpruneError, match=python) as error:
            irprune.prune(str(file), **options)
        assert "--" not in str(error.value)
        code, _, err = call("prune", file, *argv)
        assert code == 2 and typed in err, err


def test_a_loss_that_fails_is_one_line_with_its_place() -> None:
    def loss(outputs: object, batch: object) -> torch.Tensor:
        raise ValueError("no labels")

    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with pytest.raises(irprune.IrpruneError, match=r"loss fails: ValueError: no labels.*test_ways"):
        irprune.prune(
            net, (torch.randn(2, 8),), importance="taylor", calibration=torch.randn(8, 8), loss=loss
        )


def test_a_checkpoint_that_is_a_file_is_refused(file: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with pytest.raises(irprune.IrpruneError, match="the checkpoint is a file"):
        next(irprune.schedule(net, (torch.randn(2, 8),), ratio=0.5, checkpoint=file))


def test_installed_packages_add_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from irprune.base import entry_points

    points = [EntryPoint("good", "json:loads", "g"), EntryPoint("bad", "no_such_module:X", "g")]
    monkeypatch.setattr(entry_points, "entry_points", lambda group: points)
    with pytest.raises(irprune.IrpruneError, match=r"'no_such_module:X' cannot be loaded.*g: bad"):
        entry_points.load_entry_points("g")
    monkeypatch.setattr(entry_points, "entry_points", lambda group: points[:1])
    entry_points.load_entry_points("g")


def test_installed_packages_add_sources_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from irprune.api.load import load_model
    from irprune.base import entry_points

    def maker(name: str, pretrained: bool, trust: bool) -> object:
        width = int(name)
        return nn.Linear(width, 4), lambda: (torch.zeros(1, width),)

    monkeypatch.setattr(EntryPoint, "load", lambda point: maker)
    points = [EntryPoint("mylib", "mylib.models:maker", "irprune.sources")]
    monkeypatch.setattr(entry_points, "entry_points", lambda group: points)
    loaded = load_model("mylib:7")
    assert loaded.model.in_features == 7 and loaded.args[0].shape == (1, 7)
    with pytest.raises(irprune.IrpruneError):
        load_model("otherlib:7")


def test_installed_packages_add_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from irprune.base import entry_points
    from irprune.validate import metrics

    def join(point: EntryPoint) -> None:
        metrics.metric("halves")(metrics.Cosine)

    monkeypatch.setattr(metrics, "_LOADED", [])
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    monkeypatch.setattr(EntryPoint, "load", join)
    points = [EntryPoint("halves", "mylib.metrics:Halves", "irprune.metrics")]
    monkeypatch.setattr(entry_points, "entry_points", lambda group: points)
    assert metrics.metric_of("halves").meter is metrics.Cosine
    with pytest.raises(irprune.IrpruneError, match="no metric is called 'thirds'; one of top1"):
        metrics.metric_of("thirds")


def test_a_repair_of_ones_own_by_its_class(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irprune.passes import repairs

    monkeypatch.setattr(repairs, "_REPAIRS", dict(repairs.repairs()))
    (tmp_path / "own_repair.py").write_text(
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "from typing import Any\n"
        "from irprune.passes import PassResult\n"
        "from irprune.passes.repairs import repair\n"
        "@repair('nothing_at_all')\n"
        "@dataclass(frozen=True)\n"
        "class Nothing:\n"
        '    """Change nothing."""\n'
        "    original: Any\n"
        "    calibration: Any\n"
        "    def run(self, graph):\n"
        "        Path(__file__).with_name('ran').touch()\n"
        "        return PassResult(False)\n"
    )
    spec = f"{tmp_path / 'own_repair.py'}:Nothing"
    call = ["prune", str(file), "--repair", spec, "-o", str(tmp_path / "o.onnx"), "--json"]
    done = CliRunner().invoke(cli, call)
    assert done.exit_code == 0, (done.output, done.exception)
    assert (tmp_path / "ran").exists()
