"""Several ranks prune together: the same bits on any number of them, one line where it fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks, torchrun
from torch import nn

import irprune
from irprune.errors import IrpruneError
from irprune.run.calibration import Calibration
from irprune.run.gram import Gram
from irprune.run.ranks import ALONE, Several, Sums, current, together
from irprune.run.total import GROUP, LANES, is_mine, summed


class Net(nn.Module):
    """Convolutions and layers; where ``twins``, every hidden neuron is there twice, so that which
    of two equal ones goes is decided by the last bit."""

    def __init__(self, twins: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1, stride=2),
            nn.ReLU(),
        )
        self.first, self.second = nn.Linear(12 * 9, 32), nn.Linear(32, 4)
        if twins:
            with torch.no_grad():
                self.first.weight[16:] = self.first.weight[:16].clone()
                self.first.bias[16:] = self.first.bias[:16].clone()
                self.second.weight[:, 16:] = self.second.weight[:, :16].clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.second(torch.relu(self.first(self.convs(x).flatten(1))))
        return made


def images(count: int = 70) -> torch.Tensor:
    """Data of which one sample has massive activations."""
    made = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    made[count // 2] *= 1000
    return made


SETTINGS: list[dict[str, Any]] = [
    {"importance": "osscar", "repair": "least_squares"},
    {"importance": "reconstruction", "repair": "bias"},
    {"importance": "taylor", "repair": "affine"},
    {"importance": "taylor_squared", "repair": "batch_norm"},
    {"importance": "fisher", "repair": "fold"},
    {"importance": "wanda", "repair": ["bias", "least_squares"]},
    {"importance": "flap", "repair": False},
    {"importance": "contribution", "repair": "static"},
    {"importance": "magnitude", "repair": "least_squares"},
    {"budget": {"macs": 0.5}},
]


def digests() -> list[tuple[str, ...]]:
    """Of scores, plan, weights and report, for each of the settings, without and with twins."""
    found = []
    data = images()
    for twins in (False, True):
        for setting in SETTINGS:
            made = irprune.prune(
                Net(twins).eval(), (data[:2],), calibration=list(data.split(5)), **setting
            )
            parts = (
                b"".join(s.tobytes() for s in made.graph.scores.values()),
                json.dumps(made.plan.as_json()).encode(),
                b"".join(t.numpy().tobytes() for t in made.module.state_dict().values()),
                made.report.to_json().encode(),
            )
            found.append(tuple(hashlib.sha256(p).hexdigest() for p in parts))
    return found


def test_scores_plan_weights_and_report_are_the_same_bits_on_any_number_of_ranks() -> None:
    (alone,) = on_ranks(1, digests)
    assert alone.value is not None, alone
    for size in (2, 3, 4):
        for rank in on_ranks(size, digests):
            assert rank.value == alone.value, rank


def test_every_criterion_and_repair_that_reads_data_is_among_the_settings() -> None:
    from dataclasses import fields

    from irprune.criteria import criteria
    from irprune.passes.repairs import repairs

    reading = {n for n, c in criteria().items() if "calibration" in {f.name for f in fields(c)}}  # type: ignore[arg-type]
    assert reading <= {s.get("importance") for s in SETTINGS}
    tried = {r for s in SETTINGS for r in np.atleast_1d(s.get("repair") or [])}
    assert set(repairs()) <= tried


# -- sums ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 3, LANES, 50])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_each_chunk_is_summed_by_one_rank(chunks: int, size: int) -> None:
    ranks = [together_of(r, size) for r in range(size)]
    owners = [[r.rank for r in ranks if is_mine(r, chunks)(n)] for n in range(chunks)]
    assert all(len(o) == 1 for o in owners)
    assert len({o[0] for o in owners}) == min(size, chunks, LANES)


def together_of(rank: int, size: int) -> Any:
    made = type(ALONE)()
    made.rank, made.size = rank, size
    return made


def test_sums_have_an_order_of_their_own() -> None:
    values = [10.0 ** (i % 17) for i in range(200)]

    def add(sums: Sums, number: int, value: float) -> None:
        sums.add("all", value)

    made = summed(ALONE, len(values), enumerate(values), Sums, add)
    runs: dict[int, float] = {}
    for i, v in enumerate(values):
        runs[i * LANES // 200] = runs.get(i * LANES // 200, 0.0) + v
    groups = [sum(list(runs.values())[g : g + GROUP]) for g in range(0, LANES, GROUP)]
    assert made["all"] == sum(groups)
    assert summed(ALONE, 3, iter(()), Sums, add) == {}


def gram(chunks: int) -> bytes:
    """What ranks that share the rows sum up to, bit by bit."""
    made = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 9, 200, generator=made) * 10.0 ** (i % 7 - 3) for i in range(chunks)]

    def add(both: Several[Any], number: int, x: torch.Tensor) -> None:
        both[0].add(x)
        both[1].add(x[..., :3], x[..., 3:])

    with together() as ranks:
        mine = is_mine(ranks, chunks)
        own = ((i, x) for i, x in enumerate(rows) if mine(i) and i % 5 != 3)  # some are left out
        whole = summed(ranks, chunks, own, lambda: Several((Gram(), Gram())), add)
    return b"".join(
        t.contiguous().numpy().tobytes() for g in whole for t in (g.covariance(), g.mean, g.peak)
    )


def grams() -> list[bytes]:
    return [gram(chunks) for chunks in (1, 2, 5, LANES, 50)]


def test_sums_are_the_same_bits_on_any_number_of_ranks() -> None:
    alone = grams()
    for size in (2, 3, 5):
        for rank in on_ranks(size, grams):
            assert rank.value == alone, rank


def test_chunks_of_others_are_no_files_that_are_read(tmp_path: Path) -> None:
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.zeros((4, 3, 6, 6), dtype=np.float32))
    graph = irprune.capture(Net(False).eval(), (images()[:2],))
    data = Calibration(tmp_path, graph, batch=2)
    assert data.sizes() == [2] * 12 and data.count() == 24
    for i in (0, 1, 2, 4, 5):
        (tmp_path / f"{i}.npy").unlink()
    assert [b.number for b in data.chunks(lambda n: n in (6, 7))] == [6, 7]


# -- what goes wrong -------------------------------------------------------------------------------


def pruned_with(data: Any, model: nn.Module | None = None, **options: Any) -> str:
    """The message that a prune fails with."""
    try:
        irprune.prune(model or Net(False).eval(), (images()[:2],), calibration=data, **options)
    except IrpruneError as error:
        return str(error)
    return ""


DIFFERENT = {
    "option": "rank 1 gives another option ratio than rank 0: 0.25 and 0.5",
    "weights": "rank 1 gives another model's weights than rank 0",
    "model": "rank 1 gives another model than rank 0",
    "data": "rank 1 gives other calibration data than rank 0",
    "count": "3 ranks are asked for and there are 2",
    "none": "",
}


def differing() -> list[str]:
    return [differs(kind) for kind in DIFFERENT]


def differs(kind: str) -> str:
    rank, data = torch.distributed.get_rank(), images()
    model = Net(False).eval()
    options: dict[str, Any] = {}
    if kind == "option":
        options["ratio"] = 0.5 if rank == 0 else 0.25
    if kind == "weights" and rank == 1:
        model.second.weight.data[3, 7] += 1e-3
    if kind == "model" and rank == 1:
        model.second = nn.Linear(32, 5)
    if kind == "data" and rank == 1:
        data[17, 0, 0, 0] += 1
    if kind == "count":
        options["ranks"] = 3
    return pruned_with(list(data.split(5)), model, **options)


def test_ranks_that_differ_are_refused() -> None:
    for rank in on_ranks(2, differing):
        assert rank.value is not None, rank
        for said, start in zip(rank.value, DIFFERENT.values(), strict=True):
            assert said.startswith(start) and bool(said) == bool(start)


KINDS = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64]


def exchanged() -> list[Any]:
    """Tensors of several types, as the others get them; then what no rank can tell another."""
    found: list[Any] = []
    with together() as ranks:
        mine = [torch.arange(4).reshape(2, 2).to(k) for k in KINDS] + [torch.tensor(2.5).bfloat16()]
        told = ranks.first(mine if ranks.leads else [])
        found.append([(str(t.dtype), tuple(t.shape), t.float().tolist()) for t in told])
    for method in ("first", "gather", "fold"):
        try:
            with together() as ranks:
                if method == "fold":
                    list(ranks.collect([Untold()] if ranks.rank else [], [1]))
                else:
                    getattr(ranks, method)(Untold())
        except Exception as error:
            found.append(f"{method}: {error}")
    return found


class Untold:
    """What pickle refuses."""

    def __reduce__(self) -> Any:
        raise TypeError("it stays here")

    def merged(self, other: Untold) -> Untold:
        return self


def test_any_tensor_goes_to_the_others_and_what_cannot_go_hangs_nobody() -> None:
    first, second = on_ranks(2, exchanged)
    assert first.value is not None and second.value is not None, (first, second)
    assert first.value[0] == second.value[0]
    assert [t[0] for t in first.value[0]] == [str(k) for k in [*KINDS, torch.bfloat16]]
    assert first.value[0][1] == ("torch.bfloat16", (2, 2), [[0.0, 1.0], [2.0, 3.0]])
    assert first.value[0][-1] == ("torch.bfloat16", (), 2.5)
    for rank in (first, second):
        assert len(rank.value) == 4 and all("it stays here" in said for said in rank.value[1:])


LATE = 10  # an item in the second half, which is that of the second of two ranks


class Failing:
    """Data of which an item that rank 1 adds up is not there, the second time they are read."""

    def __init__(self, how: str) -> None:
        self.how, self.times = how, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.times += 1
        for i, x in enumerate(images().split(5)):
            if i == LATE and self.times == 2 and torch.distributed.get_rank() == 1:
                if self.how == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.how == "nan":
                    x = x * float("nan")
                if self.how == "raises":
                    raise OSError("the disk has gone")
            yield x


def one_fails(*ways: str) -> list[tuple[str, float]]:
    return [fails(how) for how in ways]


def fails(how: str) -> tuple[str, float]:
    began = time.monotonic()
    try:
        said = pruned_with(Failing(how))
    except OSError as own:
        said = f"own {own}"
    return said, time.monotonic() - began


def test_an_error_on_one_rank_is_one_line_on_all() -> None:
    first, second = on_ranks(2, one_fails, "nan", "raises")
    assert first.value is not None and second.value is not None, (first, second)
    for nan in (first.value[0][0], second.value[0][0]):
        assert "holds NaN or infinity" in nan
    assert first.value[1][0].startswith("OSError: the disk has gone (rank 1)")
    assert second.value[1][0] == "own the disk has gone"


def test_a_rank_that_dies_hangs_nobody() -> None:
    first, second = on_ranks(2, one_fails, "dies")
    assert second.code == -signal.SIGKILL
    assert first.value is not None, first
    ((said, seconds),) = first.value
    assert re.match(r"a rank is gone: \w[^/]*\(rank 0 of 2\)", said) and seconds < 60, said


def by_itself() -> tuple[int, str]:
    """Rank 0 alone prunes, in the group."""
    if torch.distributed.get_rank():
        return 0, ""
    return current().size, pruned_with(list(images().split(5)), ranks=1)


def test_one_rank_may_prune_by_itself() -> None:
    first, second = on_ranks(2, by_itself)
    assert first.value == (1, "") and second.value == (0, "")


def test_a_number_of_ranks_without_a_group_is_refused() -> None:
    with (
        pytest.raises(IrpruneError, match=r"4 ranks are asked for and there is 1.*torchrun"),
        together(4),
    ):
        pass
    with pytest.raises(IrpruneError, match="ranks is 0"):
        irprune.prune(Net(False).eval(), (images()[:2],), ranks=0)


def test_statistics_of_several_kinds_go_together() -> None:
    one, two = Sums(a=1.0), Sums(a=2.0, b=np.ones(2))
    (made,) = Several([one]).merged(Several([two]))
    assert made["a"] == 3.0 and made["b"].tolist() == [1.0, 1.0]


# -- the command line ------------------------------------------------------------------------------


def test_torchrun_gives_the_folder_that_one_process_gives(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3))\n"
        "def example_inputs():\n"
        "    return torch.randn(2, 8)\n"
    )
    (tmp_path / "data").mkdir()
    draw = np.random.default_rng(0)
    for i in range(7):
        np.save(tmp_path / "data" / f"{i}.npy", draw.standard_normal((5, 8)).astype(np.float32))
    command = ["-m", "irprune", "prune", "net.py:net", "--calibration", "data", "--no-bench"]
    for size in (1, 2):
        made = torchrun(size, [*command, "-o", "out"], tmp_path)
        assert made.returncode == 0, made.stderr
        assert made.stdout.count("parameters") == 1 and made.stderr.count("wrote") == 1
        (tmp_path / "out").rename(tmp_path / f"out{size}")
    for name in ("plan.json", "weights.safetensors", "model.py", "report.json"):
        one, two = (tmp_path / f"out{n}" / name for n in (1, 2))
        assert one.read_bytes() == two.read_bytes(), name
    (tmp_path / "data" / "3.npy").write_bytes(b"no array")
    made = torchrun(2, [*command, "-o", "never"], tmp_path)
    assert made.returncode != 0 and not (tmp_path / "never").exists()
    said = [x for x in made.stderr.splitlines() if x.startswith("irprune: ")]
    assert len(said) == 1 and "cannot be read" in said[0] and "3.npy" in said[0]
