"""Recurrent layers and cells: weights are gates × hidden, the gates are fixed and the hidden units
free.

A layer of ATen holds the states of all its levels and directions in one tensor, so these share one
hidden axis; the two directions of the result are a sum."""

from __future__ import annotations

from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node
from irprune.ops.aten.contraction import zeroed
from irprune.ops.registry import Arg, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.rule import nn_layers
from irprune.ops.traits import Kind, Role

op = partial(declare, family="recurrent")

_NN = {
    "lstm": nn_layers.recurrent("LSTM", 4, 2),
    "gru": nn_layers.recurrent("GRU", 3, 1),
    "rnn_tanh": nn_layers.recurrent("RNN", 1, 1),
    "rnn_relu": nn_layers.recurrent("RNN", 1, 1, (("nonlinearity", "relu"),)),
}
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _kind(node: Node) -> str:
    return node.op.removesuffix("_cell")


def _states(node: Node) -> int:
    """How many state operands there are: an LSTM has cell states besides."""
    return 2 if _kind(node) == "lstm" else 1


def _gated(axes: Axes, node: Node, hidden: Axis) -> Axis:
    """The rows of a weight: gates × hidden."""
    return axes.product((axes.frozen(_GATES[_kind(node)], "recurrent gates"), hidden))


def _rows(axes: Axes, node: Node, place: int, hidden: Axis) -> None:
    axes.unify(axes.of(node.operand(place))[0], _gated(axes, node, hidden))


def _roles(node: Node) -> tuple[Role, ...]:
    """Input, states, then matrices and biases."""
    states: list[Role] = ["state"] * _states(node)
    held = node.inputs[1 + len(states) :]
    rest: list[Role] = ["weight" if v is not None and v.rank == 2 else "bias" for v in held]
    return ("data", *states, *rest)


def recurrent_kinds(node: Node) -> list[Kind]:
    """The last axis of the result is the width of the state."""
    return [(a, "recurrent width") for a in (node.out.axes or ())[-1:]]


# -- whole layers ----------------------------------------------------------------------------------


def _projected(node: Node) -> bool:
    """Whether an LSTM projects its output: one weight more in each level and direction."""
    per = 4 if node.attrs["has_biases"] else 2
    return len(node.inputs) - 1 - _states(node) > per * int(node.attrs["num_layers"]) * _directions(
        node
    )


def _directions(node: Node) -> int:
    return 2 if node.attrs["bidirectional"] else 1


def _layer(axes: Axes, node: Node) -> None:
    x = axes.of(node.operand(0))
    if len(x) != 3:
        raise Unsupported("a recurrent layer over packed or unbatched sequences")
    states = [axes.of(node.operand(1 + k)) for k in range(_states(node))]
    first = 1 + len(states)
    time, batch = (x[1], x[0]) if node.attrs["batch_first"] else (x[0], x[1])
    axes.freeze(time, f"time steps of {node.op}")
    hidden = states[-1][2]
    output = states[0][2]  # the same but where the output is projected
    for s in states:
        axes.freeze(s[0], "levels and directions of a recurrent layer")
        if s[1].size != 1 or batch.size == 1:
            axes.unify(batch, s[1])
    projected = _projected(node)
    if projected:  # torch tells a projection by its size, which must stay below the hidden one
        axes.freeze(hidden, "hidden units behind a projection")
    else:
        axes.unify(hidden, output)
    place = first
    into = x[2]
    for _level in range(node.attrs["num_layers"]):
        for _direction in range(_directions(node)):
            _rows(axes, node, place, hidden)
            axes.unify(axes.of(node.operand(place))[1], into)
            _rows(axes, node, place + 1, hidden)
            axes.unify(axes.of(node.operand(place + 1))[1], output)
            place += 2
            if node.attrs["has_biases"]:
                _rows(axes, node, place, hidden)
                _rows(axes, node, place + 1, hidden)
                place += 2
            if projected:
                axes.unify(axes.of(node.operand(place))[0], output)
                axes.unify(axes.of(node.operand(place))[1], hidden)
                place += 1
        into = axes.sum([output] * _directions(node))
    made: list[tuple[Axis, ...]] = [(x[0], x[1], into), *((s[0], batch, s[2]) for s in states)]
    for value, own in zip(node.outputs, made, strict=True):
        value.axes = own


