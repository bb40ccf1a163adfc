"""Bad files through the command line: one clear line, exit code 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import decorated, info, int64, model_of, node, tensor

import irprune.cli

DAMAGES = [
    ("truncated", "not a complete ONNX file"),
    ("empty", "the file is empty"),
    ("no model", "not a complete ONNX file"),
    ("cycle", "cycle through node 'first'"),
    ("unknown name", "reads 'nowhere', which nothing makes"),
    ("new opset", "opset 999 is newer"),
    ("old opset", "opset 3 is not served"),
    ("unknown rank", "'x' has no known rank"),
    ("missing data", "external data of 'w1' is missing"),
    ("short data", "ends early"),
    ("outside data", "leaves the model's folder"),
    ("linked data", "leaves the model's folder"),
]


def damaged(tmp_path: Path, how: str) -> Path:
    path = tmp_path / "m.onnx"
    model = decorated()
    if how == "cycle":
        model.graph.node[0].input[0] = "r"
    elif how == "unknown name":
        model.graph.node[1].input[0] = "nowhere"
    elif how == "new opset":
        model.opset_import[0].version = 999
    elif how == "old opset":
        model.opset_import[0].version = 3
    elif how == "unknown rank":
        model.graph.input[0].type.tensor_type.ClearField("shape")
    elif how in ("missing data", "short data", "outside data", "linked data"):
        onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
        data = tmp_path / "m.bin"
        if how == "missing data":
            data.unlink()
        elif how == "short data":
            data.write_bytes(data.read_bytes()[:100])
        elif how == "linked data":
            data.rename(tmp_path.parent / "elsewhere.bin")
            data.symlink_to(tmp_path.parent / "elsewhere.bin")
        else:
            model = onnx.load(path, load_external_data=False)
            for t in model.graph.initializer:
                next(e for e in t.external_data if e.key == "location").value = "../m.bin"
            path.write_bytes(model.SerializeToString())
        return path
    whole = model.SerializeToString()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "no model": b"hello there, this is text",
        }.get(how, whole)
    )
    return path


def refused(path: Path, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``prune`` and ``inspect`` leave with 2 and a single line that holds ``says``; no file
    appears."""
    before = {p.name for p in path.parent.iterdir()}
    for command in (
        ["prune", str(path), "-o", str(path.parent / "out.onnx")],
        ["inspect", str(path)],
    ):
        assert irprune.cli.run(command) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("pruning ")]
        assert (
            out == "" and len(lines) == 1 and lines[0].startswith("irprune: ") and says in lines[0]
        ), err
        assert {p.name for p in path.parent.iterdir()} == before


@pytest.mark.parametrize(("how", "says"), DAMAGES)
def test_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    refused(damaged(tmp_path, how), says, capsys)


@pytest.mark.parametrize("place", ["cache", "third", "name"])
def test_data_behind_links_of_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """A model and its data that are links into one folder of blobs are read, as onnxruntime reads
    them; data that lies in a third folder, or is named outside the model's, is refused."""
    blobs, named, third = (tmp_path / name for name in ("blobs", "named", "third"))
    for folder in (blobs, named, third):
        folder.mkdir()
    location = "../blobs/data" if place == "name" else "m.data"
    model = decorated()
    onnx.save(
        model, blobs / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    model = onnx.load(blobs / "m.onnx", load_external_data=False)
    for t in model.graph.initializer:
        next(e for e in t.external_data if e.key == "location").value = location
    (blobs / "aaa").write_bytes(model.SerializeToString())
    (blobs / "m.data").rename((third if place == "third" else blobs) / "data")
    (named / "m.onnx").symlink_to("../blobs/aaa")
    (named / "m.data").symlink_to(f"../{'third' if place == 'third' else 'blobs'}/data")
    if place != "cache":
        refused(named / "m.onnx", "leaves the model's folder", capsys)
        return
    out = tmp_path / "out.onnx"
    assert irprune.cli.run(["prune", str(named / "m.onnx"), "-o", str(out)]) == 0
    assert onnx.load(out).graph.initializer[0].dims[0] == 4
    assert sorted(p.name for p in blobs.iterdir()) == ["aaa", "data", "m.onnx"]


def product(shape: tuple[int, ...]) -> onnx.ModelProto:
    return model_of(
        [node("MatMul", "x w", "y")], [info("x", 2, 6)], [info("y", 2, 4)], [tensor("w", *shape)]
    )


def without_opset() -> onnx.ModelProto:
    model = decorated()
    del model.opset_import[:]
    return model


def without_outputs() -> onnx.ModelProto:
    model = decorated()
    del model.graph.output[:]
    return model


def short_tensor() -> onnx.ModelProto:
    model = product((6, 4))
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:40]
    return model


