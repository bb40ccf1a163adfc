"""The inputs of ``irprune.testing.fuzz``, by kind: each is made from a seed."""

from __future__ import annotations

import io
import json
import math
import random
import string
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import irprune

__all__ = ["INPUTS", "Made"]

SIZES = (0, -1, 1, 2, 7, 1 << 10, 10**6, 10**9, 1 << 31, 1 << 32, 1 << 40, 10**12, 1 << 62)
NAMES = (
    "", "\0", "a\0b", "../x", "/etc/passwd", "x" * 70000, "'\"\n", "\u202e", "class", "a.b.c",
    "%s", "{0}", "\ud7ff\U0001f600", "-o", "w", "x", "y",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """An input: the command line that reads it, and where the result goes."""

    argv: tuple[str, ...]
    output: Path | None = None


Maker = Callable[[random.Random, Path], Made]
INPUTS: dict[str, Maker] = {}


def _kind(name: str) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        INPUTS[name] = make
        return make

    return register


# -- models to start from --------------------------------------------------------------------------


def network(draw: random.Random, width: int = 8) -> onnx.ModelProto:
    """A small convolutional or linear net, sound."""
    x: Sequence[str | int]
    y: Sequence[str | int]
    numbers = np.random.default_rng(draw.randrange(1 << 30))

    def stored(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(numbers.standard_normal(shape).astype(np.float32), name)

    if draw.random() < 0.5:
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
        ]
        weights = [
            stored("w1", width, 6), stored("b1", width), stored("w2", 4, width), stored("b2", 4),
        ]  # fmt: skip
        x, y = ("n", 6), ("n", 4)
    else:
        nodes = [
            helper.make_node("Conv", ["x", "w1", "b1"], ["h"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Conv", ["r", "w2", "b2"], ["y"]),
        ]
        weights = [
            stored("w1", width, 3, 3, 3), stored("b1", width), stored("w2", 4, width, 1, 1), stored("b2", 4),
        ]  # fmt: skip
        x, y = (1, 3, 8, 8), (1, 4, 8, 8)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _pruned(model: onnx.ModelProto | bytes, place: Path, *more: str) -> Made:
    path, out = place / "m.onnx", place / "out.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return Made(("prune", str(path), "-o", str(out), *more), out)


# -- files of ONNX ---------------------------------------------------------------------------------


@_kind("onnx bytes")
def _bytes(draw: random.Random, place: Path) -> Made:
    """Bytes changed, cut off or put in."""
    data = bytearray(network(draw).SerializeToString())
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        at = draw.randrange(max(1, len(data)))
        how = draw.randrange(4)
        if how == 0 and data:
            data[at] = draw.randrange(256)
        elif how == 1:
            del data[at : at + draw.randrange(1, 64)]
        elif how == 2:
            data[at:at] = draw.randbytes(draw.randrange(1, 16))
        else:
            data = data[: max(1, at)]
    return _pruned(bytes(data), place)


def _other_operators() -> list[str]:
    """Operators that the nets do not have, of all kinds."""
    names = {s.name for s in onnx.defs.get_all_schemas() if not s.domain and not s.deprecated}
    return sorted(names)


@_kind("onnx structure")
def _structure(draw: random.Random, place: Path) -> Made:
    """Nodes without inputs, twice, in circles, of no operator; inputs and outputs that are none."""
    model = network(draw)
    graph = model.graph
    for _ in range(draw.choice([1, 1, 2, 3])):
        node = draw.choice(list(graph.node)) if graph.node else None
        how = draw.randrange(14)
        if how == 0 and node is not None:
            del node.input[draw.randrange(max(1, len(node.input))) :]
        elif how == 1 and node is not None:
            node.input.append(draw.choice(NAMES))
        elif how == 2 and node is not None:
            node.output[0] = draw.choice(["x", "w1", "y", "h", ""])
        elif how == 3 and node is not None:
            graph.node.append(node)
        elif how == 4 and node is not None:
            node.op_type = draw.choice([*_other_operators(), "Nope", ""])
        elif how == 5 and graph.node:
            graph.node.remove(draw.choice(list(graph.node)))
        elif how == 6:
            nodes = list(graph.node)
            draw.shuffle(nodes)
            del graph.node[:]
            graph.node.extend(nodes)
        elif how == 7:
            graph.initializer.extend(list(graph.initializer)[:1])
        elif how == 8:
            model.ir_version = draw.choice([0, 1, 2, 3, 99, 1 << 40])
        elif how == 9:
            model.opset_import[0].version = draw.choice([-1, 0, 1, 6, 12, 24, 99, 1 << 40])
        elif how == 10:
            graph.ClearField(draw.choice(["output", "input"]))
        elif how == 11:
            graph.output.append(helper.make_tensor_value_info("none", TensorProto.FLOAT, [1]))
        elif how == 12 and node is not None:
            node.input[0] = ""
        else:
            del graph.initializer[draw.randrange(4) :]
    return _pruned(model, place)


@_kind("onnx sizes")
def _sizes(draw: random.Random, place: Path) -> Made:
    """Shapes of inputs, weights and constants up to 2**62."""
    model = network(draw)
    graph = model.graph
    how = draw.randrange(6)
    if how == 0:
        for dim in graph.input[0].type.tensor_type.shape.dim:
            if draw.random() < 0.6:
                dim.dim_value = draw.choice(SIZES)
    elif how == 1:
        tensor = draw.choice(list(graph.initializer))
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(SIZES)
    elif how == 2:
        shape = [draw.choice(SIZES) for _ in range(draw.randrange(1, 4))]
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["big"]))
        graph.node.append(helper.make_node("Add", ["y", "big"], ["z"]))
        graph.output[0].name = "z"
        _reshaped(graph, len(shape))
    elif how == 3:
        graph.initializer.append(
            numpy_helper.from_array(np.array([draw.choice(SIZES), -1], np.int64), "shape")
        )
        graph.node.append(helper.make_node("Reshape", ["y", "shape"], ["z"]))
        graph.output[0].name = "z"
        _reshaped(graph, 2)
    elif how == 4:
        node = graph.node[0]
        if len(graph.input[0].type.tensor_type.shape.dim) == 4:
            node.attribute.extend(
                [helper.make_attribute("strides", [draw.choice(SIZES), draw.choice(SIZES)])]
            )
        else:
            node.attribute[0].i = draw.choice(SIZES)
    else:
        repeats = np.array([draw.choice(SIZES)] * len(graph.input[0].type.tensor_type.shape.dim))
        graph.initializer.append(numpy_helper.from_array(repeats.astype(np.int64), "repeats"))
        graph.node.append(helper.make_node("Tile", ["y", "repeats"], ["z"]))
        graph.output[0].name = "z"
        _reshaped(graph, len(repeats))
    return _pruned(model, place)


def _reshaped(graph: onnx.GraphProto, rank: int) -> None:
    """Let the shape of the output be of open sizes."""
    open_shape = helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * rank)
    graph.output[0].CopyFrom(open_shape)


