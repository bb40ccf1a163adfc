"""Operators that onnxruntime fuses and quantises: pruned with proof, heads and widths among what
goes, and the same in torch."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import numbers
from onnx_models import tensor as random_tensor
from shared import analysed_file, cut_file

import models
from irprune.emit.bridge.onnx_module import module_from_onnx
from irprune.emit.onnx.emitter import emit_onnx
from irprune.frontend.onnx.reader import capture_onnx
from irprune.ir.axis import leaves
from irprune.ir.graph import Graph
from irprune.run.error import relative_error
from irprune.run.inputs import random_inputs
from irprune.validate.onnx_oracle import silenced_onnx
from irprune.validate.onnx_proof import prove_onnx
from irprune.validate.onnx_run import run_model
from irprune.validate.onnx_unrounded import unrounded

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
MS = "com.microsoft"


tensor = partial(random_tensor, scale=0.4)


# Which onnxruntime wants named
RESULTS = {
    ("Attention", True): ["present"],
    ("EmbedLayerNormalization", False): ["counts"],
}


def fused(
    kind: str,
    inputs: str,
    tensors: list[onnx.TensorProto],
    more: dict[str, tuple[int, list[int]]],
    **attrs: object,
) -> onnx.ModelProto:
    """``kind`` over what linear layers make of ``x``, and a linear layer behind it."""
    made = [t.name for t in tensors if t.name.startswith("w_")]
    nodes = [helper.make_node("MatMul", ["x", w], [w.removeprefix("w_")]) for w in made]
    results = ["o", *RESULTS.get((kind, "past" in more), ())]
    nodes.append(
        helper.make_node(
            kind, [n.strip("-") for n in inputs.split()], results, domain="com.microsoft", **attrs
        )
    )
    nodes.append(helper.make_node("MatMul", ["o", "out"], ["y"]))
    given = [helper.make_tensor_value_info("x", FLOAT, [2, 5, 12])]
    given += [helper.make_tensor_value_info(n, k, s) for n, (k, s) in more.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        given,
        [helper.make_tensor_value_info("y", FLOAT, [2, 5, 3])],
        [*tensors, tensor("out", 32, 3)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


QKV = [tensor("w_q", 12, 32), tensor("w_k", 12, 32), tensor("w_v", 12, 32)]
GROUPED = [tensor("w_q", 12, 32), tensor("w_k", 12, 16), tensor("w_v", 12, 16)]
LENGTHS = np.array([3, 5], np.int32)
KEYS = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1]], np.int32)
ONE_HEAD = {"lengths": np.array([4, 4], np.int32), "total": np.array([5], np.int32)}
CASES: dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]] = {
    "attention over lengths": (
        fused(
            "Attention",
            "h wp bp lengths",
            [tensor("w_h", 12, 16), tensor("wp", 16, 96), tensor("bp", 96)],
            {"lengths": (INT, [2])},
            num_heads=4,
        ),
        {"lengths": LENGTHS},
    ),
    "causal attention over keys that count": (
        fused(
            "Attention",
            "h wp bp keys",
            [tensor("w_h", 12, 16), tensor("wp", 16, 96), tensor("bp", 96)],
            {"keys": (INT, [2, 5])},
            num_heads=4,
            unidirectional=1,
        ),
        {"keys": np.maximum(KEYS, np.eye(2, 5, dtype=np.int32))},
    ),
    "attention after a past": (
        fused(
            "Attention",
            "h wp bp - past",
            [tensor("w_h", 12, 16), tensor("wp", 16, 96), tensor("bp", 96)],
            {"past": (FLOAT, [2, 2, 4, 3, 8])},
            num_heads=4,
            unidirectional=1,
        ),
        {},
    ),
    "multi-head attention with a bias": (
        fused("MultiHeadAttention", "q k v b", [*QKV, tensor("b", 96)], {}, num_heads=4),
        {},
    ),
    "multi-head attention over keys that count": (
        fused("MultiHeadAttention", "q k v - keys", QKV, {"keys": (INT, [2, 5])}, num_heads=4),
        {"keys": KEYS},
    ),
    "multi-head attention with an added bias": (
        fused(
            "MultiHeadAttention",
            "q k v - - added",
            QKV,
            {"added": (FLOAT, [2, 4, 5, 5])},
            num_heads=4,
        ),
        {},
    ),
    "grouped queries": (
        fused(
            "GroupQueryAttention",
            "q k v - - lengths total",
            GROUPED,
            {"lengths": (INT, [2]), "total": (INT, [1])},
            num_heads=4,
            kv_num_heads=2,
        ),
        ONE_HEAD,
    ),
    "grouped queries, rotated": (
        fused(
            "GroupQueryAttention",
            "q k v - - lengths total cos sin",
            [
                tensor("w_q", 12, 32),
                tensor("w_k", 12, 32),
                tensor("w_v", 12, 32),
                tensor("cos", 8, 8),
                tensor("sin", 8, 8),
            ],
            {"lengths": (INT, [2]), "total": (INT, [1])},
            num_heads=2,
            kv_num_heads=2,
            do_rotary=1,
        ),
        ONE_HEAD,
    ),
    "embeddings and their norm": (
        fused(
            "EmbedLayerNormalization",
            "ids kinds words places segments g e",
            [
                tensor("words", 50, 32),
                tensor("places", 9, 32),
                tensor("segments", 2, 32),
                tensor("g", 32),
                tensor("e", 32),
            ],
            {"ids": (INT, [2, 5]), "kinds": (INT, [2, 5])},
            epsilon=1e-5,
        ),
        {
            "ids": np.arange(10, dtype=np.int32).reshape(2, 5),
            "kinds": np.array([[0, 0, 1, 1, 1]] * 2, np.int32),
        },
    ),
}
# The inputs of the graph keep heads, or all of them
HELD = {
    "attention after a past",
    "multi-head attention with an added bias",
}


def in_torch(graph: Graph, x: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        made = module_from_onnx(graph)(*(torch.from_numpy(x[v.name]) for v in graph.inputs))
    return [t.numpy() for t in (made if isinstance(made, (tuple, list)) else [made])]


@pytest.mark.parametrize("name", CASES)
def test_fused_operators_are_proven(name: str) -> None:
    model, given = CASES[name]
    graph = analysed_file(model)
    x = random_inputs(graph) | given
    small = cut_file(graph)
    emitted = emit_onnx(small)
    whole, silent, ours = (
        run_model(model, x),
        silenced_onnx(graph, graph.kept, x),
        run_model(emitted, x),
    )
    assert relative_error(ours, silent) < 1e-4
    assert relative_error(whole, silent) > 1e-3, (
        "the cut changes nothing, so the proof says nothing"
    )
    left = {t.name: t.dims[0] for t in emitted.graph.initializer}["out"]
    assert left <= (32 if name in HELD else 16)
    assert relative_error(in_torch(graph, x), whole) < 1e-5
    assert relative_error(in_torch(small, x), ours) < 1e-5


def test_heads_go_whole() -> None:
    """The number of heads follows, and what is left of a head is as large as before."""
    model, given = CASES["multi-head attention with a bias"]
    graph = analysed_file(model)
    emitted = emit_onnx(cut_file(graph))
    node = next(n for n in emitted.graph.node if n.op_type == "MultiHeadAttention")
    heads = next(a.i for a in node.attribute if a.name == "num_heads")
    sizes = {t.name: tuple(t.dims) for t in emitted.graph.initializer}
    assert heads == 2 and sizes["w_q"] == (12, 16) and sizes["b"] == (48,) and given == {}


# -- what the optimiser and the quantiser of onnxruntime make of the model cases -------------------


def exported(name: str, path: Path) -> Path:
    case = models.get(name)
    torch.manual_seed(0)
    model = case.build(small=True).eval()
    args, kwargs = case.example_inputs(small=True)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        torch.onnx.export(
            model, (*args, kwargs) if kwargs else args, str(path), dynamo=False, opset_version=17
        )
    return path


def reach(graph: Graph) -> float:
    """The share of parameters with a dimension that may change."""
    trained = [w for w in graph.weights.values() if w.trainable]
    free = [
        w
        for w in trained
        if any(x.reason is None and x.size != 1 for a in w.axes or () for x in leaves(a))
    ]
    return sum(int(np.prod(w.shape)) for w in free) / sum(int(np.prod(w.shape)) for w in trained)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [("gpt2", "gpt2", 0.9), ("llama", "gpt2", 0.9), ("vit_b16", "vit", 0.9), ("bert", "bert", 0.4)],
)
def test_what_the_optimiser_fuses(name: str, kind: str, least: float, tmp_path: Path) -> None:
    """The small BERT's tables, more than half of it, run along its output."""
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    path = exported(name, tmp_path / "whole.onnx")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        fused = optimizer.optimize_model(
            str(path), model_type=kind, num_heads=0, hidden_size=0, opt_level=0
        )
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    graph = analysed_file(tmp_path / "fused.onnx")
    assert any(n.origin.target.startswith("com.microsoft::") for n in graph.nodes)
    assert not [n.attrs["why"] for n in graph.nodes if n.op == "opaque"]
    assert reach(graph) >= least
    small = cut_file(graph)
    proof = prove_onnx(graph, small)
    assert proof.max_error < 1e-4 and not proof.vacuous
    x = random_inputs(graph)
    assert relative_error(in_torch(small, x), run_model(emit_onnx(small), x)) < 1e-4


