"""The check of a rotated width: the model in the other basis, before anything is cut, against the
model as it came in.

It runs no graph and no cut: the user's own ``forward`` in float64 where it runs in that, or the
file on onnxruntime, both times. Scales and shifts of norms are drawn anew for it, in both, since
those of a fresh model, 1 and 0, would hide one that was forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irprune.analysis.sizes import example_symbols
from irprune.base.tolerance import FLOAT32
from irprune.errors import CheckFailed
from irprune.frontend.onnx.source import OnnxSource
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, random_inputs, redraw, to_device
from irprune.validate.low_rank import run_file
from irprune.validate.onnx_read_back import misread

__all__ = ["check_basis_of_file", "check_basis_of_module"]


def check_basis_of_module(
    graph: Graph, made: Any, before: Mapping[str, Any], after: Mapping[str, Any]
) -> float:
    """The error of the module ``made`` with the tensors ``after`` beside that behind ``graph`` with
    those of ``before``, called as the example was. Raises CheckFailed where they differ."""
    import torch

    from irprune.frontend.torch.restore_state import evaluating
    from irprune.frontend.torch.source import torch_source
    from irprune.run.stored_tensor import moved

    source = torch_source(graph)
    assert source.module is not None
    cpu = torch.device("cpu")
    args, kwargs = redraw(source.args, source.kwargs, 0)

    def run(
        module: torch.nn.Module, held: Mapping[str, Any], kind: torch.dtype
    ) -> list[torch.Tensor]:
        given = to_device((tuple(args), kwargs), cpu, kind)
        twin = moved(module, cpu, kind)
        state = {name: t.to(cpu, kind) for name, t in held.items()}
        with torch.random.fork_rng(), torch.no_grad(), evaluating(twin):
            torch.manual_seed(0)
            return flat_tensors(torch.func.functional_call(twin, state, *given, tie_weights=False))

    kind = torch.float64
    try:
        expected = run(source.module, before, kind)
    except RuntimeError:  # kernels that have no float64: grouped products of experts
        kind = torch.float32
        expected = run(source.module, before, kind)
    return _judged(relative_error(run(made, after, kind), expected), graph)


def check_basis_of_file(graph: Graph, before: Any, after: Any) -> float:
    """The same of two messages that share the files of ``graph``, on random inputs."""
    source = graph.source
    assert isinstance(source, OnnxSource)
    if other := misread(graph):
        raise CheckFailed(
            f"'{other}' of the file is not read as the onnx package reads it",
            graph.name,
            "report this as a bug",
        )
    inputs = random_inputs(graph, example_symbols(graph))
    expected, found = (run_file(m, source, inputs) for m in (before, after))
    return _judged(relative_error(found, expected), graph)


def _judged(error: float, graph: Graph) -> float:
    if not error <= FLOAT32:
        raise CheckFailed(
            f"the model in the rotated basis does not compute what it did: it differs by {error:.1e}",
            graph.name,
            "report this as a bug; rotate=False leaves every width in its own basis",
        )
    return error