@_kind("onnx types")
def _types(draw: random.Random, place: Path) -> Made:
    """Element types that do not fit, sparse and sequence types."""
    model = network(draw)
    graph = model.graph
    kinds = list(range(25))
    how = draw.randrange(5)
    if how == 0:
        graph.input[0].type.tensor_type.elem_type = draw.choice(kinds)
    elif how == 1:
        draw.choice(list(graph.initializer)).data_type = draw.choice(kinds)
    elif how == 2:
        graph.node.append(helper.make_node("Cast", ["y"], ["z"], to=draw.choice(kinds)))
        graph.output[0].name = "z"
        graph.output[0].type.tensor_type.elem_type = draw.choice(kinds)
    elif how == 3:
        values = helper.make_tensor("w3", TensorProto.FLOAT, [2], [1.0, 2.0])
        at = draw.choice([[0, 1], [0, 99], [-1, 3]])
        indices = helper.make_tensor("i3", TensorProto.INT64, [2], at)
        sparse = helper.make_sparse_tensor(values, indices, [draw.choice([4, 8, 1 << 40])])
        graph.sparse_initializer.append(sparse)
        graph.node.append(helper.make_node("Add", ["y", "w3"], ["z"]))
    else:
        kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
        graph.input.append(helper.make_value_info("s", helper.make_sequence_type_proto(kind)))
        graph.node.append(
            helper.make_node("ConcatFromSequence", ["s"], ["z"], axis=draw.choice([0, 5, -9]))
        )
        graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 2))
    return _pruned(model, place)


