"""Which nodes are calls of a standard ``nn`` layer, and how that layer is written.

A layer is recognised by what the node computes and by the names of the weights it reads, never by
the user's class: a subclass of ``nn.Linear`` that computes a plain product comes out as
``nn.Linear``. The exceptions are layers that do something else in training (batch norm, dropout):
there the user's module must be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from irprune.emit.torch.code import Code, call, literal, tuple_of
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ops.registry import aten_target

__all__ = ["Layer", "layer_for"]

Options = tuple[tuple[str, Any], ...]  # keyword arguments of a layer's class


@dataclass(frozen=True)
class Layer:
    """A layer that hangs at ``owner``, an instance of ``torch.nn.kind`` made with ``args`` and
    ``options``; ``state`` pairs its own state names with weights of the graph."""

    owner: str
    kind: str
    args: tuple[Any, ...]
    options: Options
    state: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> Code:
        """The call that makes the layer."""
        return call(
            f"nn.{self.kind}", map(_plural, self.args), {k: _plural(v) for k, v in self.options}
        )


def _plural(x: Any) -> Any:
    return tuple_of(map(literal, x)) if isinstance(x, tuple) else x


_STATE = {
    "linear": ("weight", "bias"),
    "conv": ("weight", "bias"),
    "conv_transpose": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_var"),
    "layer_norm": ("weight", "bias"),
    "group_norm": ("weight", "bias"),
    "rms_norm": ("weight",),
    "embedding": ("weight",),
}
# what functionalisation makes of a batch norm
_INFERENCE = "aten._native_batch_norm_legit_no_training.default"
_RECURRENT: dict[str, tuple[str, int, Options]] = {
    "aten.lstm.input": ("LSTM", 4, ()),
    "aten.gru.input": ("GRU", 3, ()),
    "aten.rnn_tanh.input": ("RNN", 1, ()),
    "aten.rnn_relu.input": ("RNN", 1, (("nonlinearity", "relu"),)),
}


def layer_for(node: Node, graph: Graph) -> Layer | None:
    """The layer that ``node`` is a call of, or None."""
    target = aten_target(node)
    if target in _RECURRENT:
        return _recurrent(node, target)
    if node.op == "dropout":
        return _dropout(node, graph)
    names = _STATE.get("batch_norm" if target == _INFERENCE else node.op)
    if names is None or (target == _INFERENCE and any(v.users for v in node.outputs[1:])):
        return None
    held = [node.inputs[0]] if node.op == "embedding" else node.inputs[1:]
    given = [(name, value) for name, value in zip(names, held, strict=False) if value is not None]
    owner = _owner(given, node.origin.scope)
    if owner is None:
        return None
    found = {name: value for name, value in given if isinstance(value, Weight)}
    made = _made(node, found, owner, graph)
    return (
        None if made is None else Layer(owner, *made, tuple((k, v.name) for k, v in found.items()))
    )


def _owner(given: Sequence[tuple[str, Value]], scope: str) -> str | None:
    """The module that holds every weight in ``given`` under its layer's own name; the one the node
    ran in where there are several."""
    places: list[str] | None = None
    for name, value in given:
        if not isinstance(value, Weight) or value.kind == "constant":
            return None
        own = [
            x.rpartition(".")[0]
            for x in (value.name, *value.aliases)
            if x.rpartition(".")[2] == name and "." in x
        ]
        places = own if places is None else [x for x in places if x in own]
    if not places:
        return None
    return scope if scope in places else places[0]


_Made = tuple[str, tuple[Any, ...], Options]  # class, arguments, options


def _made(node: Node, found: dict[str, Weight], owner: str, graph: Graph) -> _Made | None:
    a = node.attrs
    bias = _no_bias("bias" in found)
    if "running_mean" in found:
        return _batch_norm(node, found, owner, graph)
    if "weight" not in found:
        return None
    w = found["weight"]
    n = w.rank - 2
    if node.op == "linear" and w.rank == 2:
        return "Linear", (w.shape[1], w.shape[0]), bias
    if node.op == "conv" and 1 <= n <= 3:
        sizes = (w.shape[1] * a["groups"], w.shape[0], _kernel(w))
        return f"Conv{n}d", sizes, _geometry(a) + bias
    if node.op == "conv_transpose" and 1 <= n <= 3:
        sizes = (w.shape[0], w.shape[1] * a["groups"], _kernel(w))
        out = _extra("output_padding", a["output_padding"], 0)
        return f"ConvTranspose{n}d", sizes, _geometry(a) + out + bias
    if node.op == "layer_norm" and list(a["normalized_shape"]) == list(w.shape):
        return "LayerNorm", (list(w.shape),), _extra("eps", a["eps"], 1e-5) + bias
    if node.op == "group_norm" and not bias:
        return "GroupNorm", (a["num_groups"], w.shape[0]), _extra("eps", a["eps"], 1e-5)
    if node.op == "rms_norm" and list(a["normalized_shape"]) == list(w.shape):
        return "RMSNorm", (list(w.shape),), _extra("eps", a["eps"], None)
    if node.op == "embedding" and w.rank == 2:
        pad = a.get("padding_idx", -1)
        extra: Options = () if pad is None or pad < 0 else (("padding_idx", pad),)
        extra += tuple((k, True) for k in ("scale_grad_by_freq", "sparse") if a.get(k))
        return "Embedding", (w.shape[0], w.shape[1]), extra
    return None


def _batch_norm(node: Node, found: dict[str, Weight], owner: str, graph: Graph) -> _Made | None:
    """Only a module that counts its batches updates its statistics in training as
    ``nn.BatchNorm2d`` does."""
    state = graph.structure.state if graph.structure is not None else None
    affine = "weight" in found
    if "running_var" not in found or node.attrs.get("training") or affine != ("bias" in found):
        return None
    if state is not None and f"{owner}.num_batches_tracked" not in state:
        return None
    momentum = node.attrs["momentum"]
    if graph.structure is not None and graph.structure.module is not None:
        momentum = graph.structure.module.get_submodule(owner).momentum
    kind = {4: "2d", 5: "3d"}.get(node.operand(0).rank, "1d")
    options = _extra("eps", node.attrs["eps"], 1e-5) + _extra("momentum", momentum, 0.1)
    return (
        f"BatchNorm{kind}",
        (found["running_mean"].shape[0],),
        options + (() if affine else (("affine", False),)),
    )


def _dropout(node: Node, graph: Graph) -> Layer | None:
    kind = (
        graph.structure.module_types.get(node.origin.scope) if graph.structure is not None else None
    )
    if not node.origin.scope or kind is None or not issubclass(kind, nn.modules.dropout._DropoutNd):
        return None
    name = kind.__name__ if kind.__module__ == nn.Dropout.__module__ else "Dropout"
    return Layer(node.origin.scope, name, (node.attrs["p"],), ())


def _recurrent(node: Node, target: str) -> Layer | None:
    """An ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` whose parameters lie under its own names in the
    shapes it makes."""
    kind, gates, extra = _RECURRENT[target]
    layout = dict(node.origin.layout)
    held = layout.get("params")
    a = node.attrs
    if not isinstance(held, tuple) or a["train"]:
        return None
    weights = [node.inputs[k] for k in held if k is not None]
    ways = 2 if a["bidirectional"] else 1
    each, rest = divmod(len(weights), a["num_layers"] * ways)
    parts = {
        2: ("weight_ih", "weight_hh"),
        3: ("weight_ih", "weight_hh", "weight_hr"),
        4: ("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
        5: ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
    }.get(each)
    if parts is None or rest:
        return None
    names = [
        f"{p}_l{k}{'_reverse' * way}"
        for k in range(a["num_layers"])
        for way in range(ways)
        for p in parts
    ]
    given = [(n, v) for n, v in zip(names, weights, strict=True) if v is not None]
    owner = _owner(given, node.origin.scope)
    if owner is None or len(given) != len(names):
        return None
    shapes = {n: tuple(v.shape) for n, v in given}
    wide, hidden = shapes["weight_ih_l0"][1], shapes["weight_ih_l0"][0] // gates
    projected = shapes["weight_hr_l0"][0] if "weight_hr_l0" in shapes else 0
    real = projected or hidden
    for n, shape in shapes.items():
        first = n.endswith(("_l0", "_l0_reverse"))
        want = {
            "weight_ih": (gates * hidden, wide if first else real * ways),
            "weight_hh": (gates * hidden, real),
            "weight_hr": (projected, hidden),
        }.get(n.split("_l")[0], (gates * hidden,))
        if shape != want:
            return None
    options = (
        _extra("num_layers", a["num_layers"], 1)
        + _no_bias(a["has_biases"])
        + _extra("batch_first", a["batch_first"], False)
        + _extra("dropout", a["dropout"], 0.0)
        + _extra("bidirectional", a["bidirectional"], False)
        + _extra("proj_size", projected, 0)
        + extra
    )
    return Layer(owner, kind, (wide, hidden), options, tuple((n, v.name) for n, v in given))


def _kernel(w: Weight) -> Any:
    return _tuple(w.shape[2:])


def _geometry(a: dict[str, Any]) -> Options:
    """Stride, padding, dilation and groups where they differ from the layer's defaults."""
    out: Options = ()
    for k, plain in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        out += _extra(k, a[k], plain)
    return out


def _tuple(x: Any) -> Any:
    """A list of sizes as a layer shows it: one number where all are equal."""
    if isinstance(x, (list, tuple)):
        return x[0] if len(set(x)) == 1 else tuple(x)
    return x


def _extra(name: str, value: Any, default: Any) -> Options:
    value = _tuple(value)
    return () if value == default else ((name, value),)


def _no_bias(bias: bool) -> Options:
    return () if bias else (("bias", False),)
