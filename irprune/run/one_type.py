"""Running a module in one floating-point type, whatever types its ``forward`` names.

A cast to float16, ``softmax(dtype=torch.float32)`` or zeros made in bfloat16 round what a
comparison in float64 should see. Here every such type is the wide one, as it is when a graph is
evaluated in a type (``interpret.evaluate``); what is made of whole numbers alone is computed in the
default type first, as it is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph
from irprune.ops.dtypes import FROM_TORCH
from irprune.run.interpret import named_types

__all__ = ["computing_in", "in_one_type"]


def computing_in(graph: Graph, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """What to run the module behind ``graph`` in: float64 alone where ``dtype`` is that and
    ``forward`` names other types, else what it names."""
    other = named_types(graph) - {"f64"}
    return in_one_type(dtype) if dtype == torch.float64 and other else contextlib.nullcontext()


@contextlib.contextmanager
def in_one_type(dtype: torch.dtype) -> Iterator[None]:
    """Let everything of 16 bits or more that is computed within be of ``dtype``.

    Args:
        dtype: a floating-point type.

    Raises:
        RuntimeError: where the bits of a number are read as another type, and where a tensor of
            another type is written to, which would round.
    """
    with _OneType(dtype):
        yield


class _OneType(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces the types that operators are given, and converts what comes from outside."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _reads_bits(func, args):
            raise RuntimeError("forward reads the bits of a number as another type")
        written = _written(func, args, kwargs or {})

        def fitting(x: Any) -> Any:
            if isinstance(x, torch.dtype):
                return self.dtype if self._is_other(x) else x
            if isinstance(x, torch.Tensor) and self._is_other(x.dtype):
                if any(x is w for w in written):
                    raise RuntimeError(f"forward writes to a tensor of {x.dtype} of its own")
                return x.to(self.dtype)
            return x

        made = func(*pytree.tree_map(fitting, args), **pytree.tree_map(fitting, kwargs or {}))
        return pytree.tree_map_only(torch.Tensor, self._widened, made)

    def _is_other(self, dtype: torch.dtype) -> bool:
        return dtype != self.dtype and is_real(FROM_TORCH.get(dtype, ""))

    def _widened(self, x: torch.Tensor) -> torch.Tensor:
        """A result that is made from numbers alone, as by ``torch.tensor``, has its own type."""
        return x.to(self.dtype) if self._is_other(x.dtype) else x


def _reads_bits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the result is a tensor's own memory as another type."""
    own = any(r.alias_info is not None for r in func._schema.returns)
    return own and any(isinstance(x, torch.dtype) for x in args)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The tensors that an operator writes to."""
    if not func._schema.is_mutable:
        return []
    given = [
        a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write
    ]
    by_place = {a.name: i for i, a in enumerate(func._schema.arguments)}
    held = [
        kwargs.get(a.name, args[by_place[a.name]] if by_place[a.name] < len(args) else None)
        for a in given
    ]
    return pytree.tree_leaves(held)
