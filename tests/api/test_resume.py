"""A run that was ended goes on from what it had measured, and only with the same model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import irprune
from irprune.base.journal import Journal
from irprune.criteria import measured

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(),
        nn.Linear(16, 3),
    )  # fmt: skip


def pruned(path: Path | None, seed: int = 0, data: Any = X, left: float = 0.5) -> Any:
    said: list[str] = []
    made = irprune.prune(
        model(seed),
        (X[:2],),
        budget={"macs": left},
        calibration=data,
        resume=path,
        progress=said.append,
    )
    return made.kept, [line for line in said if "are known" in line]


def test_what_was_measured_before_the_end_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = pruned(None)
    file = tmp_path / "kept.jsonl"
    own, calls = measured._errors, [0]

    def ended(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(measured, "_errors", ended)
    with pytest.raises(KeyboardInterrupt):
        pruned(file)
    with file.open("a") as out:
        out.write('{"stage": "measured", "na')  # as a killed process leaves it
    calls[0] = 2
    kept, said = pruned(file)
    assert kept == whole and calls[0] == 4  # two of three groups were left
    assert said == [f"4 results are known from an earlier run ({file})"]
    _, again = pruned(file, left=0.7)
    assert calls[0] == 4 and again[0].startswith("6 results")


def test_another_model_or_other_data_start_over(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    assert not pruned(file)[1]
    assert pruned(file)[1]
    assert not pruned(file, seed=1)[1]
    assert not pruned(file, seed=1, data=X + 1)[1]
    assert pruned(file, seed=1, data=X + 1)[0] == pruned(None, seed=1, data=X + 1)[0]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(irprune.IrpruneError, match="cannot be kept"):
        Journal(tmp_path / "file" / "journal", "a")


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).standard_normal((3, 5)) * 1e-30
    Journal(tmp_path / "j", "a").put("s", "n", numbers)
    found = Journal(tmp_path / "j", "a").get("s", "n")
    assert found is not None and np.array_equal(found, numbers)
    assert Journal(tmp_path / "j", "b").get("s", "n") is None
