"""Inverse Fourier transforms of half a spectrum, which onnxruntime's DFT does not take: the other
half is made of the first, and the whole transformed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["INVERSES", "in_full"]

_ATEN = torch.ops.aten
# By nothing, by the root of the size, by the size
_DIVISIONS = {"forward": 0, "ortho": 1, "backward": 2, None: 2}
INVERSES = (_ATEN.fft_irfft.default, _ATEN.fft_irfft2.default, _ATEN.fft_irfftn.default)


def in_full(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Let ``node``, an inverse transform of half a spectrum, transform the whole of it.

    Args:
        graph: an exported program's; changed in place.
        node: a call of one of ``INVERSES``. Where it asks for more than twice its half, which is
            then filled up with zeros, it stays as it is.
    """
    calls = _Calls(graph)
    x, sizes, dims, norm = _arguments(node)
    rank = x.meta["val"].dim()
    *rest, last = [d % rank for d in dims]
    *others, size = sizes
    if any(s is not None for s in others):
        return
    with graph.inserting_before(node):
        held = calls(_ATEN.sym_size.int, x, last)
        if size is None:
            size = calls(operator.mul, calls(operator.sub, held, 1), 2)
        half = calls(operator.add, calls(operator.floordiv, size, 2), 1)
        if _value(half) != _value(held) and not _is_less(half, held):
            return
        for d in rest:
            x = calls.inverse(x, d, norm)
        pairs = calls(_ATEN.view_as_real.default, x)
        pairs = calls(_ATEN.slice.Tensor, pairs, last, 0, half)
        end = calls(operator.add, calls(operator.sub, size, half), 1)
        mirrored = calls(_ATEN.slice.Tensor, pairs, last, 1, end)
        mirrored = calls(_ATEN.flip.default, mirrored, [last])
        parts = [calls(_ATEN.slice.Tensor, mirrored, rank, k, k + 1) for k in (0, 1)]
        parts[1] = calls(_ATEN.neg.default, parts[1])
        conjugate = calls(_ATEN.cat.default, parts, rank)
        whole = calls(_ATEN.cat.default, [pairs, conjugate], last)
        made = calls(_ATEN.view_as_complex.default, whole)
        made = calls.inverse(made, last, norm)
        real = calls(_ATEN.select.int, calls(_ATEN.view_as_real.default, made), -1, 0)
    real.meta = dict(node.meta)  # its sizes are open where they were
    node.replace_all_uses_with(real)
    graph.erase_node(node)


class _Calls:
    """Inserts calls, and knows what they give."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self.graph = graph

    def __call__(self, target: Callable[..., Any], *args: Any) -> Any:
        """The node of a new call; a number where all that goes into it are numbers."""
        if target is _ATEN.sym_size.int and isinstance(
            n := args[0].meta["val"].shape[args[1]], int
        ):
            return n
        values = torch.fx.map_arg(args, lambda n: n.meta["val"])
        made = target(*values)
        if isinstance(made, int):
            return made
        node = self.graph.call_function(target, args)
        node.meta = {"val": made}
        return node

    def inverse(self, x: torch.fx.Node, dim: int, norm: str | None) -> torch.fx.Node:
        """The inverse transform of a whole spectrum; torch would fix open sizes to tell its
        shape, which is that of the spectrum."""
        args = (x, [dim], _DIVISIONS[norm], False)
        node = self.graph.call_function(_ATEN._fft_c2c.default, args)
        node.meta = {"val": x.meta["val"]}
        return node


def _value(size: Any) -> Any:
    return size.meta["val"] if isinstance(size, torch.fx.Node) else size


def _is_less(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a < b


def _arguments(
    node: torch.fx.Node,
) -> tuple[torch.fx.Node, Sequence[Any], Sequence[int], str | None]:
    """The spectrum, the size that each dimension is to have, the dimensions and the norm."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, norm = given["self"], given.get("norm")
    if node.target is INVERSES[0]:
        return x, [given.get("n")], [given.get("dim", -1)], norm
    dims = given.get("dim")
    sizes = given.get("s")
    if dims is None:
        count = 2 if node.target is INVERSES[1] else x.meta["val"].dim()
        dims = list(range(-(len(sizes) if sizes is not None else count), 0))
    sizes = list(sizes) if sizes is not None else [None] * len(dims)
    # A size that a dimension has anyway is none to bring it to
    whole = x.meta["val"].shape
    same = [
        _value(s) == whole[d] if s is not None else True for s, d in zip(sizes, dims, strict=True)
    ]
    return (
        x,
        [*(None if k else s for s, k in zip(sizes[:-1], same, strict=False)), sizes[-1]],
        dims,
        norm,
    )
