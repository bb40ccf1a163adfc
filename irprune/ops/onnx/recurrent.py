"""LSTM, GRU and RNN as ONNX has them: gates × hidden in one dimension, both directions in
another."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, TensorType
from irprune.ops import layered
from irprune.ops.aten.contraction import zeroed
from irprune.ops.aten.recurrent import recurrent_kinds
from irprune.ops.onnx.importer import (
    Edit,
    OnnxNode,
    Step,
    UnsupportedUse,
    runs,
    sampled,
    spell,
    use,
)
from irprune.ops.registry import Arg, Cut, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.traits import Quantised, Role

op = partial(declare, family="recurrent")

__all__: list[str] = []

_ROLES: tuple[Role, ...] = ("data", "weight", "weight", "bias", "", "state", "state", "weight")
_GATES = {"onnx_lstm": 4, "onnx_gru": 3, "onnx_rnn": 1}


def _rule(axes: Axes, node: Node) -> None:
    """Input features contract; hidden indices stand behind the gates in the weights and pass from
    step to step.

    Both directions drop the same indices: they share the dimension of the results.
    """
    gates, layout = _GATES[node.op], node.attrs["layout"]
    x, w, r = (axes.of(node.operand(i)) for i in range(3))
    hidden, directions = r[2], w[0]
    axes.freeze(directions, "directions")
    if layout:
        batch, time = x[0], x[1]
    else:
        time, batch = x[0], x[1]
    axes.freeze(time, "time steps")
    axes.unify(x[2], w[2])
    for a in (w[1], r[1]):
        _gated(axes, a, gates, hidden)
    axes.unify(r[0], directions)
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)
    _states(axes, node, gates, state, directions, batch)
    node.out.axes = (
        (batch, time, directions, hidden) if layout else (time, directions, batch, hidden)
    )
    for value in node.outputs[1:]:
        value.axes = state


def _gated(axes: Axes, whole: Axis, gates: int, hidden: Axis) -> None:
    outer, inner = axes.split(whole, gates)
    if outer is None or inner is None:
        raise Unsupported("gates that are grouped otherwise")
    axes.freeze(outer, "gates")
    axes.unify(inner, hidden)


def _states(
    axes: Axes, node: Node, gates: int, state: tuple[Axis, ...], directions: Axis, batch: Axis
) -> None:
    """Bias, lengths, the states at the start (of the axes ``state``) and peepholes."""
    for i, many in ((3, 2 * gates), (7, 3)):
        if node.has(i):
            own = axes.of(node.operand(i))
            _gated(axes, own[1], many, state[2])
            axes.unify(own[0], directions)
    if node.has(4):
        axes.unify(axes.of(node.operand(4))[0], batch)
    for i in (5, 6):
        if node.has(i):
            for one, given in zip(state, axes.of(node.operand(i)), strict=True):
                axes.unify(one, given)


def _silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """What is dropped of the input and of the state before is not summed."""
    made = list(operands)
    made[0] = zeroed(torch, made[0], present(node.operand(0), [2]))
    made[2] = zeroed(torch, made[2], present(node.operand(2), [2]))
    return run(*made)


def _resize(node: Node, cut: Cut) -> None:
    node.attrs["hidden_size"] = cut.size((node.operand(2).axes or ())[2])


def _macs(node: Node) -> tuple[Any, ...]:
    x, w, r = (node.operand(i).axes or () for i in range(3))
    return ((*x[:2], *w), (*x[:2], *r))


def _read(name: str) -> Any:
    def read(node: OnnxNode) -> Step:
        x, r = node.shape(0), node.shape(2)
        layout, direction = node.attrs.get("layout", 0), node.attrs.get("direction", "forward")
        hidden, count = r[2], 2 if direction == "bidirectional" else 1
        if not isinstance(hidden, int):
            raise UnsupportedUse("a recurrent network of dynamic width")
        time, batch = (x[1], x[0]) if layout else (x[0], x[1])
        dtype = node.type(0).dtype
        whole = TensorType(
            dtype, (batch, time, count, hidden) if layout else (time, count, batch, hidden)
        )
        state = TensorType(dtype, (batch, count, hidden) if layout else (count, batch, hidden))
        attrs = {
            "hidden_size": hidden,
            "layout": layout,
            "direction": direction,
            "clip": node.attrs.get("clip"),
            "activations": node.attrs.get("activations"),
            "alpha": node.attrs.get("activation_alpha"),
            "beta": node.attrs.get("activation_beta"),
        }
        if name == "onnx_gru":
            attrs["linear_before_reset"] = node.attrs.get("linear_before_reset", 0)
        if name == "onnx_lstm":
            attrs["input_forget"] = node.attrs.get("input_forget", 0)
        return Step(name, None, attrs, [whole, state, state][: len(node.outputs)])

    return read


def _write(edit: Edit, node: Node) -> None:
    if (
        node.attrs["hidden_size"] != edit.attrs.get("hidden_size", node.attrs["hidden_size"])
        or "hidden_size" not in edit.attrs
    ):
        edit.attr("hidden_size", node.attrs["hidden_size"])


for _name, _onnx in (("onnx_lstm", "LSTM"), ("onnx_gru", "GRU"), ("onnx_rnn", "RNN")):
    _g = _GATES[_name]
    _more = {
        "onnx_lstm": {"input_forget": 0},
        "onnx_gru": {"linear_before_reset": 1},
        "onnx_rnn": {},
    }[_name]
    op(
        _name,
        _rule,
        run=runs(_name, 3 if _g == 4 else 2),
        silence=_silence,
        resize=_resize,
        macs=_macs,
        samples=(
            Sample(
                (Arg((3, 2, 4)), Arg((2, _g * 5, 4)), Arg((2, _g * 5, 5)), Arg((2, 2 * _g * 5))),
                {
                    "hidden_size": 5,
                    "layout": 0,
                    "direction": "bidirectional",
                    "clip": None,
                    "activations": None,
                    "alpha": None,
                    "beta": None,
                    **_more,
                },
                free=3,
            ),
        ),
        operands=_ROLES,
        kinds=recurrent_kinds,
        layered=layered.as_recurrent,
    )
    spell(_name, _onnx, read=_read(_name), write=_write)


# -- com.microsoft::DynamicQuantizeLSTM: weights are stored transposed, as integers; inputs and
# states are quantised at each product --


def _quantised_rule(axes: Axes, node: Node) -> None:
    x, w, r = (axes.of(node.operand(i)) for i in range(3))
    time, batch, directions, hidden = x[0], x[1], w[0], r[1]
    axes.freeze(directions, "directions")
    for a in (time, batch):
        axes.freeze(a, "values that share a scale")
    axes.unify(x[2], w[1])
    axes.unify(r[0], directions)
    for matrix, numbers in ((w, (8, 9)), (r, (10, 11))):
        _gated(axes, matrix[2], 4, hidden)
        # One for each direction, or for each gate's channel
        for held in (axes.of(node.operand(i)) for i in numbers if node.has(i)):
            axes.unify(held[0], directions)
            if len(held) == 2:
                axes.unify(held[1], matrix[2])
    state = (directions, batch, hidden)
    _states(axes, node, 4, state, directions, batch)
    node.out.axes = (time, directions, batch, hidden)
    for value in node.outputs[1:]:
        value.axes = state


def _quantised_silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """The extremes of inputs and states make their scales, so what is dropped must be zero itself:
    a state stays zero where it starts there and its gates get nothing."""
    made = list(operands)
    made[0] = zeroed(torch, made[0], present(node.operand(0), [2]))
    for i, zero in ((1, 9), (2, 11)):
        mask = present(node.operand(i), [2])
        if mask is not None:
            count = int(made[i].shape[0])
            made[i] = torch.where(mask, made[i], made[zero].reshape([count, 1, -1]))
    for i, dim in ((3, 1), (5, 2), (6, 2)):
        if node.has(i):
            made[i] = zeroed(torch, made[i], present(node.operand(i), [dim]))
    return run(*made)


def _quantised_resize(node: Node, cut: Cut) -> None:
    node.attrs["hidden_size"] = cut.size((node.operand(2).axes or ())[1])


def _read_quantised(node: OnnxNode) -> Step:
    x, hidden, direction = node.shape(0), node.shape(2)[1], node.attrs.get("direction", "forward")
    if not isinstance(hidden, int):
        raise UnsupportedUse("a recurrent network of dynamic width")
    if (
        node.attrs.get("activations", _USUAL) not in (_USUAL, 2 * _USUAL)
        or not node.has(9)
        or not node.has(11)
    ):
        raise UnsupportedUse("a quantised LSTM of other activations, or without zero points")
    count = 2 if direction == "bidirectional" else 1
    state = TensorType("f32", (count, x[1], hidden))
    attrs = {
        "hidden_size": hidden,
        "direction": direction,
        "clip": node.attrs.get("clip"),
        "input_forget": node.attrs.get("input_forget", 0),
    }
    return Step(
        "dynamic_lstm",
        None,
        attrs,
        [TensorType("f32", (x[0], count, x[1], hidden)), state, state][: len(node.outputs)],
    )


_USUAL = ["Sigmoid", "Tanh", "Tanh"]
_NUMBERS = (Arg((2, 20), low=0.01, high=0.02), Arg((2, 20), "i8", -9, 9))
op(
    "dynamic_lstm",
    _quantised_rule,
    run=runs("dynamic_lstm", 3),
    silence=_quantised_silence,
    resize=_quantised_resize,
    macs=_macs,
    samples=(
        Sample(
            (
                Arg((3, 2, 4)),
                Arg((2, 4, 20), "i8", -99, 99),
                Arg((2, 5, 20), "i8", -99, 99),
                Arg((2, 40)),
                None,
                None,
                None,
                None,
                *_NUMBERS,
                *_NUMBERS,
            ),
            {"hidden_size": 5, "direction": "bidirectional", "clip": None, "input_forget": 0},
            free=2,
        ),
    ),
    operands=_ROLES,
    quantised_as=lambda node: {1: Quantised(8, 9, 2, True), 2: Quantised(10, 11, 2, True)},
    rounds=True,
    kinds=recurrent_kinds,
)
spell("dynamic_lstm", "com.microsoft::DynamicQuantizeLSTM", read=_read_quantised, write=_write)

# -- samples ---------------------------------------------------------------------------------------

_X, _STATE = Arg((3, 2, 4)), Arg((2, 2, 5))
for _name, _onnx in (("onnx_lstm", "LSTM"), ("onnx_gru", "GRU"), ("onnx_rnn", "RNN")):
    _g = 5 * _GATES[_name]
    _w, _r, _b = Arg((2, _g, 4)), Arg((2, _g, 5)), Arg((2, 2 * _g))
    _both: dict[str, Any] = {"hidden_size": 5, "direction": "bidirectional"}
    sampled(
        _onnx,
        use(_X, Arg((1, _g, 4)), Arg((1, _g, 5)), free=3, hidden_size=5),
        use(_X, _w, _r, _b, free=3, **_both),
        use(_X, _w, _r, _b, None, _STATE, free=3, read=(0, 1), **_both),
        use(_X, _w, _r, _b, Arg((2,), "i32", values=(2, 3)), free=3, **_both),
        use(_X, _w, _r, _b, free=3, clip=0.3, **_both),
        use(_X, Arg((1, _g, 4)), Arg((1, _g, 5)), free=3, hidden_size=5, direction="reverse"),
    )
sampled(
    "LSTM",
    use(
        _X,
        Arg((2, 20, 4)),
        Arg((2, 20, 5)),
        Arg((2, 40)),
        None,
        _STATE,
        _STATE,
        Arg((2, 15)),
        free=3,
        hidden_size=5,
        direction="bidirectional",
        read=(0, 1, 2),
    ),
)
sampled(
    "GRU",
    use(_X, Arg((1, 15, 4)), Arg((1, 15, 5)), free=3, hidden_size=5, linear_before_reset=1),
)
sampled(
    "RNN",
    use(_X, Arg((1, 5, 4)), Arg((1, 5, 5)), free=3, hidden_size=5, activations=["Relu"]),
)
_SCALES = Arg((1,), values=(0.01,)), Arg((1,), "i8", values=(2,))
sampled(
    "com.microsoft::DynamicQuantizeLSTM",
    use(
        _X,
        Arg((1, 4, 20), "i8", -99, 99, stored=True),
        Arg((1, 5, 20), "i8", -99, 99, stored=True),
        Arg((1, 40)),
        None,
        None,
        None,
        None,
        *_SCALES,
        *_SCALES,
        free=2,
        hidden_size=5,
        direction="forward",
    ),
)
