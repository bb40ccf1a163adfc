"""The table of element types agrees with onnx, numpy, torch, safetensors and onnxruntime, each
asked itself."""

import numpy as np
import onnx
import pytest
import torch

from irprune.ir.dtype import (
    ELEMENT_TYPES,
    FROM_ONNX,
    computed_type,
    element_type,
    is_float,
    is_half,
    is_integer,
    is_real,
    item_bytes,
    numpy_dtype,
)
from irprune.ops.dtypes import FROM_TORCH, TO_TORCH, torch_attribute
from irprune.run.session import run_type

TYPES = list(ELEMENT_TYPES.values())


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: t.name)
def test_onnx_has_the_same_number_and_the_same_array_type(kind):
    assert onnx.helper.tensor_dtype_to_np_dtype(kind.onnx) == numpy_dtype(kind.name)
    if kind.bits >= 8:
        assert numpy_dtype(kind.name).itemsize == kind.item_bytes == kind.bits // 8


@pytest.mark.parametrize("name", TO_TORCH)
def test_torch_holds_the_same_numbers(name):
    ours, theirs = element_type(name), TO_TORCH[name]
    assert FROM_TORCH[theirs] == name
    assert theirs.itemsize == ours.item_bytes
    assert theirs.is_floating_point == ours.is_float and theirs.is_complex == ours.is_complex
    if ours.is_integer:
        signed = torch.iinfo(theirs).min < 0
        assert ours.kind == ("int" if signed else "uint")


@pytest.mark.parametrize("kind", [t for t in TYPES if t.safetensors], ids=lambda t: t.name)
def test_safetensors_writes_the_same_name(kind, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3, dtype=TO_TORCH[kind.name])}, str(tmp_path / "x"))
    assert f'"dtype":"{kind.safetensors}"'.encode() in (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("name", ["f32", "f64", "f16", "i64", "u8", "bool", "str", "bf16"])
def test_a_session_writes_the_type_so(name):
    import onnxruntime

    value = onnx.helper.make_tensor_value_info("x", ELEMENT_TYPES[name].onnx, [1])
    out = onnx.helper.make_tensor_value_info("y", ELEMENT_TYPES[name].onnx, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out]
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    running = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert run_type(running.get_inputs()[0].type) == name


def test_numbers_and_names_stand_once():
    for field in ("name", "onnx", "array"):
        assert len({getattr(t, field) for t in TYPES}) == len(TYPES)
    assert len(FROM_ONNX) == len(TYPES)


def test_what_kind_of_numbers():
    assert [n for n in ELEMENT_TYPES if is_half(n)] == ["f16", "bf16"]
    assert [n for n in ELEMENT_TYPES if is_real(n)] == ["f64", "f32", "f16", "bf16"]
    assert is_float("f8e5m2") and not is_float("bool") and not is_float("c64")
    assert is_integer("u4") and is_integer("i64") and not is_integer("bool")
    assert item_bytes("u4") == 1 and item_bytes("c128") == 16


def test_what_is_no_element_type():
    assert not is_float("sequence_type") and not is_integer("onnx99")
    assert item_bytes("onnx99") == 4
    with pytest.raises(KeyError):
        numpy_dtype("onnx99")
    assert [computed_type(n) for n in (1, 8, 22, 99)] == ["f32", "", "", ""]


def test_attributes_as_torch_takes_them():
    assert torch_attribute("dtype", "bf16") is torch.bfloat16
    assert torch_attribute("to", "f8e4m3fn") is torch.float8_e4m3fn
    assert torch_attribute("empty", [["i64", [0, 2]]]) == [[torch.int64, [0, 2]]]
    assert torch_attribute("dim", "f32") == "f32" and torch_attribute("dtype", None) is None


def test_arrays_of_a_type_that_numpy_lacks():
    from irprune.ops.arrays import as_tensor

    for name in ("bf16", "f8e4m3fn", "f8e5m2"):
        array = np.array([0.5, -2.0, 1.0], np.float32).astype(numpy_dtype(name))
        tensor = as_tensor(array)
        assert tensor.dtype == TO_TORCH[name]
        assert tensor.float().tolist() == [0.5, -2.0, 1.0]