@_kind("onnx names")
def _names(draw: random.Random, place: Path) -> Made:
    """Names of everything, renamed throughout or in one place."""
    model = network(draw)
    graph = model.graph
    old = draw.choice(["x", "w1", "b1", "h", "r", "w2", "y"])
    new = draw.choice(NAMES)
    try:
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old and draw.random() < 0.9:
                        names[i] = new
            if draw.random() < 0.5:
                node.name = draw.choice(NAMES)
        for held in (*graph.input, *graph.output, *graph.initializer):
            if held.name == old:
                held.name = new
        graph.name = draw.choice(NAMES)
        if draw.random() < 0.5:
            graph.input[0].type.tensor_type.shape.dim[0].dim_param = draw.choice(NAMES)
    except (ValueError, UnicodeEncodeError):
        graph.name = "g"
    return _pruned(model, place)


@_kind("onnx external data")
def _external(draw: random.Random, place: Path) -> Made:
    """Locations, offsets and lengths that lead nowhere."""
    model = network(draw)
    tensor = draw.choice(list(model.graph.initializer))
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (place / "d.bin").write_bytes(data[: draw.choice([0, 4, len(data), len(data)])])
    location = draw.choice(["d.bin", "d.bin", *NAMES, ".", "..", "d" * 5000, "a/" * 3000, "m.onnx"])
    offset = draw.choice(["0", "0", "-1", "4", str(1 << 62), "x", "", "1e3"])
    length = draw.choice([str(len(data)), str(len(data)), "0", "-5", str(1 << 62), "nan", ""])
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if draw.random() < 0.9:
            tensor.external_data.add(key=key, value=value)
    return _pruned(model, place)


@_kind("onnx functions and bodies")
def _bodies(draw: random.Random, place: Path) -> Made:
    """Local functions that call each other or are missing; bodies of If and Loop, nested."""
    model = network(draw)
    graph = model.graph
    how = draw.randrange(3)
    if how == 0:
        inner = helper.make_node(draw.choice(["F", "Relu", "G"]), ["a"], ["b"], domain="own")
        model.functions.append(
            helper.make_function(
                "own", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
            )
        )  # fmt: skip
        model.opset_import.append(helper.make_opsetid("own", 1))
        graph.node.append(helper.make_node("F", ["y"], ["z"], domain="own"))
    else:
        depth = draw.choice([1, 2, 5, 15, 24])
        body = helper.make_graph(
            [helper.make_node("Relu", ["y"], ["out0"])],
            "b",
            [],
            [helper.make_tensor_value_info("out0", TensorProto.FLOAT, [None] * 2)],
        )
        flat = body
        for k in range(1, depth):
            node = helper.make_node(
                "If",
                ["cond"],
                [f"out{k}"],
                then_branch=body,
                else_branch=flat,
            )
            body = helper.make_graph(
                [node],
                "b",
                [],
                [helper.make_tensor_value_info(f"out{k}", TensorProto.FLOAT, [None] * 2)],
            )
            if body.ByteSize() > 1 << 22:
                break
        graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
        graph.node.append(
            helper.make_node("If", ["cond"], ["z"], then_branch=body, else_branch=body)
        )
    graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 2))
    return _pruned(model, place)


@_kind("onnx long chains")
def _chains(draw: random.Random, place: Path) -> Made:
    """Up to 1e5 nodes one after the other."""
    model = network(draw)
    graph = model.graph
    count = draw.choice([100, 1000, 10000, 100000]) if draw.random() < 0.3 else 300
    kinds = draw.choice([["Relu"], ["Neg", "Relu"], ["Identity"], ["Sigmoid", "Neg"]])
    name = "y"
    for k in range(count):
        graph.node.append(helper.make_node(kinds[k % len(kinds)], [name], [f"t{k}"]))
        name = f"t{k}"
    graph.output[0].name = name
    return _pruned(model, place)


