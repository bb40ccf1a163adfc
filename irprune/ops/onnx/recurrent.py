"""LSTM, GRU and RNN as ONNX has them: gates × hidden in one dimension, both directions in another."""

from __future__ import annotations

from typing import Any

from irprune.ir.axis import Axes
from irprune.ir.graph import Node, TensorType
from irprune.ops.families.contraction import zeroed
from irprune.ops.onnx.spell import Edit, OnnxNode, Step, Unread, runs, spell
from irprune.ops.registry import Arg, Cut, Sample, Unsupported, op

__all__: list[str] = []

_GATES = {"onnx_lstm": 4, "onnx_gru": 3, "onnx_rnn": 1}


def _rule(axes: Axes, node: Node) -> None:
    """Input features contract; hidden indices stand behind the gates in the weights and pass from step to step.

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
        outer, inner = axes.split(a, gates)
        if outer is None or inner is None:
            raise Unsupported("gates that are grouped otherwise")
        axes.freeze(outer, "gates")
        axes.unify(inner, hidden)
    axes.unify(r[0], directions)
    if node.has(3):
        b = axes.of(node.operand(3))
        outer, inner = axes.split(b[1], 2 * gates)
        if outer is None or inner is None:
            raise Unsupported("gates that are grouped otherwise")
        axes.freeze(outer, "gates")
        axes.unify(inner, hidden)
        axes.unify(b[0], directions)
    if node.has(4):
        axes.unify(axes.of(node.operand(4))[0], batch)
    state = (batch, directions, hidden) if layout else (directions, batch, hidden)
    for i in (5, 6):
        if node.has(i):
            for own, given in zip(state, axes.of(node.operand(i)), strict=True):
                axes.unify(own, given)
    if node.has(7):
        p = axes.of(node.operand(7))
        outer, inner = axes.split(p[1], 3)
        if outer is None or inner is None:
            raise Unsupported("peepholes that are grouped otherwise")
        axes.freeze(outer, "gates")
        axes.unify(inner, hidden)
    node.out.axes = (batch, time, directions, hidden) if layout else (time, directions, batch, hidden)
    for value in node.outputs[1:]:
        value.axes = state


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
            raise Unread("a recurrent network of dynamic width")
        time, batch = (x[1], x[0]) if layout else (x[0], x[1])
        dtype = node.type(0).dtype
        whole = TensorType(dtype, (batch, time, count, hidden) if layout else (time, count, batch, hidden))
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
    if node.attrs["hidden_size"] != edit.attrs.get("hidden_size", node.attrs["hidden_size"]) or "hidden_size" not in edit.attrs:
        edit.attr("hidden_size", node.attrs["hidden_size"])


for _name, _onnx in (("onnx_lstm", "LSTM"), ("onnx_gru", "GRU"), ("onnx_rnn", "RNN")):
    _g = _GATES[_name]
    _more = {"onnx_lstm": {"input_forget": 0}, "onnx_gru": {"linear_before_reset": 1}, "onnx_rnn": {}}[_name]
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
    )
    spell(_name, _onnx, read=_read(_name), write=_write)
