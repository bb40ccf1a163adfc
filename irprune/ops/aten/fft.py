"""Fourier transforms: every frequency depends on every position, so the transformed dimensions are
fixed."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.aten.shape import position
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="fft")

_X = Arg((3, 4, 6))
_C = Arg((3, 4, 6), "c64")


def transformed(node: Node) -> set[int]:
    """The transformed dimensions: ``dim``; where it is None the last ones that ``s`` names, or
    all."""
    rank, dims = node.operand(0).rank, node.attrs.get("dim")
    if dims is None:
        sizes = node.attrs.get("s")
        dims = range(rank) if sizes is None else range(rank - len(sizes), rank)
    return {position(d, rank) for d in ([dims] if isinstance(dims, int) else dims)}


def _transform(axes: Axes, node: Node) -> None:
    own, dims = axes.of(node.operand(0)), transformed(node)
    for d in dims:
        axes.freeze(own[d], f"transformed by {node.op}")
    node.out.axes = tuple(
        axes.frozen(s, "frequencies") if k in dims else own[k] for k, s in enumerate(node.out.shape)
    )


for _name, _arg in (
    ("fft", _X),
    ("ifft", _C),
    ("rfft", _X),
    ("irfft", _C),
    ("hfft", _C),
    ("ihfft", _X),
):
    op(
        f"fft_{_name}",
        _transform,
        aten=(f"fft_{_name}.default",),
        samples=(Sample((_arg,), {"dim": 1}, free=2), Sample((_arg,), {"n": 8}, free=2)),
    )
    op(
        f"fft_{_name}2",
        _transform,
        aten=(f"fft_{_name}2.default",),
        samples=(Sample((_arg,), free=1), Sample((_arg,), {"dim": [0, 2]}, free=1)),
    )
    op(
        f"fft_{_name}n",
        _transform,
        aten=(f"fft_{_name}n.default",),
        samples=(Sample((_arg,), free=0), Sample((_arg,), {"s": [4, 8]}, free=1)),
    )
op(
    "fft_fftshift",
    _transform,
    aten=("fft_fftshift.default", "fft_ifftshift.default"),
    samples=(Sample((_X,), {"dim": [1]}, free=2), Sample((_X,), free=0)),
)


def _framed(axes: Axes, node: Node) -> None:
    """Short-time transforms: all but the batch is positions and frequencies."""
    own = axes.of(node.operand(0))
    batch = own[: len(own) - (1 if node.op == "stft" else node.operand(0).rank - node.out.rank + 1)]
    for value in node.inputs:
        for a in (
            axes.of(value)[len(batch) if value is node.inputs[0] else 0 :]
            if value is not None
            else ()
        ):
            axes.freeze(a, f"transformed by {node.op}")
    node.out.axes = (*batch, *(axes.frozen(s, "frames") for s in node.out.shape[len(batch) :]))


_FRAMES = {"n_fft": 8, "hop_length": 4, "return_complex": True}
op(
    "stft",
    _framed,
    aten=("stft.center", "stft.default"),
    samples=(
        Sample((Arg((3, 32)), Arg((8,), low=0.5)), _FRAMES, free=1),
        Sample((Arg((32,)), Arg((8,), low=0.5)), _FRAMES, free=0),
    ),
)
op(
    "istft",
    _framed,
    aten=("istft.default",),
    samples=(
        Sample((Arg((3, 5, 9), "c64"), Arg((8,), low=0.5)), {"n_fft": 8, "hop_length": 4}, free=1),
    ),
)
