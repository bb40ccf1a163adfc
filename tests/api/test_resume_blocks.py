"""A run with calibration data that is killed at any block goes on from there: the same bytes, and
nothing of the blocks that were finished is run again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import nn

import irprune
from irprune.errors import IrpruneError
from irprune.run import kept_files, statistics
from irprune.run.kept_files import KeptFiles
from irprune.run.ranks import ALONE

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return made


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(4)], nn.LayerNorm(8), nn.Linear(8, 3)).eval()


SETTINGS: dict[str, dict[str, Any]] = {
    "osscar": {"importance": "osscar", "repair": "least_squares"},
    "contribution": {"importance": "contribution", "repair": "static", "memory": 72000},
    "wanda": {"importance": "wanda", "repair": ["bias", "least_squares"]},
    "reconstruction": {"importance": "reconstruction", "repair": "affine", "memory": 72000},
    "taylor": {"importance": "taylor", "repair": "least_squares", "budget": {"macs": 0.6}},
    "measured": {"budget": {"macs": 0.6}},
}


def pruned(setting: str, resume: Path | None) -> tuple[str, bytes, str]:
    """Plan, weights and report."""
    made = irprune.prune(
        model(), (X[:2],), calibration=list(X.split(5)), resume=resume, **SETTINGS[setting]
    )
    state = made.module.state_dict().values()
    report = json.loads(made.report.to_json())
    report["options"].pop("resume", None)
    return (
        json.dumps(made.plan.as_json()),
        b"".join(t.numpy().tobytes() for t in state),
        json.dumps(report),
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_a_run_that_is_killed_at_any_file_goes_on_to_the_same_bytes(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pruned(setting, None)
    own, left = kept_files.save, [0]

    def killed(item: Any, file: Path) -> None:
        if file.is_relative_to(tmp_path):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        own(item, file)

    monkeypatch.setattr(kept_files, "save", killed)
    ends = 0
    for _ in range(1000):
        left[0] = 13  # files of each run: more than one place of 8 chunks
        try:
            made = pruned(setting, tmp_path / "kept")
        except Killed:
            ends += 1
        else:
            break
    assert made == whole
    assert ends >= 3, "it was killed in the middle of things"
    assert not list(tmp_path.rglob("places")) and not list(tmp_path.glob("*/readings-*"))
    left[0] = 0 if setting != "measured" else 1000
    assert pruned(setting, tmp_path / "kept") == whole, "everything is known"


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: Counter[tuple[bool, str]] = Counter()
    advance, arrived = statistics.Tape.advance, KeptFiles.arrived
    blocks = [0, 0]  # arrived at, and after which the run is killed

    def counted(self: Any, env: Any, symbols: Any, start: int, stop: int, hook: Any = None) -> None:
        for node in self.graph.nodes[start:stop]:
            ran[self.graph.kept is None, node.out.name] += 1
        advance(self, env, symbols, start, stop, hook)

    def ended(self: Any, *args: Any) -> None:
        arrived(self, *args)
        blocks[0] += 1
        if blocks[0] == blocks[1]:
            raise Killed

    monkeypatch.setattr(statistics.Tape, "advance", counted)
    whole = pruned("osscar", None)
    once = Counter(ran)
    monkeypatch.setattr(KeptFiles, "arrived", ended)
    pruned("osscar", tmp_path / "all")
    places = blocks[0]
    assert places >= 8, "behind each block, of scores and of the repair"
    for place in range(1, places + 1):
        ran.clear()
        blocks[:] = [0, place]
        file = tmp_path / str(place) / "kept"
        with pytest.raises(Killed):
            pruned("osscar", file)
        blocks[1] = 0
        assert pruned("osscar", file) == whole
        again = {name: n - once[name] for name, n in ran.items() if n != once[name]}
        assert len(again) <= 4, f"killed at {place}: {again}"


def test_what_cannot_be_kept_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(IrpruneError, match="what is worked out cannot be kept"):
        KeptFiles(tmp_path, ALONE).put("a", 1)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_file_that_is_torn_is_named(tmp_path: Path) -> None:
    files = KeptFiles(tmp_path, ALONE)
    files.put("a", {"numbers": torch.ones(3)})
    (file,) = tmp_path.rglob("*.pt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(IrpruneError, match=f"cannot be read.*{file.name}"):
        files.get("a")


# -- many ranks ------------------------------------------------------------------------------------


def ends_early(folder: Path, places: int) -> str:
    """What a run says that is killed after so many places."""
    seen, arrived = [0], KeptFiles.arrived

    def ended(self: Any, *args: Any) -> None:
        arrived(self, *args)
        seen[0] += 1
        if seen[0] == places:
            raise RuntimeError("ended here")

    KeptFiles.arrived = ended  # type: ignore[method-assign]
    try:
        pruned("osscar", folder / "kept")
    except (IrpruneError, RuntimeError) as error:
        return str(error)
    return ""


def goes_on(folder: Path) -> tuple[str, bytes, str]:
    return pruned("osscar", folder / "kept")


def test_it_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    whole = pruned("osscar", None)
    for rank in on_ranks(2, ends_early, tmp_path, 6):
        assert "ended here" in rank.value, rank
    for rank in on_ranks(2, ends_early, tmp_path, 2):
        assert "ended here" in rank.value, rank
    (alone,) = on_ranks(1, goes_on, tmp_path)
    assert alone.value == whole
