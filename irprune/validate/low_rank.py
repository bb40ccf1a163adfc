"""The check of layers that became two: the model with two layers in the place of each, against the
model as it came in with the product of the two as the weight of the one.

It runs no graph and no cut: the user's own ``forward``, or the file on onnxruntime, both times.
What the proof then compares the pruned model with is the model with the two layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from irprune.analysis.sizes import example_symbols
from irprune.base.tolerance import FLOAT32
from irprune.errors import CheckFailed
from irprune.frontend.onnx.source import OnnxSource
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import flat_tensors, random_inputs, redraw, to_device

__all__ = ["check_file", "check_module", "run_file"]


def check_file(graph: Graph, split: Graph, products: Mapping[str, NDArray[Any]]) -> float:
    """The error of the file behind ``split`` beside the file behind ``graph`` whose tensors are
    ``products``, on random inputs. Raises CheckFailed where they differ."""
    from irprune.frontend.onnx.low_rank import with_products

    source, other = graph.source, split.source
    assert isinstance(source, OnnxSource) and isinstance(other, OnnxSource)
    inputs = random_inputs(graph, example_symbols(graph))
    expected = run_file(with_products(source, products), source, inputs)
    found = run_file(other.model, other, inputs)
    return _judged(relative_error(found, expected), graph)


def check_module(graph: Graph, split: Graph, products: Mapping[str, Any]) -> float:
    """The same for modules, called as the example was; halves are computed in float32."""
    import torch

    from irprune.frontend.torch.restore_state import evaluating
    from irprune.frontend.torch.source import torch_source
    from irprune.run.stored_tensor import moved

    source, other = torch_source(graph), torch_source(split)
    assert source.module is not None and other.module is not None
    wide = torch.float64 if any(t.dtype == torch.float64 for t in products.values()) else None
    kind = wide or torch.float32
    cpu = torch.device("cpu")
    args, kwargs = redraw(source.args, source.kwargs, 0)

    def run(module: torch.nn.Module, held: Mapping[str, Any]) -> list[torch.Tensor]:
        made = moved(module, cpu, kind)
        given = to_device((tuple(args), kwargs), cpu, kind)
        with torch.random.fork_rng(), torch.no_grad(), evaluating(made):
            torch.manual_seed(0)
            state = {name: t.to(cpu, kind) for name, t in held.items()}
            return flat_tensors(torch.func.functional_call(made, state, *given))

    expected = run(source.module, products)
    return _judged(relative_error(run(other.module, {}), expected), graph)


def _judged(error: float, graph: Graph) -> float:
    if not error <= FLOAT32:
        raise CheckFailed(
            f"two layers do not compute what their product does: they differ by {error:.1e}",
            graph.name,
            "report this as a bug; low_rank=False leaves every layer one",
        )
    return error


def run_file(model: Any, source: OnnxSource, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    """The outputs of ``model``, whose tensors may lie in the files of ``source``."""
    import onnx

    from irprune.emit.onnx.file import without_arrays
    from irprune.validate.onnx_run import run_model

    data = {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for t in copy.graph.initializer:
        if t.data_location == onnx.TensorProto.EXTERNAL:
            data[t.name] = source.files.loader(onnx.TensorProto.FromString(t.SerializeToString()))
            t.CopyFrom(without_arrays(t.name, t.data_type, tuple(t.dims), t))
    return run_model(copy, inputs, optimise=False, data=data)