def short_large_tensor() -> onnx.ModelProto:
    model = product((6, 400))
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:4000]
    return model


def twice() -> onnx.ModelProto:
    return model_of(
        [node("Relu", "x", "h"), node("Sigmoid", "x", "h"), node("Relu", "h", "y")],
        [info("x", 2, 6)],
        [info("y", 2, 6)],
        [],
    )


def added(first: tuple[int, ...], second: tuple[int, ...]) -> onnx.ModelProto:
    return model_of(
        [node("Add", "x w", "y")], [info("x", *first)], [info("y", *first)], [tensor("w", *second)]
    )


def reshaped(*sizes: int, rows: int | str = 2) -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "h"), node("Reshape", "h s", "y")]
    return model_of(
        nodes,
        [info("x", rows, 6)],
        [info("y", *map(abs, sizes))],
        [tensor("w", 6, 8), int64("s", *sizes)],
    )


def convolved(*kernel: int) -> onnx.ModelProto:
    return model_of(
        [node("Conv", "x w", "y")],
        [info("x", 1, 3, 8, 8)],
        [info("y", 1, 4, 6, 6)],
        [tensor("w", *kernel)],
    )


def concatenated() -> onnx.ModelProto:
    nodes = [node("Concat", "x w", "y", axis=0)]
    return model_of(nodes, [info("x", 2, 6)], [info("y", 4, 6)], [tensor("w", 2, 7)])


def of_two_kinds() -> onnx.ModelProto:
    whole = numpy_helper.from_array(np.ones((6, 4), np.int64), "w")
    return model_of([node("MatMul", "x w", "y")], [info("x", 2, 6)], [info("y", 2, 4)], [whole])


def bad_location(key: str, value: str) -> onnx.ModelProto:
    model = product((6, 4))
    t = model.graph.initializer[0]
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for k, v in {"location": "w.bin", key: value}.items():
        t.external_data.add(key=k, value=v)
    return model


def gathered() -> onnx.ModelProto:
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 5])]
    return model_of(nodes, [info("x", 2, 6)], [info("y", 6, 2)], [])