def _silence(torch: Any, node: Node, operands: list[Any], present: Any, run: Any) -> Any:
    """Every matrix is read without the columns of what is dropped."""
    made = list(operands)
    for i in range(1 + _states(node), len(operands)):
        if operands[i] is not None and operands[i].dim() == 2:
            made[i] = zeroed(torch, operands[i], present(node.operand(i), [1]))
    return run(*made)


def _macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    """Each matrix once for every step and sequence."""
    lead = (node.operand(0).axes or ())[:-1]
    matrices = [v for v in node.inputs[1 + _states(node) :] if v is not None and v.rank == 2]
    return tuple((*lead, *(v.axes or ())) for v in matrices)


def _weights(
    gates: int, levels: int, ways: int, *, bias: bool = True, project: int = 0
) -> tuple[Arg, ...]:
    width, hidden = 5, 6
    out: list[Arg] = []
    back = project or hidden
    for level in range(levels):
        for _ in range(ways):
            rows = gates * hidden
            out += [Arg((rows, width if level == 0 else ways * back)), Arg((rows, back))]
            out += [Arg((rows,)), Arg((rows,))] if bias else []
            out += [Arg((project, hidden))] if project else []
    return tuple(out)


def _sample(
    name: str,
    free: int,
    levels: int = 1,
    ways: int = 1,
    first: bool = False,
    bias: bool = True,
    project: int = 0,
) -> Sample:
    states = (
        Arg((levels * ways, 2, project or 6)),
        *((Arg((levels * ways, 2, 6)),) if name == "lstm" else ()),
    )
    attrs = {
        "has_biases": bias,
        "num_layers": levels,
        "dropout": 0.0,
        "train": False,
        "bidirectional": ways == 2,
        "batch_first": first,
    }
    weights = _weights(_GATES[name], levels, ways, bias=bias, project=project)
    return Sample(
        (Arg((2, 3, 5) if first else (3, 2, 5)), states if name == "lstm" else states[0], weights),
        attrs,
        free=free,
    )


for _name in _GATES:
    _more = (
        (_sample(_name, 3, project=4), _sample(_name, 3, levels=2, ways=2, first=True, project=4))
        if _name == "lstm"
        else ()
    )
    op(
        _name,
        _layer,
        silence=_silence,
        macs=_macs,
        aten=(f"{_name}.input",),
        samples=(
            _sample(_name, 3),
            _sample(_name, 3, levels=2, bias=False, first=True),
            _sample(_name, 3, levels=2, ways=2),
            *_more,
        ),
        operands=_roles,
        kinds=recurrent_kinds,
        nn_layer=_NN[_name],
    )

# -- cells -----------------------------------------------------------------------------------------


def _cell(axes: Axes, node: Node) -> None:
    x = axes.of(node.operand(0))
    states = [axes.of(node.operand(1 + k)) for k in range(_states(node))]
    hidden = states[0][-1]
    for s in states:
        for a, b in zip((*x[:-1], hidden), s, strict=True):
            axes.unify(a, b)
    place = 1 + len(states)
    for k, value in enumerate(node.inputs[place:], place):
        if value is None:
            continue
        _rows(axes, node, k, hidden)
        if value.rank == 2:
            axes.unify(axes.of(value)[1], x[-1] if k == place else hidden)
    for value in node.outputs:
        value.axes = (*x[:-1], hidden)


for _name, _count in _GATES.items():
    _state = Arg((2, 6))
    _held = (Arg((2, 5)), (_state, _state) if _name == "lstm" else _state)
    op(
        f"{_name}_cell",
        _cell,
        silence=_silence,
        macs=_macs,
        aten=(f"{_name}_cell.default",),
        samples=(
            Sample((*_held, *_weights(_count, 1, 1)), free=3),
            Sample((*_held, *_weights(_count, 1, 1, bias=False)), free=3),
        ),
        operands=_roles,
        kinds=recurrent_kinds,
    )
