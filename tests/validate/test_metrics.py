"""Metrics of agreement: each against a value worked out by hand, and the choice by the outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from irprune.errors import IrpruneError
from irprune.validate.metrics import METRICS, choose_metric, metric_of


def measured(name: str, ours: Any, theirs: Any, **inputs: Any) -> float:
    meter = metric_of(name).meter()
    meter.add(inputs, [np.asarray(x) for x in ours], [np.asarray(x) for x in theirs])
    return meter.value()


def chosen(outputs: list[Any], **inputs: Any) -> str:
    return choose_metric(inputs, lambda given: [np.asarray(x) for x in outputs]).name


def test_top1_counts_samples_and_positions() -> None:
    a, b = np.eye(4)[[0, 1, 2, 3]], np.eye(4)[[0, 1, 2, 0]]
    assert measured("top1", [a], [b]) == 0.75
    images = np.zeros((1, 3, 2, 2))
    images[0, 1] = 1.0
    other = images.copy()
    other[0, 2, 0, 0] = 2.0
    assert measured("top1", [other], [images]) == 0.75
    with pytest.raises(IrpruneError, match="no output has classes"):
        measured("top1", [np.zeros((3, 1))], [np.zeros((3, 1))])


def test_cosine_and_signal_to_noise() -> None:
    a, b = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    assert measured("cosine", [a], [b]) == pytest.approx((0.5**0.5 + 1) / 2)
    assert measured("snr", [b * 1.1], [b]) == pytest.approx(20)
    assert measured("snr", [b], [b]) == math.inf


def test_overlap_finds_the_nearest_box_in_corners_and_in_centres() -> None:
    one = np.array([[[0.0, 0, 2, 2], [4, 4, 8, 8]]])
    moved = np.array([[[4.0, 4, 8, 8], [1, 0, 3, 2]]])  # in another order, one shifted by half
    assert measured("iou", [moved], [one]) == pytest.approx((1 + 1 / 3) / 2)
    yolo = np.zeros((1, 6, 60))
    yolo[0, :4] = (
        np.array([5.0, 5, 2, 2])[:, None] + np.arange(60) * np.array([9.0, 9, 0, 0])[:, None]
    )
    yolo[0, 4] = np.linspace(1, 0, 60)
    other = yolo.copy()
    other[0, 0] += 1  # half of a box's width
    assert measured("iou", [other], [yolo]) == pytest.approx(1 / 3)
    with pytest.raises(IrpruneError, match="no output holds boxes"):
        measured("iou", [np.zeros((2, 3))], [np.zeros((2, 3))])


def test_overlap_reads_boxes_with_an_objectness() -> None:
    """YOLO up to version 7: [images, places, 4 + 1 + classes]."""
    yolo = np.zeros((1, 60, 7), np.float32)
    yolo[0, :, :4] = np.array([5.0, 5, 2, 2]) + np.arange(60)[:, None] * np.array([9.0, 9, 0, 0])
    yolo[0, :, 4], yolo[0, :, 5] = np.linspace(1, 0, 60), 0.5
    other = yolo.copy()
    other[0, :, 0] += 1  # half of a box's width
    assert measured("iou", [other], [yolo]) == pytest.approx(1 / 3)
    many = np.zeros((1, 400, 7), np.float32)
    many[..., :4] = 1.0  # of all, the hundred that are likely and of a class
    many[0, :100, :4] = [50.0, 50, 2, 2]
    many[0, :100, 4:6], many[0, 100:, 4] = 1.0, 1.0
    moved = many.copy()
    moved[0, 100:, :2] += 100  # places that nothing is at
    assert measured("iou", [moved], [many]) == 1.0
    assert chosen([yolo], x=np.zeros((1, 3, 8, 8), np.float32)) == "iou"
    sequence = np.full((1, 60, 7), 1 / 7, np.float32)  # classes at each step are no boxes
    assert chosen([sequence], x=np.zeros((1, 60, 3), np.float32)) != "iou"


def test_perplexity_is_that_of_the_next_token_without_padding() -> None:
    ids = np.array([[0, 1, 2, 2]])
    even = np.zeros((1, 4, 3))
    assert measured("perplexity", [even], [even], ids=ids) == pytest.approx(3)
    sure = np.full((1, 4, 3), -50.0)
    sure[0, 0, 1] = sure[0, 1, 2] = 50.0  # the last is padding
    mask = np.array([[1, 1, 1, 0]])
    assert measured("perplexity", [sure], [even], ids=ids, attention_mask=mask) == pytest.approx(1)
    assert not METRICS["perplexity"].higher


def test_the_metric_follows_from_the_outputs() -> None:
    x = np.zeros((2, 3, 8, 8), np.float32)
    assert chosen([np.random.default_rng(0).normal(size=(2, 10))], x=x) == "top1"
    assert chosen([np.zeros((2, 5, 8, 8))], x=x) == "top1"
    assert chosen([np.eye(3)[:2]], x=x) == "cosine"  # unit vectors
    assert chosen([np.zeros((2, 3, 8, 8))], x=x) == "snr"
    assert chosen([np.zeros((2, 7, 4)), np.zeros((2, 7, 3))], x=x) == "iou"
    assert chosen([np.zeros((2, 84, 8400), np.float32)], x=x) == "iou"
    assert chosen([np.zeros((2, 5, 6))], x=x) == "cosine"


@pytest.mark.parametrize(("causal", "name"), [(True, "perplexity"), (False, "top1")])
def test_a_language_model_is_causal_or_not(causal: bool, name: str) -> None:
    ids = np.array([[1, 2, 3, 4]])

    def run(given: Any) -> list[Any]:
        out = np.random.default_rng(0).normal(size=(1, 4, 9))
        seen = given["ids"].cumsum(1) if causal else given["ids"].sum(1, keepdims=True)
        return [out * (1 + np.broadcast_to(seen, (1, 4)))[..., None]]

    assert choose_metric({"ids": ids}, run).name == name


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(IrpruneError, match="one of top1, cosine, snr, iou, perplexity"):
        metric_of("beauty")
