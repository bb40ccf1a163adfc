"""Samples reach what an entry declares: in each dialect that it is spelled in, some sample cuts
what its ``silence`` must know of, and has an attribute or an operand that its ``resize``
rewrites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from onnxcheck import check_onnx, onnx_cases
from opcheck import cases, check

from irprune.ir.graph import Node, Weight
from irprune.ops.onnx.importer import SPELLINGS
from irprune.ops.registry import TABLE, Cut, amend, load_table

load_table()
ATEN, ONNX = list(cases()), list(onnx_cases())
_NO_SAMPLE = "no sample can run it: UNSAMPLED in test_ops.py"
UNREACHED = {  # dialect, entry: why no sample can
    ("aten", "deform_conv2d"): _NO_SAMPLE,
    ("aten", "grouped_mm"): _NO_SAMPLE,
    ("aten", "addr"): "sums over nothing",
    ("aten", "outer"): "sums over nothing",
    ("onnx", "batch_norm"): "is silenced where it takes statistics, which no file says",
    ("onnx", "full"): "is made from sizes alone: UNSAMPLED in test_onnx_samples.py",
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def runs(dialect: str, name: str) -> Iterator[Callable[[], object]]:
    """The checks of the samples of an entry."""
    if dialect == "aten":
        yield from (lambda c=c: check(c) for c in ATEN if c.entry.name == name)
    else:
        yield from (lambda c=c: check_onnx(c) for c in ONNX if name in c.spelling.entries)


def declared(field: str) -> list[tuple[str, str]]:
    """The entries that declare ``field``, once for each dialect that they are spelled in."""
    read = {name for spelling in SPELLINGS.values() for name in spelling.entries}
    return [
        (dialect, name)
        for name, entry in TABLE.items()
        if getattr(entry, field) is not None
        for dialect, spelled in (("aten", entry.aten), ("onnx", name in read))
        if spelled
    ]


def reached(dialect: str, name: str, found: list[bool]) -> bool:
    """Whether a sample's check sets ``found``."""
    for run in runs(dialect, name):
        run()
        if found:
            return True
    return False


@pytest.mark.parametrize(("dialect", "name"), declared("silence"))
def test_a_sample_silences(dialect: str, name: str) -> None:
    plain, found = TABLE[name].silence, list[bool]()
    assert plain is not None

    def silence(torch: Any, node: Node, operands: Any, present: Any, run: Any) -> Any:
        def asked(*args: Any) -> Any:
            mask = present(*args)
            if mask is not None:
                found.append(True)
            return mask

        return plain(torch, node, operands, asked, run)

    amend(name, silence=silence)
    try:
        assert reached(dialect, name, found) != ((dialect, name) in UNREACHED)
    finally:
        amend(name, silence=plain)


def _shown(node: Node) -> object:
    """What a resize may change of ``node``."""
    stored = [(v.name, id(v.load)) for v in node.inputs if isinstance(v, Weight)]
    return repr(node.attrs), [str(v) for v in node.inputs], stored, str(node.graph)


@pytest.mark.parametrize(("dialect", "name"), declared("resize"))
def test_a_sample_is_resized(dialect: str, name: str) -> None:
    plain, found = TABLE[name].resize, list[bool]()
    assert plain is not None

    def resize(node: Node, cut: Cut) -> None:
        before = _shown(node)
        plain(node, cut)
        if _shown(node) != before:
            found.append(True)

    amend(name, resize=resize)
    try:
        assert reached(dialect, name, found) != ((dialect, name) in UNREACHED)
    finally:
        amend(name, resize=plain)
