"""The collector of reference cycles rests while a graph is made, and is as it was afterwards."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import irprune
from irprune.base.garbage import without_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(enabled: bool) -> None:
    try:
        gc.enable() if enabled else gc.disable()
        with pytest.raises(ValueError, match="inside"), without_collection():
            assert not gc.isenabled()
            raise ValueError("inside")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_nothing_is_collected_while_a_model_is_pruned() -> None:
    net = nn.Sequential(*(nn.Linear(16, 16) for _ in range(40)))
    found: list[int] = []
    gc.collect()
    old = gc.get_threshold()
    gc.set_threshold(50, 2, 2)

    def seen(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            found.append(1)

    gc.callbacks.append(seen)
    try:
        irprune.prune(net, (torch.zeros(1, 16),), ratio=0.5)
    finally:
        gc.callbacks.remove(seen)
        gc.set_threshold(*old)
    assert gc.isenabled()
    assert not found