def quantised(path: Path, how: str, made: Path, per_channel: bool = True) -> Path:
    """``path`` with integers in the place of floats: between QDQ nodes, in operators of their own,
    or with scales found at run time."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    samples = [random_inputs(capture_onnx(path), seed=k) for k in range(2)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return samples.pop() if samples else None

    logging.disable(logging.WARNING)
    try:
        if how == "dynamic":
            quantization.quantize_dynamic(str(path), str(made), per_channel=per_channel)
        else:
            formats = {
                "QDQ": quantization.QuantFormat.QDQ,
                "operators": quantization.QuantFormat.QOperator,
            }
            quantization.quantize_static(
                str(path), str(made), Reader(), quant_format=formats[how], per_channel=per_channel
            )
    finally:
        logging.disable(logging.NOTSET)
    return made


def optimised(path: Path, made: Path) -> Path:
    """What onnxruntime itself makes of ``path`` when it loads it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(made), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return made


def learned(graph: Graph, integers: bool) -> int:
    """How many weights are stored as integers of eight bits, or how many train."""
    return sum(
        int(np.prod(w.shape))
        for w in graph.weights.values()
        if (w.dtype in ("i8", "u8") if integers else w.trainable)
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((n, how) for n in ("digits", "gpt2") for how in ("QDQ", "operators", "dynamic")),
        ("lstm_tagger", "dynamic"),
    ],
)
def test_quantised_files_are_proven(name: str, how: str, fused: bool, tmp_path: Path) -> None:
    path = quantised(exported(name, tmp_path / "whole.onnx"), how, tmp_path / "quantised.onnx")
    path = optimised(path, tmp_path / "optimised.onnx") if fused else path
    graph = analysed_file(path)
    small = cut_file(graph)
    proof = prove_onnx(graph, small)
    assert proof.max_error < 1e-4 and not proof.vacuous
    assert learned(small, True) < 0.4 * learned(graph, True)
    emitted, x = emit_onnx(small), random_inputs(graph)
    assert (
        relative_error(in_torch(small, x), run_model(unrounded(emitted), x, optimise=False)) < 0.1
    ), "a few steps of rounding"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["QDQ", "operators", "dynamic"])