@_kind("onnx attributes")
def _attributes(draw: random.Random, place: Path) -> Made:
    """Attributes of other types, of absurd values, twice and unknown."""
    model = network(draw)
    node = draw.choice(list(model.graph.node))
    name = draw.choice(
        ["kernel_shape", "pads", "group", "dilations", "transB", "alpha", "auto_pad", "nope"]
    )
    value: Any = draw.choice(
        [0, -1, 1 << 62, 0.5, math.inf, math.nan, "SAME_UPPER", "\0", [], [0], [1, 1], [-3, 9, 9, 9], [1 << 40] * 4]
    )  # fmt: skip
    try:
        node.attribute.append(
            helper.make_attribute(name, value, attr_type=2 if value == [] else None)
        )
    except (ValueError, TypeError, AssertionError):
        node.attribute.append(helper.make_attribute(name, 1))
    return _pruned(model, place)


# -- plans, caches, data ---------------------------------------------------------------------------


def _garbage(draw: random.Random, depth: int = 0) -> Any:
    flat: list[Any] = [
        None, True, 0, -1, 1 << 62, 1e400, -1e400, math.nan, "", "x", "\0", [], {}, [[]], [1, [2, 3]], 0.5,
    ]  # fmt: skip
    if depth > 2 or draw.random() < 0.6:
        return draw.choice(flat)
    if draw.random() < 0.5:
        return [_garbage(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = ["groups", "kept", "name", "size", "within", "version", "members", "x"]
    return {draw.choice(keys): _garbage(draw, depth + 1) for _ in range(draw.randrange(4))}


def _spoilt(draw: random.Random, tree: Any) -> Any:
    """``tree`` with one leaf or branch replaced."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(list(tree))
        if draw.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: _spoilt(draw, tree[key])}
    if isinstance(tree, list) and tree and draw.random() < 0.9:
        i = draw.randrange(len(tree))
        return [*tree[:i], _spoilt(draw, tree[i]), *tree[i + 1 :]]
    return _garbage(draw)


@_kind("plans")
def _plans(draw: random.Random, place: Path) -> Made:
    """Plans with one entry spoilt, or of another kind altogether."""
    model = network(draw)
    plan = irprune.prune(model, ratio=0.5, proof=False).plan
    path = place / "plan.json"
    plan.save(path)
    tree = json.loads(path.read_text(encoding="utf-8"))
    how = draw.random()
    spoilt = _garbage(draw) if how < 0.1 else _spoilt(draw, tree)
    text = json.dumps(spoilt)
    if how > 0.9:
        text = text[: draw.randrange(len(text) + 1)]
    path.write_text(text, encoding="utf-8")
    return _pruned(model, place, "--plan", str(path))


@_kind("calibration folders")
def _calibration(draw: random.Random, place: Path) -> Made:
    """Arrays of other shapes and types, objects, files that are none."""
    folder = place / "data"
    folder.mkdir()
    for k in range(draw.randrange(4)):
        how = draw.randrange(6)
        file = folder / f"{k}.{draw.choice(['npy', 'npz', 'png', 'jpg', 'txt', 'bin'])}"
        if how == 0:
            file.write_bytes(draw.randbytes(draw.randrange(200)))
        elif how == 1:
            np.save(
                folder / f"{k}.npy", np.zeros([draw.randrange(4) for _ in range(draw.randrange(5))])
            )
        elif how == 2:
            np.save(folder / f"{k}.npy", np.array([{}], dtype=object), allow_pickle=True)
        elif how == 3:
            np.savez(
                folder / f"{k}.npz",
                x=np.full((1, 6), draw.choice([np.nan, np.inf, 1.0]), np.float32),
            )
        elif how == 4:
            np.save(
                folder / f"{k}.npy",
                np.random.default_rng(k).standard_normal((1, 3, 8, 8)).astype("f4"),
            )
        else:
            (folder / f"{k}.npy").mkdir()
    return _pruned(network(draw), place, "--calibration", str(folder), "--importance", "wanda")


@_kind("inputs")
def _inputs(draw: random.Random, place: Path) -> Made:
    """--input with shapes, types and files that do not fit."""
    given = draw.choice(
        ["1x6", "0x6", "-1x6", f"{10**9}x6", f"{1 << 62}x6", "6", "1x6:f64", "x=1x6", "q=1x6", "1x6:zz", "", "x",
         "1x3x8x8", "a.npy", "x=a.npy", "1e9x6", "inf", "1x6x", "x=", "=1x6"]
    )  # fmt: skip
    np.save(place / "a.npy", np.zeros([draw.randrange(3) for _ in range(draw.randrange(4))]))
    text = given.replace("a.npy", str(place / "a.npy"))
    return _pruned(network(draw), place, "--input", text)


@_kind("options")
def _options(draw: random.Random, place: Path) -> Made:
    """Options with values out of every range."""
    name = draw.choice(
        [
            "--ratio",
            "--macs",
            "--params",
            "--round-to",
            "--importance",
            "--scope",
            "--keep",
            "--device",
        ]
    )
    value = draw.choice(
        ["nan", "inf", "-1", "0", "1", "2", "1e-9", "", "x", "\u202e", "999999999999", "0.5"]
    )
    return _pruned(network(draw), place, f"{name}={value}")


# -- files of torch --------------------------------------------------------------------------------


def _damaged(draw: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice([1, 4, 32])):
        at = draw.randrange(len(out))
        if draw.random() < 0.7:
            out[at] = draw.randrange(256)
        else:
            del out[at:]
            out += b"\0"
    return bytes(out)


@_kind("pt2")
def _program(draw: random.Random, place: Path) -> Made:
    """Exported programs: bytes changed, members of the archive changed or left out."""
    data = _example_program()
    path = place / "m.pt2"
    if draw.random() < 0.4:
        path.write_bytes(_damaged(draw, data))
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
            names = old.namelist()
            chosen = draw.choice(names)
            for name in names:
                content = old.read(name)
                if name == chosen:
                    if draw.random() < 0.3:
                        continue
                    content = _spoilt_member(draw, content)
                new.writestr(name, content)
    return Made(("prune", str(path), "-o", str(place / "out.json")), None)


def _spoilt_member(draw: random.Random, content: bytes) -> bytes:
    try:
        tree = json.loads(content)
    except ValueError:
        return _damaged(draw, content or b"\0")
    return json.dumps(_spoilt(draw, tree)).encode()


_PROGRAM: list[bytes] = []


def _example_program() -> bytes:
    if not _PROGRAM:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ).eval()
        held = io.BytesIO()
        torch.export.save(torch.export.export(net, (torch.randn(2, 6),)), held)
        _PROGRAM.append(held.getvalue())
    return _PROGRAM[0]


@_kind("folders")
def _folder(draw: random.Random, place: Path) -> Made:
    """Folders of transformers and of irprune, with files missing, damaged or of others."""
    folder = place / "f"
    folder.mkdir()
    config = {
        "model_type": draw.choice(["bert", "gpt2", "", "nope", "../x"]),
        "hidden_size": draw.choice([8, -1, 1 << 40, "x", None]),
    }
    for name, content in {
        "config.json": json.dumps(config if draw.random() < 0.8 else _garbage(draw)),
        "model.safetensors": draw.randbytes(draw.choice([0, 7, 8, 100])).decode("latin-1"),
        "model.py": "raise SystemExit(3)",
        "model.py.sha256": "0" * 64,
        "weights.safetensors": "".join(draw.choice(string.printable) for _ in range(64)),
        "model.onnx": "x",
        "plan.json": "{",
    }.items():
        if draw.random() < 0.6:
            (folder / name).write_text(content, encoding="latin-1")
    where = draw.choice([f"hf:{folder}", str(folder)])
    return Made(("prune", where, "-o", str(place / "out.json")), None)


@_kind("caches")
def _cache(draw: random.Random, place: Path) -> Made:
    """Latency tables that are damaged."""
    path = place / "table.json"
    path.write_text(json.dumps(_garbage(draw)), encoding="utf-8")
    return _pruned(network(draw), place, "--latency", "0.8", "--latency-table", str(path))


@_kind("places")
def _places(draw: random.Random, place: Path) -> Made:
    """Outputs that cannot be written."""
    made = _pruned(network(draw), place)
    locked = place / "locked"
    locked.mkdir(mode=0o500)
    (place / "file").write_text("x")
    out = draw.choice(
        [str(place), str(place / "file" / "out.onnx"), "/dev/full/x.onnx", "/proc/x.onnx", str(place / ("x" * 300 + ".onnx")),
         str(place / "missing" / "deep" / "out.onnx"), "/dev/null", ""]
    )  # fmt: skip
    return Made((*made.argv[:2], "-o", out), None)
