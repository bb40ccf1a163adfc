"""What torch's meta kernels say about the types of a graph: nothing is computed, shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from irprune.ir.graph import Graph, Node, TensorType, Value
from irprune.ir.size import Sym, probe_of, symbol
from irprune.ops.dtypes import FROM_TORCH, TO_TORCH
from irprune.run.interpret import run_node

__all__ = ["type_faults"]

_META = torch.device("meta")


class _Probes(dict[str, int]):
    """Every symbol stands for its probe."""

    def __missing__(self, name: str) -> int:
        return symbol(name).probe


def type_faults(graph: Graph) -> Iterator[tuple[Node | Value | None, str]]:
    """Nodes whose recorded type differs from what torch gives for the recorded types of their
    operands.

    Symbolic sizes take part through their probes. What torch cannot do without data (shapes that
    depend on values) is passed over."""
    for node in graph.nodes:
        types = [v.type for v in (*node.inputs, *node.outputs) if v is not None]
        if any(t.shape is None or t.dtype not in TO_TORCH for t in types):
            continue
        dynamic = any(not t.static for t in types) or any(map(_is_dynamic, node.attrs.values()))
        try:
            made = run_node(
                node, [None if v is None else _empty(v.type) for v in node.inputs], _Probes(), _META
            )
        except (NotImplementedError, LookupError):
            continue
        except Exception as refused:  # whatever torch raises is its verdict on this call
            text = " ".join(str(refused).split())
            if not dynamic and "meta" not in text and node.origin.dialect == "aten":
                yield node, f"torch refuses it: {text[:200]}"
            continue
        for value, got in zip(
            node.outputs, made if isinstance(made, (list, tuple)) else [made], strict=False
        ):
            if not isinstance(got, torch.Tensor):
                continue
            want = (value.dtype, tuple(map(probe_of, value.shape)))
            have = (FROM_TORCH.get(got.dtype, str(got.dtype)), tuple(got.shape))
            if want != have:
                yield (
                    value,
                    f"the type is {value.type}, torch gives {have[0]}[{', '.join(map(str, have[1]))}]",
                )


def _is_dynamic(x: Any) -> bool:
    return isinstance(x, Sym) or (isinstance(x, (list, tuple)) and any(map(_is_dynamic, x)))


def _empty(type: TensorType) -> torch.Tensor:
    return torch.empty([probe_of(s) for s in type.known], dtype=TO_TORCH[type.dtype], device=_META)
