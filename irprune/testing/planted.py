"""Faults that are planted by hand, each in a model of its own: in what is captured, kept, emitted,
read, written, in gradients, in training mode and in repairs.

A work (``irprune.testing.works``) runs once without the fault and once with it
(``irprune.testing.plants``): a check fails, nothing comes out, the numbers are the same, or they
are not and nothing saw it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

import irprune
import irprune.api.calls as calls
import irprune.emit.onnx.file as writing
import irprune.emit.torch.module as emission
import irprune.emit.torch.saved as saved
import irprune.frontend.onnx.file as reading
import irprune.passes.repair_bias as repair_bias
import irprune.passes.repair_least_squares as least_squares
import irprune.passes.slice as slicing
from irprune.errors import CheckFailed
from irprune.ir.graph import Graph
from irprune.ir.selection import Selection
from irprune.testing.plants import (
    NotPlanted,
    Plant,
    attribute,
    loader,
    message,
    source,
    spelled,
    wrapped,
)
from irprune.testing.works import (
    Array,
    Found,
    Work,
    file,
    file_as_module,
    file_with_data,
    module,
    program,
    repaired,
)

__all__ = ["FAULTS", "Fault", "seen"]


@dataclass(frozen=True)
class Fault:
    """A fault: ``kind`` groups it in tables, ``work`` is what it may show in, ``plant`` a context
    in which it is there."""

    name: str
    kind: str
    work: Work
    plant: Plant


def seen(fault: Fault) -> tuple[str, str]:
    """What sees ``fault``, in the words of ``irprune.testing.mutants.Seen``, and what it says."""
    right = _right(fault.work)
    with fault.plant():
        try:
            wrong = fault.work()
        except CheckFailed as failed:
            return "proof", str(failed)
        except NotPlanted:
            raise
        except Exception as failed:  # whatever it is, no wrong model came out
            return "refused", f"{type(failed).__name__}: {failed}"
    same = right.keys() == wrong.keys() and all(
        np.array_equal(a, wrong[k], equal_nan=a.dtype.kind == "f") for k, a in right.items()
    )
    if same:
        return "harmless", "the same"
    # What was read wrong and cut less for it: onnxruntime says of the file itself that it is right
    if fault.kind == "reading" and bool(np.all(wrong.get("confirmed", False))):
        return "harmless", "confirmed by the original"
    return "nothing", "other numbers came out"


@cache
def _right(work: Work) -> Found:
    """What ``work`` gives where nothing is planted."""
    return work()


def _index(dim: int, change: Callable[[Array, int], Array], only: str = "") -> Plant:
    """The kept indices of a weight along ``dim`` changed, of weights whose name holds ``only``."""

    def wrong(real: Any, value: Any, kept: Selection) -> Any:
        found = real(value, kept)
        if only in value.name and len(found) > dim:
            index = found[dim]
            if index is not None and index.ndim == 1:
                found[dim] = change(index, int(value.shape[dim]))
        return found

    return wrapped(slicing, "kept_indices", wrong)


def _swapped(index: Array, size: int) -> Array:
    """A kept index in the place of which a dropped one stands."""
    gone = np.setdiff1d(np.arange(size), index)
    return np.sort(np.append(index[1:], gone[:1]))


KEPT = (
    ("the kept inputs of a layer in reverse", _index(1, lambda i, n: i[::-1].copy())),
    ("the kept outputs of all layers in reverse", _index(0, lambda i, n: i[::-1].copy())),
    ("a dropped output in the place of a kept one", _index(0, _swapped, "a.weight")),
    ("a dropped input in the place of a kept one", _index(1, _swapped, "b.weight")),
    ("a dropped bias in the place of a kept one", _index(0, _swapped, "a.bias")),
    ("a dropped mean in the place of a kept one", _index(0, _swapped, "norm.running_mean")),
    ("a dropped variance in the place of a kept one", _index(0, _swapped, "norm.running_var")),
    ("a dropped scale in the place of a kept one", _index(0, _swapped, "norm.weight")),
    ("a dropped filter of a depthwise layer", _index(0, _swapped, "dw.weight")),
    ("indices shifted by one", _index(0, lambda i, n: (i + 1) % n)),
    ("one index less in a bias", _index(0, lambda i, n: i[1:], "a.bias")),
    ("one index less everywhere", _index(0, lambda i, n: i[1:])),
    ("the first indices, not the kept ones", _index(1, lambda i, n: np.arange(len(i)))),
    (
        "a weight left as it was",
        _index(1, lambda i, n: np.arange(n), "b.weight"),
    ),
    (
        "the rows of a block for all blocks",
        wrapped(
            slicing,
            "take",
            lambda real, array, many: real(
                array,
                [
                    i if i is None or i.ndim == 1 else np.broadcast_to(i[:1], i.shape).copy()
                    for i in many
                ],
            ),
        ),
    ),
    (
        "a choice counted with one less",
        wrapped(
            Selection,
            "size",
            lambda real, self, axis: real(self, axis) - int(self.changes(axis)),
        ),
    ),
)

EMITTED = (
    ("another activation", source("F.relu(batch_norm)", "F.gelu(batch_norm)")),
    ("another slope", source("leaky_relu(conv2d_2, 0.2)", "leaky_relu(conv2d_2, 0.1)")),
    ("another eps of a batch norm", source("BatchNorm2d(8, eps=0.01", "BatchNorm2d(8, eps=0.001")),
    ("another eps of a layer norm", source("LayerNorm([8], eps=0.01)", "LayerNorm([8])")),
    ("a stride forgotten", source("3, stride=2, padding=1", "3, padding=1")),
    ("a padding forgotten", source("3, padding=1, groups=16", "3, groups=16")),
    ("a sum in the place of a difference", source("x - self.mean", "x + self.mean")),
    ("operands swapped", source("x - self.mean", "self.mean - x")),
    ("a softmax along another dimension", source(".softmax(-1)", ".softmax(-2)")),
    ("a transpose forgotten", source("(1, 2); del matmul_1", "(2, 3); del matmul_1")),
    ("a scale forgotten", source("self.scale * linear_1", "linear_1")),
    ("a number rounded", source("0.3535533905932738", "0.353")),
    ("a bias forgotten", source("nn.Linear(8, 4)", "nn.Linear(8, 4, bias=False)")),
    ("a mean along another dimension", source("add_2.mean([1])", "add_2.mean([2])")),
    ("an unbiased deviation made biased", source("std([-1])", "std([-1], unbiased=False)")),
    ("results swapped", source("{'scores': add_4, 'map': std}", "{'scores': std, 'map': add_4}")),
    (
        "results in another order",
        source("{'scores': add_4, 'map': std}", "{'map': std, 'scores': add_4}"),
    ),
    (
        "a norm applied twice",
        source("F.relu(batch_norm)", "F.relu(self.norm(batch_norm))"),
    ),
    ("a residual forgotten", source("relu + conv2d_3", "conv2d_3")),
)

TRAINED = (
    ("a stopped gradient forgotten", source(".detach()", ".clone()")),
    ("a stop where none was", source("self.head(mean_2)", "self.head(mean_2.detach())")),
    ("a frozen parameter that learns", source(", requires_grad=False", "")),
    ("a parameter that does not learn", source("torch.empty([8])))", "torch.empty([8]), requires_grad=False))")),
    ("tied weights apart", source("put(self, 'tied.weight', self.up.weight)", "pass")),
    ("another momentum", source("momentum=0.2", "momentum=0.1")),
    ("another rate of dropout", source("nn.Dropout(0.3)", "nn.Dropout(0.1)")),
    ("dropout that never drops", source("self.drop(add_1)", "self.drop.eval()(add_1)")),
    ("a norm that never learns its statistics", source("self.norm(conv2d)", "self.norm.eval()(conv2d)")),
    ("a buffer that is saved and was not", source("torch.empty([4]), persistent=False)", "torch.empty([4]))")),
    ("a buffer that is not saved and was", source("torch.empty([3, 1, 1]))", "torch.empty([3, 1, 1]), persistent=False)")),
)  # fmt: skip


def _two_swapped(model: onnx.ModelProto) -> None:
    """A mean and a scale swapped where a norm reads them."""
    node = next(n for n in model.graph.node if n.output[0] == "n0")
    node.input[1], node.input[3] = node.input[3], node.input[1]


def _outputs_swapped(model: onnx.ModelProto) -> None:
    a, b = model.graph.output
    a.name, b.name = b.name, a.name


def _inputs_swapped(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.output[0] == "z")
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _without(kind: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == kind)
        node.op_type = "Identity"
        del node.input[1:]
        del node.attribute[:]

    return change


FILES = (
    ("alpha forgotten", attribute("LeakyRelu", "alpha", None)),
    ("epsilon forgotten", attribute("BatchNormalization", "epsilon", None)),
    ("groups forgotten", attribute("Conv", "group", None)),
    ("strides forgotten", attribute("Conv", "strides", None)),
    ("a softmax along another axis", attribute("Softmax", "axis", 1)),
    ("another order of dimensions", attribute("Transpose", "perm", [1, 2, 0])),
    ("transA forgotten", attribute("Gemm", "transA", None)),
    ("keepdims forgotten", attribute("ReduceMean", "keepdims", None)),
    ("a sigmoid forgotten", message(_without("Sigmoid"))),
    ("a norm forgotten", message(_without("BatchNormalization"))),
    ("tensors swapped", message(_two_swapped)),
    ("results swapped", message(_outputs_swapped)),
    ("operands swapped", message(_inputs_swapped)),
)


def _put_late(real: Any, tensor: TensorProto, load: Any, file: Any) -> None:
    real(tensor, load, file)
    for entry in tensor.external_data:
        if entry.key == "offset" and int(entry.value):
            entry.value = str(int(entry.value) - 64)


def _put_short(real: Any, tensor: TensorProto, load: Any, file: Any) -> None:
    real(tensor, load, file)
    for entry in tensor.external_data:
        if entry.key == "length":
            entry.value = str(int(entry.value) - 4)


def _pieces(real: Any, model: onnx.ModelProto, data: Any) -> Any:
    """The message as it is written, with the last bytes of a tensor in front."""
    for piece in real(model, data):
        if isinstance(piece, bytes) or len(piece) < 1000:
            yield piece
        else:
            held = bytes(piece)
            yield held[-4:] + held[:-4]


WRITTEN = (
    ("an offset that is too small", file_with_data, wrapped(writing, "_put_outside", _put_late)),
    ("a length that is too small", file_with_data, wrapped(writing, "_put_outside", _put_short)),
    ("the bytes of a tensor moved", file, wrapped(writing, "_pieces", _pieces)),
    (
        "the bytes of a tensor moved, beside the file",
        file_with_data,
        wrapped(
            writing,
            "_put_outside",
            lambda real, t, load, f: real(t, lambda: np.roll(load(), 1), f),
        ),
    ),
    (
        "a tensor under another name",
        program,
        wrapped(saved, "save_file", lambda real, t, p: real(_renamed(t), p)),
    ),
    (
        "a tensor in another type",
        program,
        wrapped(
            saved,
            "save_file",
            lambda real, t, p: real({k: v.half().float() for k, v in t.items()}, p),
        ),
    ),
    ("a loader that reads late", program, loader("[8 + size:]", "[12 + size:]")),
    ("a loader that reads transposed", program, loader(".reshape(entry", ".flip(0).reshape(entry")),
    (
        "a program of other weights",
        program,
        wrapped(saved, "open_program", lambda real, module, *more: real(_other(module), *more)),
    ),
)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    made = dict(tensors)
    a, b = "norm.running_mean", "norm.running_var"
    made[a], made[b] = tensors[b], tensors[a]
    return made


def _other(module: nn.Module) -> nn.Module:
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    made = emission.module_from_source(
        emission.source_of(module), {k: v.detach().clone() for k, v in held.items()}
    )
    with torch.no_grad():
        made.get_parameter("head.bias").add_(0.1)
    return made


def _place_late(real: Any, tensor: TensorProto) -> Any:
    place, offset, length = real(tensor)
    return place, offset - 4 if offset > 4 and place else offset, length


def _reversed(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda attrs: {**attrs, name: list(reversed(attrs[name]))} if name in attrs else attrs


def _gone(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda attrs: {k: v for k, v in attrs.items() if k != name}


READ = (
    ("an offset beside the file that is too small", file_with_data, wrapped(reading, "_place", _place_late)),
    ("an offset in the file that is too small", file, wrapped(reading, "_place", _place_late)),
    (
        "bytes in another order",
        file,
        wrapped(reading, "_read", lambda real, f, o, n: np.roll(real(f, o, n), 4)),
    ),
    (
        "the tensors of a message moved",
        file,
        wrapped(reading, "_of_message", lambda real, t: np.roll(real(t), 1)),
    ),
    ("an order of dimensions reversed", file, spelled("Transpose", _reversed("perm"))),
    ("groups not read", file, spelled("Conv", _gone("group"))),
    ("strides not read", file, spelled("Conv", _gone("strides"))),
    ("transA not read", file, spelled("Gemm", _gone("transA"))),
    ("the axis of a softmax not read", file, spelled("Softmax", _gone("axis"))),
    ("the axes of a mean not read", file, spelled("ReduceMean", _gone("axes"))),
    ("alpha not read", file_as_module, spelled("LeakyRelu", _gone("alpha"))),
    ("epsilon not read", file_as_module, spelled("BatchNormalization", _gone("epsilon"))),
    ("strides not read, in a module", file_as_module, spelled("Conv", _gone("strides"))),
)  # fmt: skip


def _captured(change: Callable[[str, dict[str, Any]], None]) -> Plant:
    """The attributes of captured calls changed."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        real = irprune.capture

        def wrong(*args: Any, **kwargs: Any) -> Graph:
            graph = real(*args, **kwargs)
            before = str(graph)
            for node in graph.nodes:
                change(node.op, node.attrs)
            if str(graph) == before:
                raise NotPlanted("capture")
            return graph

        with mock.patch.object(calls, "capture", wrong):
            yield

    return plant


