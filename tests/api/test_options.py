"""One declaration of an option reaches the signature, its docstring, the checks, the command line
and the pass."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
from click.testing import CliRunner

import irprune
from irprune import api
from irprune.analysis.cost import MEASURES
from irprune.api.declarations import OPTIONS, REPLAY, STEP, PruneOptions
from irprune.api.option import Flag, Option, declared, documented
from irprune.cli import prune as command
from irprune.errors import IrpruneError
from irprune.passes.choose import Choose
from irprune.passes.score import Score

UNSAID = {"loss", "progress", "dynamic_shapes"}  # a command line has no function or structure
UNSAID |= {"trust"}  # what reads a model declares it, for every command
_JUDGED, _FOUND = ["--calibration", "data"], {"calibration": "data"}
DATA = ["--calibration", "data"]
# flag -> what is written, and what prune is told; where a flag reads a text, or goes with others
READ: dict[str, tuple[list[str], Any]] = {
    "--keep-indices": (
        [str(Path(__file__).parent / "indices.json")],
        {"keep_indices": {"w1.weight:0": [0, 2]}},
    ),
    "--quantize": (["int8"], {"quantize": "int8"}),
    "--ratio": (["0.3"], {"ratio": 0.3}),
    "--macs": (["0.5"], {"budget": {"macs": 0.5}}),
    "--params": (["1000"], {"budget": {"params": 1000.0}}),
    "--bytes": (["0.5"], {"budget": {"bytes": 0.5}}),
    "--activation": (["0.5"], {"budget": {"activation": 0.5}}),
    "--latency": (["3ms"], {"budget": {"latency": "3ms"}}),
    "--importance": (["fpgm"], {"importance": "fpgm"}),
    "--keep": (["head*"], {"keep": ("head*",)}),
    "--ratio-of": (["a*=0.25"], {"ratios": {"a*": 0.25}}),
    "--round-to": (["aligned"], {"round_to": "aligned"}),
    "--max-ratio": (["0.75"], {"max_ratio": 0.75}),
    "--low-rank": (["--macs", "0.5"], {"low_rank": True, "budget": {"macs": 0.5}}),
    "--low-rank-of": (["fc*=16"], {"low_rank": {"fc*": 16}}),
    "--rotate": (DATA, {"rotate": True, "calibration": "data"}),
    "--seed": (["7", "--importance", "random"], {"seed": 7, "importance": "random"}),
    "--device": (["cpu"], {"device": "cpu"}),
    "--ranks": (["1"], {"ranks": 1}),
    "--dynamic": (["batch"], {"dynamic": "batch"}),
    "--calibration": (["data"], {"calibration": "data"}),
    "--preprocess": (["imagenet", *DATA], {"preprocess": "imagenet", "calibration": "data"}),
    "--mean": (["0.5,0.4,0.3", *DATA], {"mean": (0.5, 0.4, 0.3), "calibration": "data"}),
    "--std": (["0.25", *DATA], {"std": (0.25,), "calibration": "data"}),
    "--resize": (["256x320", *DATA], {"resize": (256, 320), "calibration": "data"}),
    "--crop": (["0.875", *DATA], {"crop": 0.875, "calibration": "data"}),
    "--pixels": (["-1..1", *DATA], {"pixels": (-1.0, 1.0), "calibration": "data"}),
    "--resume": (["kept.jsonl"], {"resume": "kept.jsonl"}),
    "--memory": (("8GB",), {"memory": "8GB"}),
    "--divisible-by": (("heads=4",), {"divisible_by": {"heads": 4}}),
    "--repair": (["bias"], {"repair": ("bias",)}),
    "--max-drop": (["1%", "--calibration", "data"], {"max_drop": "1%", "calibration": "data"}),
    "--target-metric": (["20", *_JUDGED], {"target_metric": 20.0, **_FOUND}),
    "--metric": (
        ["snr", "--target-metric", "2", *_JUDGED],
        {"metric": "snr", "target_metric": 2.0, **_FOUND},
    ),
    "--eval": (["math:exp", "--max-drop", "0.1"], {"evaluate": math.exp, "max_drop": "0.1"}),
    "--lower-is-better": (
        ["--max-drop", "0.1", *_JUDGED],
        {"lower_is_better": True, "max_drop": "0.1", **_FOUND},
    ),
    "--minimise": (
        ["params", "--max-drop", "0.1", *_JUDGED],
        {"minimise": "params", "max_drop": "0.1", **_FOUND},
    ),
    "--points": (["4", "--max-drop", "0.1", *_JUDGED], {"points": 4, "max_drop": "0.1", **_FOUND}),
    "--trials": (
        ["t.json", "--max-drop", "0.1", *_JUDGED],
        {"trials": "t.json", "max_drop": "0.1", **_FOUND},
    ),
}


def said(own: Option, flag: Flag) -> tuple[list[str], Any]:
    """What is written to say ``flag``, and what prune is told: as ``READ`` has it, or as follows
    from the declaration."""
    if flag.name in READ:
        return READ[flag.name]
    if flag.constant is not None:
        return [], {own.name: flag.constant}
    if isinstance(flag.type, tuple):
        return [flag.type[0]], {own.name: flag.type[0]}
    assert flag.type in (int, float), f"{flag.name} reads a text: give READ an example of it"
    return ["3"], {own.name: flag.type(3)}


SAID = {flag.name: said(own, flag) for own in OPTIONS.values() for flag in own.flags}


# -- the signature and its docstring ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "options", "own"),
    [
        (irprune.prune, OPTIONS, ["model", "args", "kwargs"]),
        (irprune.apply_plan, REPLAY, ["model", "plan", "args", "kwargs"]),
        (
            irprune.schedule,
            STEP,
            ["model", "args", "kwargs", "ratio", "budget", "steps", "pace", "checkpoint"],
        ),
    ],
)
def test_a_signature_names_every_option(
    call: Any, options: Mapping[str, Option], own: list[str]
) -> None:
    signature = inspect.signature(call)
    assert list(signature.parameters) == [*own, *options]
    text = " ".join(call.__doc__.split())
    assert "**options" not in text
    for name, option in options.items():
        parameter = signature.parameters[name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == option.default and parameter.annotation == option.type
        assert " ".join(str(option).split()) in text
    assert max(map(len, call.__doc__.splitlines())) <= 100


class More(PruneOptions, total=False):
    """An option more, in a file of its own."""

    colour: Annotated[
        str,
        Option("blue", "The colour.", fits=lambda x: isinstance(x, str), takes="a colour"),
    ]


def test_a_declaration_is_all_that_a_signature_needs() -> None:
    found = declared(More)

    @documented(found)
    def call(model: Any, **options: Any) -> None:
        """Call.

        Args:
            **options: All.
        """

    assert list(inspect.signature(call).parameters)[-1] == "colour"
    assert '    colour (str): The colour. Default: "blue".' in (call.__doc__ or "").splitlines()
    with pytest.raises(IrpruneError, match="colour is 3; it takes a colour"):
        found["colour"].check(3)


def test_a_declaration_that_cannot_be_right_is_refused() -> None:
    class Bare(PruneOptions, total=False):
        """Not declared by an Option."""

        colour: str

    class Wrong(PruneOptions, total=False):
        """Of another type than its default."""

        colour: Annotated[
            str, Option(3, "The colour.", fits=lambda x: isinstance(x, str), takes="a colour")
        ]

    with pytest.raises(TypeError, match="option colour is declared as Annotated"):
        declared(Bare)
    with pytest.raises(TypeError, match="option colour: its default is 3; it takes a colour"):
        declared(Wrong)


# -- the checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"dynamic_shapes", "calibration"}))
def test_every_option_refuses_what_it_does_not_take(name: str) -> None:
    with pytest.raises(IrpruneError, match=f"{name} is <object") as refused:
        api.Options(**{name: object()})  # type: ignore[misc]
    assert str(refused.value).endswith(f"; it takes {OPTIONS[name].takes}")


def test_patterns_that_can_be_read_once_alone_are_refused() -> None:
    """They would be gone after the check."""
    with pytest.raises(IrpruneError, match="keep is <generator"):
        api.Options(keep=(p for p in ["head*"]))  # type: ignore[arg-type]
    assert api.Options(calibration=iter([1, 2])).calibration == [1, 2]


def test_a_name_that_is_no_option_is_refused() -> None:
    with pytest.raises(IrpruneError, match="no option 'colour'; one of ratio, budget"):
        api.Options(colour="blue")  # type: ignore[call-arg]
    options = api.Options(ratio=0.25)
    assert options.ratio == 0.25 and "ratio=0.25" in repr(options)
    with pytest.raises(AttributeError, match="colour"):
        _ = options.colour
    with pytest.warns(DeprecationWarning, match=r"Options\.of"):
        assert api.Options.of(ratio=0.25).values == options.values


# -- the passes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "cls", "own"),
    [("choose", Choose, {"times", "uniform"}), ("score", Score, {"p", "keep", "ratios", "prefer"})],
)
def test_the_fields_of_a_pass_are_the_options_that_go_to_it(
    to: str, cls: type, own: set[str]
) -> None:
    """With the same defaults; but for fields that prune does not offer."""
    passed = {name: option for name, option in OPTIONS.items() if option.to == to}
    held = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    assert set(passed) == set(held) - own
    for name, option in passed.items():
        default = held[name].default
        made = (
            held[name].default_factory() if held[name].default_factory is not MISSING else default
        )
        if option.default is not None:
            assert made == option.default, name


def test_what_is_told_arrives_at_the_passes() -> None:
    options = api.Options(
        ratio=0.3,
        ratios={"a*": 0.1},
        scope="global",
        keep="head",
        round_to=8,
        min_channels=2,
        max_ratio=0.9,
        prefer="both",
        per_block=False,
        importance="random",
        seed=3,
        normalise="max",
    )
    assert options.choose() == Choose(
        0.3, {"a*": 0.1}, "global", ("head",), 8, 2, 0.9, "both", per_block=False
    )
    # What the choice leaves whole need not be measured
    assert options.score() == Score(
        "random", seed=3, normalise="max", keep=("head",), ratios={"a*": 0.1}, prefer="both"
    )


# -- the command line ------------------------------------------------------------------------------


class _Told(Exception):
    """Carries what ``prune`` was told."""


def told(monkeypatch: pytest.MonkeyPatch, *argv: str) -> dict[str, Any]:
    def stop(model: Any, args: Any, kwargs: Any, **options: Any) -> None:
        raise _Told(options)

    monkeypatch.setattr(api, "prune", stop)
    model = f"{Path(__file__).parents[2] / 'models' / 'glu.py'}:build"
    result = CliRunner().invoke(command.prune, [model, *argv])
    assert isinstance(result.exception, _Told), (result.exception, result.output)
    options: dict[str, Any] = result.exception.args[0]
    assert options.pop("dynamic_shapes") is None and callable(options.pop("progress"))
    if options["bench"]:  # what a command line does by default
        del options["bench"]
    return options


def test_every_option_that_a_command_line_can_say_has_a_flag() -> None:
    assert {name for name, option in OPTIONS.items() if not option.flags} == UNSAID
    flags = [flag.name for option in OPTIONS.values() for flag in option.flags]
    assert len(flags) == len(SAID), "a flag is declared twice"
    assert set(READ) <= set(flags)
    assert [flag.key for flag in OPTIONS["budget"].flags] == [*MEASURES, "latency"]
    given = {p.opts[0] for p in command.prune.params if isinstance(p, click.Option)} - {"--trust"}
    own = {"-o", "--input", "--pretrained", "--plan", "--json", "-q", "-v"}
    assert given == {
        *SAID,
        *own,
        "--cache",
        "--format",
        "--profile",
        "--force",
        "--dry-run",
        "--load",
    }


@pytest.mark.parametrize("flag", SAID)
def test_a_flag_says_its_option(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, said = SAID[flag]
    assert told(monkeypatch, flag, *written) == said


def test_flags_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch) == {}
    assert told(monkeypatch, "--macs", "0.5", "--params", "0.6") == {
        "budget": {"macs": 0.5, "params": 0.6},
    }
    assert told(monkeypatch, "--repair", "none") == {"repair": False}
    assert told(monkeypatch, "--ratio", "0", "--threads", "0") == {"ratio": 0.0, "threads": 0}
    assert told(monkeypatch, "--round-to", "auto") == {"round_to": "auto"}
