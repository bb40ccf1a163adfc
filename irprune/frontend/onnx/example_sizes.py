"""The sizes of the example call that a file was exported with, in its metadata.

A file with open sizes does not say at which sizes it was meant to run; its costs and its proof are
better made there than at a guess. What the metadata hold is data from a stranger: whatever is no
table of names and small numbers counts as nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import onnx

from irprune.frontend.onnx.proto import identifier

__all__ = ["KEY", "read_example_sizes", "write_example_sizes"]

KEY = "irprune.example_sizes"
_LARGEST = 1 << 24


def write_example_sizes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Record in ``model`` what its named dimensions were in a call.

    Args:
        shapes: The shape of each input in the call, by name.
    """
    sizes = {
        d.dim_param: int(n)
        for v in model.graph.input
        for d, n in zip(v.type.tensor_type.shape.dim, shapes.get(v.name, ()), strict=False)
        if d.dim_param
    }
    if sizes:
        model.metadata_props.add(key=KEY, value=json.dumps(sizes, sort_keys=True))


def read_example_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """What the named dimensions of ``model`` were in the call that it was exported with, by the
    symbol of the graph; empty where the file does not say it."""
    text = next((p.value for p in model.metadata_props if p.key == KEY), "")
    try:
        sizes = json.loads(text) if text else {}
    except ValueError:
        return {}
    if not isinstance(sizes, dict):
        return {}
    return {
        identifier(name): n
        for name, n in sizes.items()
        if isinstance(n, int) and not isinstance(n, bool) and 0 < n <= _LARGEST
    }
