"""Capture: a model comes in and becomes a graph.

``irprune.capture`` is the public call and, once it is imported, this package; calling the package makes the call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from irprune.ir.graph import Graph

__all__ = ["capture"]

METHODS = ("auto", "trace", "export")


def capture(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "auto",
) -> Graph:
    """The graph of ``model`` called with ``args`` and ``kwargs``, in eval mode; the model is as before afterwards.

    ``dynamic_shapes`` is as in ``torch.export.export``. ``method`` is ``trace`` (one recorded call on fake tensors: quick, static
    shapes), ``export`` (``torch.export``) or ``auto``: a trace, and ``torch.export`` for dynamic shapes and where the trace
    declines; the graph's notes say why. Raises IrpruneError for a model that cannot be captured.
    """
    from irprune.errors import IrpruneError

    if method not in METHODS:
        raise IrpruneError(f"no capture method {method!r}", "", f"use one of {', '.join(METHODS)}")
    if method == "trace" and dynamic_shapes is not None:
        raise IrpruneError("a trace has static shapes", "", "leave dynamic_shapes out, or use method='export'")
    declined = ""
    if method != "export" and dynamic_shapes is None:
        from irprune.capture.trace import trace
        from irprune.quiet import quiet

        try:
            with quiet():
                return trace(model, args, kwargs)
        except Exception as why:  # torch.export decides whether the model or the trace is at fault, and says so
            if method == "trace":
                raise IrpruneError(f"the model cannot be traced: {_first_line(why)}", "", "use method='auto'") from why
            declined = _first_line(why)
        if "HigherOrderOperator" in declined:
            _forget_compiled()
    from irprune.capture.torch_export import export, from_exported

    graph = from_exported(export(model, tuple(args), kwargs, dynamic_shapes), model)
    if declined:
        graph.notes.append(f"captured by torch.export, because the quick trace declined: {declined}")
    return graph


def _forget_compiled() -> None:
    """What torch compiled of ``torch.cond`` and its like under the trace would fail outside of it."""
    import torch

    torch._dynamo.reset()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class _Callable(ModuleType):
    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Graph:
        from irprune.capture.model import capture as public

        return public(model, *args, **kwargs)


sys.modules[__name__].__class__ = _Callable