WRONG: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no opset": (without_opset, "does not say which ONNX opset"),
    "no outputs": (without_outputs, "no graph with outputs"),
    "a tensor with too little data": (short_tensor, "'w'"),
    "a large tensor with too little data": (short_large_tensor, "'w'"),
    "a name made twice": (twice, "'h'"),
    "a product that does not fit": (lambda: product((5, 4)), "MatMul"),
    "a sum that does not fit": (lambda: added((2, 6), (2, 5)), "Add"),
    "a reshape to another count": (
        lambda: reshaped(3, 5),
        "(Reshape) cannot run: [2, 8] cannot be reshaped to [3, 5]",
    ),
    "a reshape with no size left": (lambda: reshaped(3, -1), "(Reshape)"),
    "kernels for other channels": (
        lambda: convolved(4, 5, 3, 3),
        "(Conv) cannot run: kernels of shape [4, 5, 3, 3] are for 5 channels",
    ),
    "a kernel of another rank": (lambda: convolved(4, 3, 3), "Conv"),
    "a concatenation that does not fit": (concatenated, "Concat"),
    "operands of two types": (of_two_kinds, "MatMul"),
    "an axis that is not there": (gathered, "Transpose"),
    "an offset that is no number": (lambda: bad_location("offset", "ten"), "no number"),
    "an offset before the file": (lambda: bad_location("offset", "-8"), "ends early"),
    "an absolute place": (
        lambda: bad_location("location", "/etc/passwd"),
        "leaves the model's folder",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    build, says = WRONG[what]
    path = tmp_path / "m.onnx"
    path.write_bytes(build().SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(96))
    refused(path, says, capsys)


def test_what_only_running_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A size that is not known before: the proof runs the model and gives onnxruntime's word."""
    path = tmp_path / "m.onnx"
    path.write_bytes(reshaped(3, 5, rows="n").SerializeToString())
    assert irprune.cli.run(["prune", str(path), "-o", str(tmp_path / "out.onnx")]) == 2
    err = capsys.readouterr().err
    assert (
        "onnxruntime cannot run the model" in err
        and "Reshape" in err
        and len(err.splitlines()) == 2
    )
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_branch_that_never_runs_may_be_wrong(tmp_path: Path) -> None:
    """Exporters write both branches; one of them does not fit."""
    then = helper.make_graph(
        [node("Reshape", "h s", "t")], "then", [], [info("t", 3, 5)], [int64("s", 3, 5)]
    )
    other = helper.make_graph([node("Relu", "h", "e")], "else", [], [info("e", 2, 8)])
    nodes = [
        node("MatMul", "x w", "h"),
        helper.make_node("If", ["no"], ["y"], then_branch=then, else_branch=other),
    ]
    no = numpy_helper.from_array(np.array(False), "no")
    path = tmp_path / "m.onnx"
    path.write_bytes(
        model_of(
            nodes, [info("x", 2, 6)], [info("y", 2, 8)], [tensor("w", 6, 8), no]
        ).SerializeToString()
    )
    assert irprune.cli.run(["inspect", str(path), "--json"]) == 0


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path / "gone.onnx", "no such file", capsys)


def test_every_cut_of_a_file_is_refused_or_read(tmp_path: Path) -> None:
    """However many bytes are missing at the end: an error of ours or a model, never another
    exception."""
    whole = decorated().SerializeToString()
    path = tmp_path / "m.onnx"
    codes = []
    for end in range(1, len(whole), 37):
        path.write_bytes(whole[:end])
        codes.append(irprune.cli.run(["inspect", str(path), "--json"]))
    assert set(codes) <= {0, 2} and codes.count(2) > len(codes) * 0.9


def test_bytes_turned_over_are_refused_or_read(tmp_path: Path) -> None:
    """A damaged byte anywhere in the structure: an error of ours or a model, never another
    exception."""
    whole = bytearray(decorated().SerializeToString())
    random = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for at in random.integers(0, len(whole), 150).tolist():
        broken = bytearray(whole)
        broken[at] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(broken))
        assert irprune.cli.run(["inspect", str(path), "--json"]) in (0, 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["1x5x8x8"], "input 'x' has shape [1, 5, 8, 8], the model takes [n, 3, 8, 8]"),
        (["1x3x8"], "has shape [1, 3, 8]"),
        (["0x3x8x8"], "has shape [0, 3, 8, 8]: no samples, and empty outputs"),
        (["1x3x8x8", "1x3x8x8"], "2 inputs for a model that takes 1"),
    ],
)
def test_an_example_input_that_the_file_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    model = model_of(
        [node("Conv", "x a", "h"), node("Conv", "h b", "y")],
        [info("x", "n", 3, 8, 8)],
        [info("y", "n", 4, 8, 8)],
        [tensor("a", 8, 3, 1, 1), tensor("b", 4, 8, 1, 1)],
    )
    onnx.save(model, tmp_path / "m.onnx")
    call = ["prune", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out")]
    assert irprune.cli.run([*call, *(a for g in given for a in ("--input", g))]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("irprune: ") == 1 and not (tmp_path / "out").exists()
    assert irprune.cli.run([*call, "--input", "2x3x8x8", "--no-proof"]) == 0