def _set(op: str, name: str, value: Any) -> Plant:
    def change(kind: str, attrs: dict[str, Any]) -> None:
        if kind == op and name in attrs:
            attrs[name] = value

    return _captured(change)


CAPTURED = (
    ("another slope", _set("leaky_relu", "negative_slope", 0.1)),
    ("another eps of a batch norm", _set("batch_norm", "eps", 0.001)),
    ("another eps of a layer norm", _set("layer_norm", "eps", 0.001)),
    ("a softmax along another dimension", _set("softmax", "dim", -2)),
    ("a factor of a sum", _set("add", "alpha", 2)),
    ("another number", _set("mul", "other", 0.3)),
)


def _scaled(by: float) -> Callable[..., Any]:
    def change(real: Any, *args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        return tuple(m if m is None else m * by for m in made)

    return change


REPAIRED = (
    (
        "a solution of the wrong sign",
        repaired("least_squares"),
        wrapped(least_squares.Fit, "solve", _scaled(-1.0)),
    ),
    (
        "moments of the one for the other",
        repaired("bias"),
        wrapped(repair_bias, "_moments", lambda real, *args: tuple(reversed(real(*args)))),
    ),
    (
        "moments of the one for the other, scaled",
        repaired("affine"),
        wrapped(repair_bias, "_moments", lambda real, *args: tuple(reversed(real(*args)))),
    ),
)


def _faults() -> Iterator[Fault]:
    for name, plant in CAPTURED:
        yield Fault(name, "capture", module, plant)
    for name, plant in KEPT:
        yield Fault(name, "kept order and counts", module, plant)
    for name, plant in EMITTED:
        yield Fault(name, "emission of a module", module, plant)
    for name, plant in TRAINED:
        yield Fault(name, "gradients and training mode", module, plant)
    for name, plant in FILES:
        yield Fault(name, "emission of a file", file, plant)
    for name, work, plant in WRITTEN:
        yield Fault(name, "writing", work, plant)
    for name, work, plant in READ:
        yield Fault(name, "reading", work, plant)
    for name, work, plant in REPAIRED:
        yield Fault(name, "repairs", work, plant)


FAULTS: tuple[Fault, ...] = tuple(_faults())
