"""Factorisations, inverses and functions of matrices: the matrices are taken whole, what they are
batched over passes."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.registry import Arg, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="matrix")


def _matrices(axes: Axes, node: Node) -> None:
    """The last two dimensions of every operand are a matrix."""
    batch = axes.of(node.operand(0))[:-2]
    for value in node.inputs:
        own = axes.of(value) if value is not None else ()
        for a in own[-2:]:
            axes.freeze(a, f"a matrix of {node.op}")
        for a, b in zip(batch[::-1], own[:-2][::-1], strict=False):
            if a.size != 1 and b.size != 1:
                axes.unify(a, b)
    for value in node.outputs:
        value.axes = (
            *batch,
            *(axes.frozen(s, f"computed by {node.op}") for s in value.shape[len(batch) :]),
        )


# well conditioned
_M = Arg(
    (3, 4, 4),
    values=tuple(
        40 + i + k if i == j else i + j + k for k in range(3) for i in range(4) for j in range(4)
    ),
)
for _names in (
    "linalg_inv inverse",
    "linalg_det det",
    "logdet",
    "linalg_slogdet slogdet",
    "linalg_matrix_exp matrix_exp",
    "linalg_qr",
    "linalg_svd",
    "linalg_svdvals",
    "linalg_eigh",
    "linalg_eigvalsh",
    "linalg_eig",
    "linalg_eigvals",
    "linalg_lu_factor",
    "linalg_lu",
):
    _name, *_ = _names.split()
    op(
        _name,
        _matrices,
        aten=[f"{n}.default" for n in _names.split()],
        samples=(Sample((_M,), free=1),),
    )
op(
    "linalg_matrix_power",
    _matrices,
    aten=("linalg_matrix_power.default", "matrix_power.default"),
    samples=(Sample((_M,), {"n": 3}, free=1),),
)
op(
    "linalg_pinv",
    _matrices,
    aten=("linalg_pinv.default", "pinverse.default"),
    samples=(Sample((_M,), {"rcond": 1e-12}, free=1),),
)
op(
    "linalg_solve",
    _matrices,
    aten=("linalg_solve.default",),
    samples=(Sample((_M, Arg((3, 4, 2))), free=1),),
)
op(
    "linalg_solve_triangular",
    _matrices,
    aten=("linalg_solve_triangular.default",),
    samples=(Sample((_M, Arg((3, 4, 2))), {"upper": True}, free=1),),
)
