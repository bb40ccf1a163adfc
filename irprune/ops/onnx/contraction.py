"""Matrix products as ONNX spells them."""

from __future__ import annotations

from irprune.ir.graph import Node, TensorType
from irprune.ir.size import Size
from irprune.ops import layered
from irprune.ops.aten.contraction import Letters, contraction
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
from irprune.ops.onnx.steps import activated
from irprune.ops.onnx.types import broadcast
from irprune.ops.registry import (
    Arg,
    Sample,
)

__all__ = ["product_type"]


def product_type(node: OnnxNode, i: int = 0, j: int = 1, dtype: str | None = None) -> TensorType:
    """The type of the matrix product of inputs ``i`` and ``j``."""
    a, b = node.shape(i), node.shape(j)
    lead = broadcast((a[:-2], b[:-2]))
    rows: tuple[Size, ...] = a[-2:-1] if len(a) > 1 else ()
    columns: tuple[Size, ...] = b[-1:] if len(b) > 1 else ()
    return TensorType(dtype or node.type(i).dtype, (*lead, *rows, *columns))


spell("matmul", "MatMul", read=lambda node: Step("matmul"))


def _gemm(node: Node) -> Letters:
    """``alpha * a @ b + beta * c``, the last two dimensions of ``a`` or ``b`` swapped."""
    many = max(node.operand(0).rank, node.operand(1).rank) - 2
    lead = [f"b{k}" for k in range(many)]
    a = [*lead[many - node.operand(0).rank + 2 :], "m", "k"]
    b = [*lead[many - node.operand(1).rank + 2 :], "k", "n"]
    a[-2:] = ["k", "m"] if node.attrs["trans_a"] else ["m", "k"]
    b[-2:] = ["n", "k"] if node.attrs["trans_b"] else ["k", "n"]
    out = [*lead, "m", "n"]
    return a, b, out[len(out) - node.operand(2).rank :] if node.has(2) else [], out


def _read_gemm(node: OnnxNode) -> Step:
    """A plain product with a transposed weight is ``linear``; all else stays what it is."""
    attrs = {
        "trans_a": node.attrs.get("transA", 0),
        "trans_b": node.attrs.get("transB", 0),
        "alpha": node.attrs.get("alpha", 1.0),
        "beta": node.attrs.get("beta", 1.0),
    }
    if (
        not attrs["trans_a"]
        and attrs["trans_b"]
        and attrs["alpha"] == 1
        and (attrs["beta"] == 1 or not node.has(2))
        and (not node.has(2) or node.rank(2) == 1)
    ):
        return Step("linear")
    return Step("gemm", None, attrs)


contraction(
    "gemm",
    _gemm,
    run=runs("gemm"),
    samples=(
        Sample(
            (Arg((4, 6)), Arg((6, 5)), Arg((5,))),
            {"trans_a": 0, "trans_b": 0, "alpha": 0.5, "beta": 2.0},
            free=3,
        ),
        Sample(
            (Arg((6, 4)), Arg((5, 6)), Arg((4, 1))),
            {"trans_a": 1, "trans_b": 1, "alpha": 1.0, "beta": 1.0},
            free=3,
        ),
        Sample(
            (Arg((2, 3, 6, 4)), Arg((3, 6, 5))),
            {"trans_a": 1, "trans_b": 0, "alpha": 0.5, "beta": 1.0},
            free=5,
        ),
    ),
    operands=("data", "weight", "bias"),
    layered=layered.as_linear,
)
spell(("gemm", "linear"), "Gemm", read=_read_gemm)


def _read_activated(node: OnnxNode) -> list[Step]:
    """A product, then an activation."""
    names = ("activation_alpha", "activation_beta")
    parameters = [node.attrs[k] for k in names if k in node.attrs]
    return [_read_gemm(node), *activated(node.attrs.get("activation", ""), parameters)]


spell(
    ("gemm", "linear", "relu", "leaky_relu", "tanh"),
    "com.microsoft::FusedGemm",
    read=_read_activated,
)


spell(
    "einsum",
    "Einsum",
    read=lambda node: Step("einsum", None, {"equation": node.attrs["equation"]}),
)


def _read_fused(node: OnnxNode) -> Step:
    if (
        node.attrs.get("transBatchA", 0)
        or node.attrs.get("transBatchB", 0)
        or node.rank(0) < 2
        or node.rank(1) < 2
    ):
        raise UnsupportedUse("a FusedMatMul with a transposed batch")
    attrs = {
        "trans_a": node.attrs.get("transA", 0),
        "trans_b": node.attrs.get("transB", 0),
        "alpha": node.attrs.get("alpha", 1.0),
        "beta": 1.0,
    }
    return Step("gemm", None, attrs)


spell("gemm", "com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul", read=_read_fused)


def nothing(edit: Edit, *nodes: Node) -> None:
    """A writer for operators whose ONNX form holds no size."""


# -- samples ---------------------------------------------------------------------------------------

_A, _B, _C = Arg((4, 6)), Arg((6, 5)), Arg((5,))
sampled(
    "MatMul",
    use(Arg((2, 1, 4, 6)), Arg((3, 6, 5)), free=5),
    use(Arg((6,)), Arg((3, 6, 5)), free=3),
    use(Arg((3, 5, 6)), Arg((6,)), free=3),
    use(Arg((6,)), Arg((6,)), free=1),
)
sampled(
    "Gemm",
    use(_A, _B, _C, free=3),
    use(_A, Arg((5, 6)), _C, free=3, transB=1),
    use(_A, Arg((5, 6)), free=3, transB=1),
    use(_A, _B, _C, free=3, alpha=0.5, beta=2.0),
    use(Arg((6, 4)), Arg((5, 6)), Arg((4, 1)), free=3, transA=1, transB=1),
    use(_A, Arg((5, 6)), Arg((4, 5)), free=3, transB=1),
)
for _kind in ("Relu", "Tanh"):
    sampled("com.microsoft::FusedGemm", use(_A, _B, _C, free=3, activation=_kind))
sampled(
    "com.microsoft::FusedGemm",
    use(_A, _B, _C, free=3, activation="LeakyRelu", activation_alpha=0.2),
)
_PLAIN = use(_A, Arg((5, 6)), _C, free=3, transB=1, activation="Relu")
sampled("com.microsoft::FusedGemm", _PLAIN, use(_A, _B, free=3, alpha=0.5, activation="Relu"))
sampled(
    "Einsum",
    use(Arg((2, 3, 4, 6)), Arg((2, 3, 5, 6)), free=5, equation="bhqd,bhkd->bhqk"),
    use(Arg((2, 3, 4, 6)), Arg((6, 5)), free=5, equation="...d,de->...e"),
)
sampled(
    "com.microsoft::FusedMatMul com.microsoft::TransposeMatMul",
    use(Arg((2, 3, 4, 6)), Arg((2, 3, 6, 5)), free=5),
    use(Arg((2, 3, 6, 4)), Arg((2, 3, 5, 6)), free=5, transA=1, transB=1, alpha=0.5),
)