def test_one_scale_for_a_whole_tensor(how: str, tmp_path: Path) -> None:
    """There is nothing to rank channels by but the integers."""
    graph = analysed_file(
        quantised(
            exported("digits", tmp_path / "whole.onnx"),
            how,
            tmp_path / "quantised.onnx",
            per_channel=False,
        )
    )
    small = cut_file(graph)
    proof = prove_onnx(graph, small)
    assert proof.passed and learned(small, True) < 0.4 * learned(graph, True)


@pytest.mark.parametrize("scales", [1, 16])
def test_integers_rank_by_what_they_stand_for(scales: int) -> None:
    """Odd channels are the larger integers, and the smaller numbers: nearer to the zero point, or
    in smaller steps."""
    random, odd, sizes = (
        np.random.default_rng(0),
        np.arange(1, 16, 2),
        np.full(scales, 0.02, np.float32),
    )
    whole = np.where(np.arange(16)[:, None] % 2, 190, 50) + random.integers(-9, 9, (16, 12))
    if scales > 1:
        sizes[odd] = 0.001
    arrays = {
        "w": whole.astype(np.uint8),
        "s": sizes if scales > 1 else sizes[0],
        "v": random.standard_normal((16, 3)).astype(np.float32),
    }
    arrays["z"] = np.full(scales, 200, np.uint8) if scales > 1 else np.uint8(200)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    given = [helper.make_tensor_value_info(n, FLOAT, [2, k]) for n, k in (("x", 12), ("y", 3))]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", given[:1], given[1:], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    emitted = {
        t.name: numpy_helper.to_array(t)
        for t in emit_onnx(cut_file(analysed_file(model))).graph.initializer
    }
    assert np.array_equal(emitted["w"], arrays["w"][::2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["digits", "resnet50", "vit_b16"])
def test_what_onnxruntime_fuses_is_proven(name: str, tmp_path: Path) -> None:
    graph = analysed_file(
        optimised(exported(name, tmp_path / "whole.onnx"), tmp_path / "fused.onnx")
    )
    assert (
        any(n.origin.target.startswith("com.microsoft::") for n in graph.nodes)
        and reach(graph) > 0.9
    )
    small = cut_file(graph)
    proof = prove_onnx(graph, small)
    assert proof.max_error < 1e-4 and not proof.vacuous
    assert learned(small, False) < 0.35 * learned(graph, False)
    x = random_inputs(graph)
    assert relative_error(in_torch(small, x), run_model(emit_onnx(small), x)) < 1e-4


def packed(name: str, rows: int, inputs: int, zeros: bool) -> list[onnx.TensorProto]:
    """A matrix of 4 bits a number in blocks of 16, its scales and, packed as well, its zero
    points."""
    random, blocks = numbers(name), inputs // 16
    arrays = [
        random.integers(0, 256, (rows, blocks, 8)).astype(np.uint8),
        random.uniform(0.01, 0.1, rows * blocks).astype(np.float32),
    ]
    arrays += (
        [random.integers(0, 256, (rows * (-(-blocks // 2)))).astype(np.uint8)] if zeros else []
    )
    return [numpy_helper.from_array(a, f"{name}.{k}") for k, a in enumerate(arrays)]


@pytest.mark.parametrize("zeros", [False, True])
def test_matrices_of_four_bits(zeros: bool) -> None:
    """Rows go one by one, inputs in whole blocks; where zero points of two blocks share a byte,
    inputs stay."""
    up, down, last = (
        packed("up", 128, 32, False),
        packed("down", 24, 128, zeros),
        tensor("last", 24, 3),
    )

    def product(x: str, matrix: list[onnx.TensorProto], n: int, k: int, y: str) -> onnx.NodeProto:
        return helper.make_node(
            "MatMulNBits",
            [x, *(t.name for t in matrix)],
            [y],
            domain="com.microsoft",
            N=n,
            K=k,
            bits=4,
            block_size=16,
        )

    nodes = [
        product("x", up, 128, 32, "h"),
        helper.make_node("Relu", ["h"], ["r"]),
        product("r", down, 24, 128, "d"),
    ]
    nodes += [
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "last"], ["y"]),
    ]
    given = [helper.make_tensor_value_info(n, FLOAT, [2, k]) for n, k in (("x", 32), ("y", 3))]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", given[:1], given[1:], [*up, *down, last]),
        opset_imports=opsets,
        ir_version=8,
    )
    graph = analysed_file(model)
    small = cut_file(graph)
    proof = prove_onnx(graph, small)
    assert proof.max_error < 1e-5 and not proof.vacuous
    emitted, x = emit_onnx(small), random_inputs(graph)
    width = 128 if zeros else 64
    assert {t.name: tuple(t.dims) for t in emitted.graph.initializer}["down.0"] == (
        12,
        width // 16,
        8,
    )
    assert {a.name: a.i for a in emitted.graph.node[0].attribute} == {
        "N": width,
        "K": 32,
        "bits": 4,
        "block_size": 16,
    }
    assert relative_error(in_torch(small, x), run_model(emitted, x)) < 1e-5
    assert relative_error(in_torch(graph, x), run_model(model, x)) < 1e-5


def test_a_quantised_decoder_is_proven() -> None:
    """A block as onnxruntime's tools make one: matrices of four bits, grouped queries, and norms
    with the residual sum. Kv groups and hidden units go; the integers of what is left stay."""
    wide = 32
    matrices = {
        "q": (64, wide),
        "k": (32, wide),
        "v": (32, wide),
        "o": (wide, 64),
        "gate": (64, wide),
        "up": (64, wide),
        "down": (wide, 64),
    }
    held = {n: packed(n, *shape, False) for n, shape in matrices.items()}

    def product(name: str, x: str) -> onnx.NodeProto:
        rows, inputs = matrices[name]
        read = [x, *(t.name for t in held[name])]
        sizes = {"N": rows, "K": inputs, "bits": 4, "block_size": 16}
        return helper.make_node("MatMulNBits", read, [f"{name}.y"], domain=MS, **sizes)

    def norm(name: str, *x: str) -> onnx.NodeProto:
        kind = "SkipSimplifiedLayerNormalization"
        made = [f"{name}.y", "", "", f"{name}.sum"]
        return helper.make_node(kind, [*x, name], made, domain=MS, epsilon=1e-5)

    nodes = [
        helper.make_node("SimplifiedLayerNormalization", ["x", "n0"], ["n0.y"], epsilon=1e-5),
        *(product(n, "n0.y") for n in "qkv"),
        helper.make_node(
            "GroupQueryAttention",
            ["q.y", "k.y", "v.y", "", "", "lengths", "total"],
            ["a"],
            domain=MS,
            num_heads=4,
            kv_num_heads=2,
        ),
        product("o", "a"),
        norm("n1", "o.y", "x"),
        product("gate", "n1.y"),
        product("up", "n1.y"),
        helper.make_node("Sigmoid", ["gate.y"], ["s"]),
        helper.make_node("Mul", ["gate.y", "s"], ["silu"]),
        helper.make_node("Mul", ["silu", "up.y"], ["h"]),
        product("down", "h"),
        norm("n2", "down.y", "n1.sum"),
        helper.make_node("MatMul", ["n2.y", "head"], ["y"]),
    ]
    sizes = {"x": (FLOAT, [2, 5, wide]), "lengths": (INT, [2]), "total": (INT, [1])}
    given = [helper.make_tensor_value_info(n, *kind) for n, kind in sizes.items()]
    stored = [t for some in held.values() for t in some]
    stored += [*(tensor(n, wide) for n in ("n0", "n1", "n2")), tensor("head", wide, 7)]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", given, [helper.make_tensor_value_info("y", FLOAT, [2, 5, 7])], stored
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)],
        ir_version=8,
    )
    graph = analysed_file(model)
    small = cut_file(graph)
    x = random_inputs(graph) | ONE_HEAD
    emitted = emit_onnx(small)
    silent, ours = silenced_onnx(graph, graph.kept, x), run_model(emitted, x)
    assert relative_error(ours, silent) < 1e-4 < relative_error(run_model(model, x), silent)
    left = {t.name: numpy_helper.to_array(t) for t in emitted.graph.initializer}
    attention = next(n for n in emitted.graph.node if n.op_type == "GroupQueryAttention")
    heads = {a.name: a.i for a in attention.attribute}
    assert (heads["num_heads"], heads["kv_num_heads"]) == (2, 1)
    assert left["k.0"].shape[0] == 16 and left["up.0"].shape[0] == 32
    before = {t.name: numpy_helper.to_array(t) for t in stored}
    for name in ("k.0", "up.0"):
        assert {row.tobytes() for row in left[name]} <= {row.tobytes() for row in before[name]}
