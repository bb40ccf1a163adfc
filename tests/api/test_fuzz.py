"""A sample of the fuzzed inputs and of the planted faults: each ends as it should, and is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

import irprune.cli
from irprune.ops.registry import load_table
from irprune.testing.fuzz import fuzzed, judged
from irprune.testing.fuzz_inputs import INPUTS, Made
from irprune.testing.mutants import see, subjects, systematic

# What takes long, or needs packages that are optional, is left to tools/fuzz.py
QUICK = [kind for kind in INPUTS if kind not in ("folders", "pt2", "onnx long chains", "caches")]


@pytest.mark.parametrize("kind", QUICK)
def test_fuzzed_inputs_end_in_a_result_or_a_line(kind: str, tmp_path: Path) -> None:
    for verdict in fuzzed(irprune.cli.run, 4, tmp_path, seed=1000, kinds=[kind]):
        assert verdict.wrong == "", f"{verdict.kind} {verdict.seed}: {verdict.said}"


def test_the_judge_of_fuzzed_inputs_judges() -> None:
    made = Made(("prune",))
    assert judged(2, "irprune: a line\n", made) == ""
    assert "traceback" in judged(70, "Traceback (most recent call last)\nValueError: x\n", made)
    assert "not ours" in judged(2, "[E:onnxruntime] no\nirprune: a line\n", made)
    assert "0 lines" in judged(2, "", made) and "signal" in judged(-9, "", made)


@pytest.mark.parametrize("name", ["linear", "batch_norm", "layer_norm", "softmax", "mean"])
def test_planted_faults_of_a_rule_are_seen(name: str) -> None:
    entry = load_table()[name]
    models = list(subjects(entry))[:2]
    assert models
    seen = [see(mutant, model).by for mutant in systematic(entry) for model in models]
    assert "nothing" not in seen and "proof" in seen
