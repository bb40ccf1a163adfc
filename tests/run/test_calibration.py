"""Calibration: every form that inputs come in, and one clear line for those that will not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from irprune import api
from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.run.calibration import Calibration
from irprune.run.noise import noise


class Pairs(nn.Module):
    """Two inputs and an option, as sentence models have."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        mask = attention_mask[..., None].to(self.table.weight.dtype)
        return self.head((self.table(input_ids) * mask).sum(1))


class Flattened(nn.Module):
    """A size written down in forward: no other batch will do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(2, 6))


def one_input(dynamic: bool = False) -> Graph:
    torch.manual_seed(0)
    shapes = {"input": {0: Dim("n")}} if dynamic else None
    return api.capture(nn.Linear(4, 3), (torch.randn(2, 4),), dynamic_shapes=shapes)


def pairs() -> Graph:
    torch.manual_seed(0)
    ids = torch.zeros(2, 5, dtype=torch.long)
    return api.capture(Pairs(), (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def seen(source: Any, graph: Graph, **options: Any) -> list[list[Tensor]]:
    return [list(b.inputs) for b in Calibration(source, graph, **options)]


X = torch.arange(24.0).reshape(6, 4)


def generated() -> Iterator[Tensor]:
    yield from X.split(2)


@pytest.mark.parametrize(
    "source",
    [
        X,
        X.numpy(),
        [X[:2], X[2:]],
        [(X[:1],), (X[1:],)],
        [{"input": X}],
        {"input": X},
        list(X),
        generated(),
    ],
    ids=["tensor", "array", "list", "tuples", "dicts", "dict", "single samples", "generator"],
)
def test_every_form_gives_all_samples(source: Any) -> None:
    graph = one_input()
    data = Calibration(source, graph, batch=4)
    for _ in range(2):  # it can be read again
        assert torch.equal(torch.cat([b.inputs[0] for b in data]), X)
        assert all(b.size <= 4 for b in data)


def test_a_source_is_read_again_not_kept() -> None:
    opened: list[int] = []

    class Source:
        def __iter__(self) -> Iterator[Tensor]:
            opened.append(1)
            yield X

    data = Calibration(Source(), one_input(dynamic=True))
    assert data.count() == 6 and data.count() == 6
    assert len(opened) == 1, "the samples are counted once"
    assert sum(b.size for b in data) == 6 and len(opened) == 2


def test_labels_follow_their_samples() -> None:
    labels = torch.arange(6)
    batches = list(Calibration([(X, labels)], one_input(), batch=4))
    assert [b.extra[0].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5]]


def test_dicts_go_by_the_names_of_forward() -> None:
    graph = pairs()
    ids, mask = torch.randint(0, 11, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    (batch,) = Calibration(
        [{"attention_mask": mask, "input_ids": ids, "labels": torch.ones(3)}], graph
    )
    assert torch.equal(batch.inputs[0], ids) and torch.equal(batch.inputs[1], mask)
    assert torch.equal(batch.extra[0]["labels"], torch.ones(3))
    assert [
        t.shape
        for t in seen(
            [{"input_ids": [[1, 2, 3, 4, 5]], "attention_mask": [[1, 1, 1, 0, 0]]}], graph
        )[0]
    ] == [(1, 5), (1, 5)]


@pytest.mark.parametrize(
    "item",
    [
        lambda ids: ids,
        lambda ids: ids.numpy(),
        lambda ids: (ids,),
        lambda ids: {"input_ids": ids},
        lambda ids: {"input_ids": ids.numpy(), "labels": ids[:, 0]},
        lambda ids: ids[0],
    ],
    ids=["tensor", "array", "tuple", "dict", "labels", "one row"],
)
def test_tokens_without_a_mask_are_all_attended_to(item) -> None:
    graph = pairs()
    ids = torch.randint(0, 11, (3, 5))
    (batch,) = Calibration([item(ids)], graph)
    assert torch.equal(batch.inputs[0], ids[: batch.size])
    assert torch.equal(batch.inputs[1], torch.ones_like(batch.inputs[0]))
    assert batch.size in (1, 3)


def test_nothing_but_a_mask_of_tokens_is_made_up() -> None:
    class Mixed(nn.Module):
        def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
            return tokens * positions

    ids = torch.ones(2, 5, dtype=torch.long)
    other = api.capture(Mixed(), (ids, ids))
    with pytest.raises(IrpruneError, match="1 arguments for a model that takes 2"):
        list(Calibration(ids, other))
    with pytest.raises(IrpruneError, match="no value for"):
        list(Calibration([{"tokens": ids}], other))
    with pytest.raises(IrpruneError, match="no value for argument 'input_ids'"):
        list(Calibration([{"attention_mask": ids}], pairs()))


def test_samples_bounds_how_many_are_used() -> None:
    assert sum(len(b[0]) for b in seen(X, one_input(), samples=5, batch=2)) == 5


def test_a_model_that_fixes_its_batch_gets_it() -> None:
    graph = api.capture(Flattened(), (torch.randn(2, 2, 3),))
    data = Calibration(torch.randn(6, 2, 3), graph, batch=64)
    assert not data.resizable
    assert [b.size for b in data] == [2, 2, 2]
    with pytest.raises(IrpruneError, match="a model that takes 2 at a time"):
        list(Calibration(torch.randn(5, 2, 3), graph))


def test_a_model_that_takes_any_batch_is_found_out() -> None:
    assert Calibration(X, one_input()).resizable


def test_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X[:2].numpy())
    np.savez(tmp_path / "b.npz", input=X[2:].numpy())
    (tmp_path / "readme.txt").write_text("not an input")
    assert torch.equal(torch.cat([b[0] for b in seen(tmp_path, one_input())]), X)


def test_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    torch.manual_seed(0)
    graph = api.capture(nn.Conv2d(3, 4, 3), (torch.randn(1, 3, 8, 8),))
    ((made,),) = seen(tmp_path, graph, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert torch.allclose(
        made[0], (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-6
    )


BAD = {
    "nothing": ([], "yield nothing"),
    "shape": ([torch.randn(2, 5)], r"has shape \[2, 5\], the model takes"),
    "rank": ([torch.randn(2, 2, 4)], "has shape"),
    "nan": ([X, torch.full((1, 4), float("nan"))], "item 1.*|holds NaN"),
    "infinity": ([torch.full((1, 4), float("inf"))], "NaN or infinity"),
    "kind": ([torch.ones(2, 4, dtype=torch.long)], "holds torch.int64"),
    "text": (["a"], "a str is no model input"),
    "number": (3, "calibration is a int"),
    "missing name": ([{"x": X}], "no value for"),
    "too few": ([()], "0 arguments"),
    "no folder": ("/nonexistent/folder", "no such calibration folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_one_clear_line(case: str) -> None:
    source, message = BAD[case]
    with pytest.raises(IrpruneError, match=message) as caught:
        seen(source, one_input())
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(IrpruneError, match=r"without \.npy"):
        seen(tmp_path, one_input())
    (tmp_path / "a.npy").write_bytes(b"not an array")
    with pytest.raises(IrpruneError, match="cannot be read") as caught:
        seen(tmp_path, one_input())
    assert caught.value.where.endswith("a.npy")


def test_noise_is_the_same_each_time_and_within_its_range() -> None:
    graph = one_input()
    first, again = (
        [b.inputs[0] for b in noise(graph, 100, low=-2, high=3, seed=s)] for s in (1, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = torch.cat(first)
    assert drawn.shape == (100, 4) and -2 <= drawn.min() < -1.5 and 2.5 < drawn.max() <= 3
    other = torch.cat([b.inputs[0] for b in noise(graph, 100, low=-2, high=3, seed=2)])
    assert not torch.equal(drawn, other)


def test_noise_for_indices_stays_inside_the_table() -> None:
    ids, mask = (torch.cat(t) for t in zip(*(b.inputs for b in noise(pairs(), 64)), strict=True))
    assert ids.max() == 10 and set(mask.unique().tolist()) == {0, 1}
