"""Small networks made at random come out proven, in every element type (a sample of
``tools/random_nets.py``)."""

from __future__ import annotations

import pytest

from irprune.testing.random_nets import MAPS, SEQUENCES, TYPES, nets, random_net, tried


@pytest.mark.parametrize(("seed", "dtype"), list(nets(50, 10_000)))
def test_random_nets_come_out_proven(seed: int, dtype: str) -> None:
    ended = tried(seed, dtype)
    assert ended.how in ("proven", "whole"), f"{ended.kinds}: {ended.said}"


def test_a_seed_makes_one_net() -> None:
    (a, x), (b, y) = random_net(3, "bfloat16"), random_net(3, "bfloat16")
    assert str(a.state_dict()) == str(b.state_dict()) and bool((x == y).all())


def test_each_kind_and_type_is_met() -> None:
    made = [random_net(seed, dtype) for seed, dtype in nets(400)]
    kinds = {b.kind for net, _ in made for b in net.blocks}
    assert len(kinds) >= len(MAPS) + len(SEQUENCES) - 6
    assert len(TYPES) == len({(str(x.dtype), i % 5 == 4) for i, (_, x) in enumerate(made)})
