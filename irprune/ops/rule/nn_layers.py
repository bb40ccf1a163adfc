"""The layers of ``torch.nn`` that operators are calls of, and what they are made with.

A layer is told by what the node computes and the shapes of its parameters. What its parameters are
called is what ``state_dict`` has."""

from __future__ import annotations

from typing import Any

from irprune.ir.graph import Node, Weight
from irprune.ops.traits import NnLayer, NnMade, Options

__all__ = [
    "BATCH_NORM",
    "CONV",
    "CONV_TRANSPOSE",
    "EMBEDDING",
    "GROUP_NORM",
    "LAYER_NORM",
    "LINEAR",
    "RMS_NORM",
    "recurrent",
]

Held = dict[str, Weight]
Made = NnMade | None


def _linear(node: Node, held: Held) -> Made:
    w = held["weight"]
    return (
        NnMade("Linear", (w.shape[1], w.shape[0]), _no_bias("bias" in held))
        if w.rank == 2
        else None
    )


def _conv(node: Node, held: Held) -> Made:
    w, a = held["weight"], node.attrs
    n = w.rank - 2
    if not 1 <= n <= 3 or a.get("transposed"):
        return None
    sizes = (w.shape[1] * a["groups"], w.shape[0], _kernel(w))
    return NnMade(f"Conv{n}d", sizes, _geometry(a) + _no_bias("bias" in held))


def _conv_transpose(node: Node, held: Held) -> Made:
    w, a = held["weight"], node.attrs
    n = w.rank - 2
    if not 1 <= n <= 3:
        return None
    sizes = (w.shape[0], w.shape[1] * a["groups"], _kernel(w))
    out = _extra("output_padding", a["output_padding"], 0)
    return NnMade(f"ConvTranspose{n}d", sizes, _geometry(a) + out + _no_bias("bias" in held))


def _layer_norm(node: Node, held: Held) -> Made:
    w, a = held["weight"], node.attrs
    if list(a["normalized_shape"]) != list(w.shape):
        return None
    options = _extra("eps", a["eps"], 1e-5) + _no_bias("bias" in held)
    return NnMade("LayerNorm", (list(w.shape),), options)


def _group_norm(node: Node, held: Held) -> Made:
    if "bias" not in held:
        return None
    a = node.attrs
    sizes = (a["num_groups"], held["weight"].shape[0])
    return NnMade("GroupNorm", sizes, _extra("eps", a["eps"], 1e-5))


def _rms_norm(node: Node, held: Held) -> Made:
    w, a = held["weight"], node.attrs
    if list(a["normalized_shape"]) != list(w.shape):
        return None
    return NnMade("RMSNorm", (list(w.shape),), _extra("eps", a["eps"], None))


def _embedding(node: Node, held: Held) -> Made:
    w, a = held["weight"], node.attrs
    if w.rank != 2:
        return None
    pad = a.get("padding_idx", -1)
    extra: Options = () if pad is None or pad < 0 else (("padding_idx", pad),)
    extra += tuple((k, True) for k in ("scale_grad_by_freq", "sparse") if a.get(k))
    return NnMade("Embedding", (w.shape[0], w.shape[1]), extra)


def _batch_norm(node: Node, held: Held) -> Made:
    affine = "weight" in held
    if "running_var" not in held or node.attrs.get("training") or affine != ("bias" in held):
        return None
    kind = {4: "2d", 5: "3d"}.get(node.operand(0).rank, "1d")
    options = _extra("eps", node.attrs["eps"], 1e-5)
    options += _extra("momentum", node.attrs["momentum"], 0.1)
    options += () if affine else (("affine", False),)
    return NnMade(f"BatchNorm{kind}", (held["running_mean"].shape[0],), options)


LINEAR = NnLayer(("", "weight", "bias"), _linear)
CONV = NnLayer(("", "weight", "bias"), _conv)
CONV_TRANSPOSE = NnLayer(("", "weight", "bias"), _conv_transpose)
BATCH_NORM = NnLayer(
    ("", "weight", "bias", "running_mean", "running_var"), _batch_norm, "running_mean"
)
LAYER_NORM = NnLayer(("", "weight", "bias"), _layer_norm)
GROUP_NORM = NnLayer(("", "weight", "bias"), _group_norm)
RMS_NORM = NnLayer(("", "weight"), _rms_norm)
EMBEDDING = NnLayer(("weight", ""), _embedding)


# -- recurrence ------------------------------------------------------------------------------------


def recurrent(kind: str, gates: int, states: int, extra: Options = ()) -> NnLayer:
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, whose parameters lie under its own names in the shapes
    that it makes."""

    def state(node: Node) -> tuple[str, ...]:
        a = node.attrs
        ways = 2 if a["bidirectional"] else 1
        each, rest = divmod(len(node.inputs) - 1 - states, a["num_layers"] * ways)
        parts = {
            2: ("weight_ih", "weight_hh"),
            3: ("weight_ih", "weight_hh", "weight_hr"),
            4: ("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
            5: ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
        }.get(each)
        if a["train"] or parts is None or rest:
            return ()
        names = [
            f"{p}_l{k}{'_reverse' * way}"
            for k in range(a["num_layers"])
            for way in range(ways)
            for p in parts
        ]
        return ("", *[""] * states, *names)

    def made(node: Node, held: Held) -> Made:
        a = node.attrs
        ways = 2 if a["bidirectional"] else 1
        if len(held) != len(node.inputs) - 1 - states:
            return None
        shapes = {n: tuple(v.shape) for n, v in held.items()}
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
        return NnMade(kind, (wide, hidden), options)

    return NnLayer(state, made, "weight_ih_l0")


# -- arguments -------------------------------------------------------------------------------------


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
