"""Tensors made from sizes: free until something freezes them.

Where every element is the same a smaller one is made in its place; where an element depends on its
position (``arange``, ``eye``, a window) the tensor is folded to a constant when an axis of it must
shrink."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ir.size import Size, probe_of
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.aten.shape import out_shape
from irprune.ops.registry import Arg, Cut, Sample
from irprune.ops.registry import op as declare

__all__ = ["fresh", "set_size"]

op = partial(declare, family="create")

_X = Arg((2, 6, 5))


def fresh(axes: Axes, node: Node) -> None:
    """Every dimension of the results is an axis of its own."""
    for value in node.outputs:
        value.axes = tuple(axes.leaf(s) for s in value.shape)


def set_size(node: Node, cut: Cut) -> None:
    """The sizes of what is made follow the axes; strides keep their order."""
    old = node.attrs["size"]
    node.attrs["size"] = out_shape(cut, node)
    if "stride" in node.attrs and node.attrs["size"] != old:
        node.attrs["stride"] = _dense(node.attrs["size"], node.attrs["stride"])


def _dense(shape: list[Size], like: list[Size]) -> list[Size]:
    """Strides of a dense tensor of ``shape`` whose dimensions lie in the order that ``like``
    gives."""
    out: list[Size] = [1] * len(shape)
    step: Size = 1
    for d in sorted(range(len(shape)), key=lambda k: (probe_of(like[k]), -k)):
        out[d] = step
        step = step * shape[d]
    return out


# -- the same everywhere ---------------------------------------------------------------------------

_SIZE = {"size": [4, 6]}
for _name, _more in (("zeros", {}), ("ones", {}), ("full", {"fill_value": 2.0})):
    op(
        _name,
        fresh,
        resize=set_size,
        creates=True,
        aten=(f"{_name}.default",),
        samples=(Sample((), {**_SIZE, **_more}, free=2),),
        free=True,
    )
    op(
        f"new_{_name}",
        fresh,
        resize=set_size,
        creates=True,
        aten=(f"new_{_name}.default",),
        samples=(Sample((_X,), {**_SIZE, **_more}, free=5),),
        free=True,
    )
    op(
        f"{_name}_like",
        broadcast,
        aten=(f"{_name}_like.default",),
        samples=(Sample((_X,), _more, free=3),),
        free=True,
    )
op(
    "scalar_tensor",
    fresh,
    aten=("scalar_tensor.default",),
    samples=(Sample((), {"s": 2.0}, free=0),),
    free=True,
)

_STRIDED = {"size": [4, 6], "stride": [1, 4]}
op(
    "empty",
    fresh,
    resize=set_size,
    creates=True,
    random=True,
    uninitialised=True,
    aten=("empty.memory_format", "empty_strided.default", "empty_permuted.default"),
    samples=(
        Sample((), _SIZE, free=2),
        Sample((), _STRIDED, free=2, target="aten.empty_strided.default"),
        Sample(
            (),
            {"size": [4, 6], "physical_layout": [1, 0]},
            free=2,
            target="aten.empty_permuted.default",
        ),
    ),
    free=True,
)
op(
    "new_empty",
    fresh,
    resize=set_size,
    creates=True,
    random=True,
    uninitialised=True,
    aten=("new_empty.default", "new_empty_strided.default"),
    samples=(
        Sample((_X,), _SIZE, free=5),
        Sample((_X,), _STRIDED, free=5, target="aten.new_empty_strided.default"),
    ),
    free=True,
)
op(
    "empty_like",
    broadcast,
    random=True,
    uninitialised=True,
    aten=("empty_like.default",),
    samples=(Sample((_X,), free=3),),
    free=True,
)


# -- by position -----------------------------------------------------------------------------------

op(
    "arange",
    fresh,
    creates=True,
    aten=("arange.default", "arange.start", "arange.start_step"),
    samples=(
        Sample((), {"end": 6}, free=1),
        Sample((), {"start": 2, "end": 8}, free=1, target="aten.arange.start"),
        Sample(
            (), {"start": 0.0, "end": 1.0, "step": 0.2}, free=1, target="aten.arange.start_step"
        ),
    ),
    free=True,
)
op(
    "range",
    fresh,
    creates=True,
    aten=("range.step",),
    samples=(Sample((), {"start": 0, "end": 5, "step": 1}, free=1),),
    free=True,
)
for _name in ("linspace", "logspace"):
    op(
        _name,
        fresh,
        creates=True,
        aten=(f"{_name}.default",),
        samples=(Sample((), {"start": 0.0, "end": 2.0, "steps": 6}, free=1),),
        free=True,
    )
op(
    "eye",
    fresh,
    creates=True,
    aten=("eye.default", "eye.m"),
    samples=(
        Sample((), {"n": 5}, free=2),
        Sample((), {"n": 5, "m": 3}, free=2, target="aten.eye.m"),
    ),
    free=True,
)
op(
    "tril_indices",
    fresh,
    creates=True,
    aten=("tril_indices.default", "triu_indices.default"),
    samples=(Sample((), {"row": 3, "col": 4}, free=2),),
    free=True,
)
_WINDOWS = [f"{name}_window" for name in ("hann", "hamming", "blackman", "bartlett", "kaiser")]
op(
    "window",
    fresh,
    creates=True,
    aten=[f"{w}.{overload}" for w in _WINDOWS for overload in ("default", "periodic")],
    samples=(
        Sample((), {"window_length": 6}, free=1),
        *(
            Sample((), {"window_length": 6, "periodic": False}, free=1, target=f"aten.{w}.periodic")
            for w in _WINDOWS
        ),
    ),
    free=True,
)
op(
    "fft_freq",
    fresh,
    creates=True,
    aten=("fft_fftfreq.default", "fft_rfftfreq.default"),
    samples=(Sample((), {"n": 8}, free=1),),
    free=True,
)


def _one_hot(axes: Axes, node: Node) -> None:
    node.out.axes = (
        *axes.of(node.operand(0)),
        axes.frozen(node.out.shape[-1], "classes of one_hot"),
    )


op(
    "one_hot",
    _one_hot,
    aten=("one_hot.default",),
    samples=(Sample((Arg((2, 5), "i64", 0, 4),), {"num_classes": 4}, free=2),),
    free=True,
)
