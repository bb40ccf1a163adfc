"""``bench``, ``inspect`` and ``prune`` say the same numbers; no layer that runs costs nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import irprune
import models
from irprune.analysis.cost import Costs, cost, number
from irprune.analysis.outline import outline
from irprune.analysis.sizes import example_symbols
from irprune.api import analyse
from irprune.ir.axis import Axis, find
from irprune.ir.graph import Graph, Weight
from irprune.ops.registry import lookup

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from onnx_light import lively

CASES = [n for n in models.names() if models.get(n).refused is None]


def agreed(model: Any, args: Any = (), kwargs: Any = None) -> Graph:
    """The analysed graph of ``model``, whose counts are the same by every way."""
    graph = analyse(irprune.capture(model, args, kwargs))
    by_bench, by_inspect = cost(graph), outline(graph)
    report = irprune.prune(model, args, kwargs, ratio=0, proof=False).report
    assert by_bench.macs == by_inspect.macs == report.macs.before == report.macs.after > 0
    assert by_bench.params == by_inspect.params == report.params.before == report.params.after
    assert by_bench.bytes == report.bytes.before == report.bytes.after
    assert by_bench.activation == report.activation.before
    return graph


def costs_something(graph: Graph) -> int:
    """How many layers with weights there are; each costs more than nothing at the sizes that costs
    are said at."""
    symbols = example_symbols(graph)
    seen = 0
    for node in graph.nodes:
        entry = lookup(node)
        if entry is None or entry.macs is None:
            continue
        products: Any = entry.macs(node)
        products = (products,) if products and isinstance(products[0], Axis) else products
        for axes in products:
            total = 1
            for a in axes:
                total *= number(find(a).size, symbols)
            assert total > 0, f"{node!r} costs {total}"
        seen += any(isinstance(v, Weight) for v in node.inputs)
    assert Costs(graph).at({})["macs"] > 0
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_of_a_module(name: str) -> None:
    case = models.get(name)
    args, kwargs = case.example_inputs(small=True)
    assert costs_something(agreed(case.build(small=True), args, kwargs)) > 0


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet", "inception_v1"])
def test_of_a_file(name: str) -> None:
    assert costs_something(agreed(lively(name))) > 20


@pytest.mark.parametrize("length", ["t", 96])
def test_of_a_file_whose_length_is_open(length: Any) -> None:
    """A long kernel without padding: at small lengths nothing would be left."""
    model = lively("squeezenet")
    del model.graph.node[:], model.graph.initializer[:], model.graph.input[:], model.graph.output[:]
    draw = np.random.default_rng(0).standard_normal
    for name, shape in (("w", (32, 1, 64)), ("v", (4, 32, 1))):
        array = numpy_helper.from_array(draw(shape).astype("f4"), name)
        model.graph.initializer.append(array)
    model.graph.node.extend(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], strides=[16]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "v"], ["y"]),
        ]
    )
    float_ = TensorProto.FLOAT
    model.graph.input.append(helper.make_tensor_value_info("x", float_, ["b", 1, length]))
    model.graph.output.append(helper.make_tensor_value_info("y", float_, None))
    assert costs_something(agreed(model)) == 2
