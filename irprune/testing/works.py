"""Works that a planted fault may show in: each prunes a small model and uses what comes out, so
that the weights, outputs and gradients it finds, and what another library reads, differ."""

from __future__ import annotations

import runpy
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.errors import CheckFailed
from irprune.run.session import run_session, session

__all__ = [
    "Array",
    "Found",
    "Work",
    "file",
    "file_as_module",
    "file_with_data",
    "made_file",
    "module",
    "program",
    "repaired",
    "written",
]

Array = NDArray[Any]
Found = dict[str, Array]
Work = Callable[[], Found]


class Net(nn.Module):
    """A little of everything: a residual, a depthwise convolution, norms, attention, a scale, tied
    weights, a stopped gradient, dropout, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(16, momentum=0.2, eps=1e-2)
        self.a = nn.Conv2d(16, 32, 3, padding=1)
        self.dw = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.b = nn.Conv2d(32, 16, 1)
        self.groups = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.mix = nn.Conv2d(16, 16, 1)
        self.drop = nn.Dropout(0.3)
        self.ln = nn.LayerNorm(16, eps=1e-2)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.rand(16))
        self.mean: Tensor
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.notes: Tensor
        self.register_buffer("notes", torch.rand(4), persistent=False)
        self.up, self.tied = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
        self.tied.weight = self.up.weight
        self.free = nn.Parameter(torch.rand(4), requires_grad=False)
        self.norm.register_buffer("running_mean", torch.rand(16) - 0.5)
        self.norm.register_buffer("running_var", torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.norm(self.stem(x - self.mean)))
        y = y + self.b(F.leaky_relu(self.dw(F.gelu(self.a(y))), 0.2))
        y = y - 0.5 * self.mix(F.silu(self.groups(y)))
        z = self.ln(y.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(z).reshape(z.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        w = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1)
        z = z + self.scale * self.out((w @ v).transpose(1, 2).flatten(2))
        z = self.drop(z) * torch.sigmoid(z.detach().mean(1, keepdim=True))
        z = z + self.tied(torch.tanh(self.up(z)))
        return {"scores": self.head(z.mean(1)) + self.free + self.notes, "map": z.std(-1)}


def _net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randn(2, 3, 8, 8)


def _module_of(module: nn.Module, x: Tensor) -> Found:
    """Weights, outputs, and one step of training of ``module``."""
    out = {f"state {k}": v.detach().numpy().copy() for k, v in module.state_dict().items()}
    for i, y in enumerate(_several(module(x))):
        out[f"output {i}"] = y.detach().numpy()
    names = dict(module.named_parameters(remove_duplicate=False))
    out["trained"] = np.array([k for k, v in names.items() if v.requires_grad])
    out["shared"] = np.array([len({id(v) for v in names.values()}), len(names)])
    module.train()
    torch.manual_seed(1)
    results = _several(module(x))
    total = torch.stack([(y * (i + 1)).pow(2).sum() for i, y in enumerate(results)]).sum()
    learned = {k: v for k, v in names.items() if v.requires_grad}
    found = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
    for k, g in zip(learned, found, strict=True):
        if g is not None:
            out[f"gradient {k}"] = g.numpy()
    for k, v in module.named_buffers():
        out[f"after {k}"] = v.detach().numpy()
    module.eval()
    return out


def _several(made: Any) -> list[Tensor]:
    values = made.values() if isinstance(made, dict) else made
    return [values] if isinstance(values, Tensor) else list(values)


def module() -> Found:
    """A module pruned and proven, its gradients too."""
    model, x = _net()
    pruned = irprune.prune(model, (x,), proof="gradients")
    return _module_of(pruned.module, x)


def program() -> Found:
    """A folder that is written, and what torch and safetensors read in it."""
    model, x = _net()
    with tempfile.TemporaryDirectory() as place:
        folder = irprune.prune(model, (x,)).save(Path(place) / "out")
        out = {
            f"held {k}": v
            for k, v in safetensors.numpy.load_file(folder / "weights.safetensors").items()
        }
        made = torch.export.load(str(folder / "model.pt2")).module()
        for k, v in enumerate(_several(made(x))):
            out[f"program {k}"] = v.detach().numpy()
        space = runpy.run_path(str(folder / "model.py"))
        for k, v in enumerate(_several(space["load"]()(x))):
            out[f"source {k}"] = v.detach().numpy()
        feed = {"x": x.numpy()}
        for name, array in run_session(session(folder / "model.onnx", "cpu"), feed).items():
            out[f"onnx {name}"] = array
    return out


def made_file(outside: bool) -> onnx.ModelProto:
    """A convolutional file, with norms, groups, a product and shape arithmetic."""
    numbers = np.random.default_rng(0)
    tensors = []

    def held(name: str, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        array = numbers.uniform(low, high, shape).astype(np.float32)
        tensors.append(numpy_helper.from_array(array, name))
        return name

    for k in ("scale", "bias", "mean"):
        held(f"norm.{k}", 16)
    held("norm.var", 16, low=0.5, high=2.0)
    tensors.append(numpy_helper.from_array(np.array([0, 64, -1]), "shape"))
    node = helper.make_node
    nodes = [
        node("Conv", ["x", held("w0", 16, 3, 3, 3), held("b0", 16)], ["c0"], pads=[1] * 4),
        node(
            "BatchNormalization",
            ["c0", "norm.scale", "norm.bias", "norm.mean", "norm.var"],
            ["n0"],
            epsilon=0.01,
        ),
        node("LeakyRelu", ["n0"], ["r0"], alpha=0.2),
        node(
            "Conv", ["r0", held("w1", 32, 4, 3, 3), held("b1", 32)], ["c1"], pads=[1] * 4, group=4
        ),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", held("w2", 16, 32, 1, 1)], ["c2"]),
        node("Add", ["c2", "r0"], ["a0"]),
        node("Conv", ["a0", held("w3", 64, 16, 3, 3)], ["c3"], strides=[2, 2]),
        node("Sigmoid", ["c3"], ["s0"]),
        node("Reshape", ["s0", "shape"], ["f0"]),
        node("Transpose", ["f0"], ["t0"], perm=[0, 2, 1]),
        node("MatMul", ["t0", held("w4", 64, 32)], ["m0"]),
        node("Softmax", ["m0"], ["p0"], axis=2),
        node("Transpose", ["p0"], ["u0"], perm=[2, 0, 1]),
        node("ReduceMean", ["u0"], ["v0"], axes=[2], keepdims=0),
        node("Gemm", ["v0", held("w5", 32, 10), held("b5", 10)], ["y"], transA=1),
        node("Sub", ["y", held("w6", 10)], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 9, 9])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 10]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 10]),
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if outside:
        for tensor in model.graph.initializer:
            if tensor.name.startswith("w"):
                tensor.doc_string = "outside"
    return model


def written(outside: bool, folder: bool = False) -> Found:
    model = made_file(outside)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "in.onnx"
        if outside:
            onnx.save(
                model,
                str(path),
                save_as_external_data=True,
                location="in.data",
                size_threshold=1000,
            )
        else:
            onnx.save(model, str(path))
        pruned = irprune.prune(str(path))
        second = pruned.report.proof.second_pass if pruned.report.proof is not None else None
        whole = second is not None and second.judge_error is not None and second.judged == 1
        out: Found = {"confirmed": np.array(whole)}
        feed = {"x": np.random.default_rng(1).normal(size=(2, 3, 9, 9)).astype(np.float32)}
        if folder:
            made = pruned.save(Path(place) / "out")
            space = runpy.run_path(str(made / "model.py"))
            for k, v in enumerate(_several(space["load"]()(torch.from_numpy(feed["x"])))):
                out[f"source {k}"] = v.detach().numpy()
            file = made / "model.onnx"
        else:
            file = pruned.onnx(Path(place) / "out.onnx")
        for name, array in run_session(session(file, "cpu"), feed).items():
            out[f"output {name}"] = array
        read = onnx.load(str(file))
        out["names"] = np.array([v.name for v in (*read.graph.input, *read.graph.output)])
        for tensor in read.graph.initializer:
            out[f"held {tensor.name}"] = numpy_helper.to_array(tensor)
    return out


def file() -> Found:
    """A file read, pruned, proven and written."""
    return written(False)


def file_with_data() -> Found:
    """A file whose weights lie beside it."""
    return written(True)


def file_as_module() -> Found:
    """A folder out of a file: a module beside the file."""
    return written(False, folder=True)


@cache
def repaired(*methods: str) -> Work:
    """A work that prunes and repairs; a repair that is taken back was seen by its own check."""

    def work() -> Found:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )
        data = torch.randn(128, 3, 10, 10) + 0.5
        model.train()
        model(data)
        model.eval()
        pruned = irprune.prune(
            model, (data[:4],), calibration=data, repair=methods, importance="magnitude"
        )
        told = pruned.report.repair
        if told is None or told.methods != methods:
            raise CheckFailed(f"the repair is taken back: {told and told.notes}")
        return {k: v.numpy() for k, v in pruned.module.state_dict().items()}

    return work
