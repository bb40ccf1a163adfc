"""Sizes of results as expressions: every sample of the table, with every size of its operands
open, beside what torch's meta kernels give at other sizes."""

from __future__ import annotations

from typing import Any

import pytest

from irprune.frontend.torch.dynamic import replace_fixed
from irprune.frontend.torch.open_results import open_results, sizes_at
from irprune.ir.graph import Graph, TensorType, Value
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Sym, UnboundSymbol, evaluate, symbols
from irprune.ops.extents import extents_of
from irprune.ops.rule.signature import Signature
from tests import opcheck

CASES = [c for c in opcheck.cases() if c.target and (not c.entry.random or c.entry.creates)]


def _gated(case: opcheck.Case) -> bool:
    return any(name in case.target for name in ("lstm", "gru", "rnn"))


def _opened(case: opcheck.Case) -> tuple[opcheck.Built, OpenSizes]:
    """The case with every size of its operands open, but those of weights of recurrent layers:
    torch's meta kernels crash where those do not fit each other."""
    built, sizes = opcheck.build(case), OpenSizes()
    for i, value in enumerate(v for v in built.node.inputs if v is not None):
        if value.type.shape is None or (i and _gated(case)):
            continue
        shape = [
            sizes.of_input(f"s{i}_{d}", i, d, n) if isinstance(n, int) and n > 0 else n
            for d, n in enumerate(value.shape)
        ]
        value.type = TensorType(value.dtype, tuple(shape))
    open_results(built.node, sizes)
    return built, sizes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sizes_are_what_torch_gives_at_other_sizes(case: opcheck.Case) -> None:
    built, sizes = _opened(case)
    node = built.node
    for value in node.outputs:
        for size in value.type.shape or ():
            assert not isinstance(size, Sym) or sizes.value(size) >= 0
    settled = sizes.settle()
    replace_fixed(built.graph, settled, sizes)
    names = {
        n for v in node.inputs if v is not None for s in v.type.shape or () for n in symbols(s)
    }
    for name in sorted(names):
        for other in (sizes.example[name] * 2, sizes.example[name] + 1, sizes.example[name] + 7):
            at = {**sizes.example, name: other}
            if not all(
                g.holds(at) for g in settled.guards if not set(g.symbols) & settled.replaced.keys()
            ):
                continue
            made = sizes_at(node, at)
            if made is None:
                continue
            for value, shape in zip(node.outputs, made, strict=False):
                try:
                    said = tuple(evaluate(s, at) for s in value.shape)
                except UnboundSymbol:
                    continue
                told = any(n not in settled.places for s in value.shape for n in symbols(s))
                assert told or said == shape, f"{value.type} at {name}={other}: torch gives {shape}"


def test_the_table_says_the_sizes_of_most_operators() -> None:
    """What no function says is told by the node when it runs; it aligns with no other size."""
    without = {c.entry.name for c in CASES if extents_of(opcheck.build(c).node) is None}
    assert len(without) < 60, sorted(without)


@pytest.mark.parametrize(
    ("signature", "shapes", "wanted"),
    [
        ("n c, c -> n c", [("a", "b"), ("b",)], ["a", "b"]),
        ("n c, c -> c n", [("a", 6), (6,)], [6, "a"]),
        ("t n i, k i o -> u n o", [("a", "b", 6), (3, 6, 5)], [None, "b", 5]),
        ("n (g c) *s -> n g c *s", [("a", "c", "d")], ["a", 4, "(c // 4)", "d"]),
        ("n a, n b -> n (a + b)", [("a", "b"), ("a", "c")], ["a", "(b + c)"]),
        ("n _ -> n _", [("a", "b")], ["a", None]),
    ],
)
def test_a_signature_says_sizes(
    signature: str, shapes: list[tuple[Any, ...]], wanted: list[Any]
) -> None:
    """Of an operator of the user's own too, which has no function."""
    sizes = OpenSizes()
    symbols_of = {n: sizes.of_input(n, 0, i, 8) for i, n in enumerate("abcd")}
    inputs = [
        Value(f"x{i}", TensorType("f32", tuple(symbols_of.get(s, s) for s in shape)))
        for i, shape in enumerate(shapes)
    ]
    out = [("y", TensorType("f32", (8,) * len(wanted)))]
    node = Graph().add("mine", inputs, {"groups": 4}, out)
    given = {"sizes": {"g": "groups"}} if "(g" in signature else {}
    (found,) = Signature(signature, **given).shapes(node, sizes.broadcast)
    assert [None if s is None else str(s) for s in found] == [
        None if s is None else str(s) for s in wanted
    ]
