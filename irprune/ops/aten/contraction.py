"""Linear maps and matrix products: the contracted axes are one, the result takes the free ones.

Each operator says only which letter stands in which dimension; ``contraction`` makes of that the
rule, what the oracle zeroes and the multiply-accumulates, so einsum, matmul and their relatives
cannot disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from irprune.ir.axis import Axes, Axis
from irprune.ir.graph import Node, Weight
from irprune.ops import layered
from irprune.ops.aten.elementwise import broadcast
from irprune.ops.registry import Arg, Op, Sample, Unsupported
from irprune.ops.registry import op as declare
from irprune.ops.rule import nn_layers
from irprune.ops.traits import Kind, free_factors

__all__ = ["Letters", "concrete", "contraction", "product_letters", "quick_product", "zeroed"]

op = partial(declare, family="contraction")

Letters = tuple[list[str], ...]
"""For each operand, then for the result, a letter per dimension; none for an absent operand."""


def concrete(x: Any) -> bool:
    """Whether ``x`` is a tensor of numbers, not one of a recording that becomes ONNX nodes."""
    return x.device is not None


def zeroed(torch: Any, x: Any, mask: Any) -> Any:
    """``x`` with what ``mask`` (or None) leaves out set to zero."""
    if mask is None:
        return x
    along = [d for d, n in enumerate(mask.shape) if n != 1]
    # Whole rows, filled faster
    if len(along) == 1 and along[0] < x.dim() - 1 and mask.dim() == x.dim() and concrete(x):
        return x.index_fill(along[0], (~mask).flatten().nonzero()[:, 0], 0)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def quick_product(
    torch: Any,
    node: Node,
    operands: list[Any],
    present: Any,
    run: Callable[..., Any],
    computed: tuple[int, Sequence[int]],
    stored: tuple[int, Sequence[int]],
) -> Any:
    """The product of a computed and a stored operand, each as (index, dimensions that are summed,
    in one order), on those present.

    The zeros are multiplied into the smaller of the two, which costs least. None where this does
    not apply, or where the result is not finite: what is dropped may be infinite, and zero times
    that is no zero."""
    (i, summed), (j, own) = computed, stored
    x, w = operands[i], operands[j]
    if (
        isinstance(node.inputs[i], Weight)
        or not isinstance(node.inputs[j], Weight)
        or not concrete(x)
        or not x.dtype.is_floating_point
    ):
        return None
    mask = present(node.operand(i), summed)
    # Nothing, or chosen block by block
    if mask is None or any(n != 1 and d not in summed for d, n in enumerate(mask.shape)):
        return None
    if any(x.shape[d] != w.shape[e] for d, e in zip(summed, own, strict=True)):
        return None
    made = list(operands)
    if w.numel() < x.numel():
        made[j] = w * present(node.operand(j), own).to(w.dtype)
    else:
        made[i] = x * mask.to(x.dtype)
    y = run(*made)
    return y if bool(torch.isfinite(y.sum())) else None


def _meets_zeros(node: Node, terms: Letters, i: int, letter: str) -> bool:
    """Whether operand ``i`` is a stored array, and finite, whose dropped indices along ``letter``
    meet zeros of a computed operand."""
    return isinstance(node.inputs[i], Weight) and any(
        v is not None
        and not isinstance(v, Weight)
        and any(x == letter and s != 1 for x, s in zip(term, v.shape, strict=True))
        for v, term in zip(node.inputs, terms, strict=False)
    )


def contraction(name: str, letters: Callable[[Node], Letters], **rest: Any) -> Op:
    """Declare an operator that multiplies its operands and sums over the letters which the result
    lacks.

    A dimension of size 1 broadcasts. Letters that begin with ``=`` may not change size.
    """

    def rule(axes: Axes, node: Node) -> None:
        *terms, out = letters(node)
        table = _bind(axes, node, terms)
        for x, a in table.items():
            if x.startswith("="):
                axes.freeze(a, f"fixed by {name}")
        node.out.axes = tuple(table.get(x, axes.one) for x in out)

    def silence(
        torch: Any, node: Node, operands: list[Any], present: Any, run: Callable[..., Any]
    ) -> Any:
        *terms, out = letters(node)
        summing = [i for i, term in enumerate(terms) if not set(term) <= set(out)]
        if len(summing) == 2 and all(len(set(terms[i])) == len(terms[i]) for i in summing):
            for i, j in (summing, summing[::-1]):
                shared = [x for x in terms[i] if x not in out]
                if set(shared) == set(terms[j]) - set(out):
                    computed, stored = ((k, [terms[k].index(x) for x in shared]) for k in (i, j))
                    y = quick_product(torch, node, operands, present, run, computed, stored)
                    if y is not None:
                        return y
        made = list(operands)
        for i, term in enumerate(terms):
            gone = [
                d
                for d, x in enumerate(term)
                if x not in out and not _meets_zeros(node, tuple(terms), i, x)
            ]
            if gone and operands[i] is not None:
                made[i] = zeroed(torch, operands[i], present(node.operand(i), gone))
        return run(*made)

    def macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
        *terms, out = letters(node)
        table: dict[str, Axis] = {}
        for value, term in zip(node.inputs, terms, strict=False):
            for x, a in zip(term, (value.axes or ()) if value is not None else (), strict=False):
                if a.size != 1:
                    table.setdefault(x, a)
        return tuple(
            tuple(table[x] for x in step if x in table)
            for step in _steps([t for t in terms if t], out)
        )

    def kinds(node: Node) -> Iterable[Kind]:
        *terms, out = letters(node)
        return written_out(node, [t for t in terms if t], out)

    given = {"silence": silence, "macs": macs, "kinds": kinds, **rest}
    return op(name, rule, letters=letters, **given)


def written_out(node: Node, terms: Sequence[Sequence[str]], out: Sequence[str]) -> Iterable[Kind]:
    """Attention written out by hand: what a product of two computed tensors does batch by batch
    are heads, and what it sums and makes in each is head_dim."""
    values = [v for v in node.inputs if v is not None]
    if len(terms) != 2 or len(values) != 2 or any(isinstance(v, Weight) for v in values):
        return
    table = [dict(zip(t, v.axes or (), strict=False)) for t, v in zip(terms, values, strict=True)]
    left, right = table
    heads = free_factors(left[x] for x in left if x in right and x in out)
    if heads or (len(left) > 3 and len(set(left) & set(right)) > 1):
        yield from ((a, "heads") for a in heads)
        inner = [own[x] for own in table for x in own if x not in out]
        inner += [right[x] for x in right if x in out and x not in left]
        yield from ((a, "head_dim") for a in free_factors(inner))


def _bind(axes: Axes, node: Node, terms: Sequence[Sequence[str]]) -> dict[str, Axis]:
    table: dict[str, Axis] = {}
    for value, term in zip(node.inputs, terms, strict=False):
        if value is None:
            continue
        if len(term) != value.rank:
            raise Unsupported(f"{node.op} over an operand of shape {value.type}")
        for x, a in zip(term, axes.of(value), strict=True):
            if a.size == 1:
                continue
            if x in table:
                axes.unify(table[x], a)
            else:
                table[x] = a
    return table


def _steps(terms: list[list[str]], out: list[str]) -> list[list[str]]:
    """The letters of each pairwise product that sums something, taken from left to right."""
    steps = []
    have = list(dict.fromkeys(terms[0]))
    for k, term in enumerate(terms[1:], 2):
        both = list(dict.fromkeys([*have, *term]))
        later = {x for t in terms[k:] for x in t} | set(out)
        have = [x for x in both if x in later]
        if len(have) < len(both):
            steps.append(both)
    return steps


def _batch(rank: int, total: int) -> list[str]:
    """Letters of ``rank`` broadcast dimensions, aligned at the last of ``total``."""
    return [f"b{k}" for k in range(total - rank, total)]


# -- products of two -------------------------------------------------------------------------------


def product_letters(a: int, b: int) -> Letters:
    """The letters of the matrix product of operands of rank ``a`` and ``b``."""
    many = max(a - 2, b - 2, 0)
    left = [*_batch(max(a - 2, 0), many), *(["m"] if a > 1 else []), "k"]
    right = [*_batch(max(b - 2, 0), many), "k", *(["n"] if b > 1 else [])]
    return left, right, [*_batch(many, many), *(["m"] if a > 1 else []), *(["n"] if b > 1 else [])]


def _matmul(node: Node) -> Letters:
    return product_letters(node.operand(0).rank, node.operand(1).rank)


contraction(
    "matmul",
    _matmul,
    onnx=("MatMul",),
    aten={
        "matmul.default": {},
        "bmm.default": {"mat2": "other"},
        "mm.default": {"mat2": "other"},
        "mv.default": {"vec": "other"},
        "dot.default": {"tensor": "other"},
        "vdot.default": {},
    },
    samples=(
        Sample((Arg((2, 1, 4, 6)), Arg((3, 6, 5))), free=5),
        Sample((Arg((6,)), Arg((3, 6, 5))), free=3),
        Sample((Arg((3, 5, 6)), Arg((6,))), free=3),
        Sample((Arg((6,)), Arg((6,))), free=1),
        Sample((Arg((4, 1)), Arg((1, 5))), free=2),
        Sample((Arg((2, 3, 4, 6)), Arg((6, 5))), free=5),
        Sample((Arg((3, 4, 6)), Arg((3, 6, 5))), free=4, target="aten.bmm.default"),
        Sample((Arg((4, 6)), Arg((6, 5))), free=3, target="aten.mm.default"),
        Sample((Arg((4, 6)), Arg((6,))), free=2, target="aten.mv.default"),
        Sample((Arg((6,)), Arg((6,))), free=1, target="aten.dot.default"),
        Sample((Arg((6,)), Arg((6,))), free=1, target="aten.vdot.default"),
    ),
    layered=layered.as_linear,
)


def _linear(node: Node) -> Letters:
    rank = node.operand(0).rank
    row = ["o"] if node.operand(1).rank > 1 else []
    lead = _batch(rank - 1, rank - 1)
    bias = node.operand(2).rank if node.has(2) else 0
    return (
        [*lead, "i"],
        [*row, "i"],
        ([*lead, *row][len(lead) + len(row) - bias :] if bias else []),
        [*lead, *row],
    )


contraction(
    "linear",
    _linear,
    aten=("linear.default",),
    samples=(
        Sample((Arg((2, 5, 6)), Arg((4, 6)), Arg((4,))), free=4),
        Sample((Arg((6,)), Arg((4, 6)), None), free=2),
        Sample((Arg((5, 6)), Arg((6,))), free=2),
        Sample((Arg((5, 1)), Arg((4, 1)), Arg((4,))), free=2),
    ),
    operands=("data", "weight", "bias"),
    nn_layer=nn_layers.LINEAR,
)
contraction(
    "outer",
    lambda node: (["m"], ["n"], ["m", "n"]),
    aten={"outer.default": {}, "ger.default": {}},
    samples=(Sample((Arg((4,)), Arg((6,))), free=2),),
)


def _inner(node: Node) -> Letters:
    a, b = node.operand(0).rank, node.operand(1).rank
    if not a or not b:
        many = [f"m{k}" for k in range(max(a, b))]
        return many if a else [], many if b else [], many
    left, right = [f"m{k}" for k in range(a - 1)], [f"n{k}" for k in range(b - 1)]
    return [*left, "k"], [*right, "k"], [*left, *right]


contraction(
    "inner",
    _inner,
    aten=("inner.default",),
    samples=(Sample((Arg((2, 4, 6)), Arg((5, 6))), free=4), Sample((Arg((6,)), Arg((6,))), free=1)),
)


def _vecdot(node: Node) -> Letters:
    """A sum over one dimension of an element-wise product; ``dim`` counts in the operands, which
    broadcast."""
    a, b = node.operand(0).rank, node.operand(1).rank
    many = max(a, b)
    d = node.attrs["dim"] % many if node.attrs["dim"] >= 0 else node.attrs["dim"] + many
    both = _batch(many, many)
    return both[many - a :], both[many - b :], [x for k, x in enumerate(both) if k != d]


contraction(
    "vecdot",
    _vecdot,
    aten=("linalg_vecdot.default",),
    samples=(
        Sample((Arg((2, 4, 6)), Arg((4, 6))), {"dim": -1}, free=3),
        Sample((Arg((2, 4, 6)), Arg((2, 4, 1))), {"dim": 1}, free=3),
    ),
)


def _tensordot(node: Node) -> Letters:
    a, b = node.operand(0).rank, node.operand(1).rank
    left, right = [f"m{k}" for k in range(a)], [f"n{k}" for k in range(b)]
    for i, j in zip(node.attrs["dims_self"], node.attrs["dims_other"], strict=True):
        left[i] = right[j] = f"k{i % a}"
    return left, right, [x for x in left + right if x[0] != "k"]


contraction(
    "tensordot",
    _tensordot,
    aten=("tensordot.default",),
    samples=(
        Sample(
            (Arg((2, 4, 6)), Arg((6, 5, 4))), {"dims_self": [1, -1], "dims_other": [2, 0]}, free=4
        ),
        Sample((Arg((2, 4)), Arg((3, 5))), {"dims_self": [], "dims_other": []}, free=4),
    ),
)

# -- with a summand --------------------------------------------------------------------------------


def _added(product: Letters) -> Callable[[Node], Letters]:
    """``self + a @ b``; ``self`` broadcasts against the product."""
    *terms, out = product

    def letters(node: Node) -> Letters:
        return (out[len(out) - node.operand(0).rank :], *terms, out)

    return letters


_SCALED = {"beta": 0.5, "alpha": 2.0}
contraction(
    "addmm",
    _added((["m", "k"], ["k", "n"], ["m", "n"])),
    aten=("addmm.default",),
    samples=(
        Sample((Arg((5,)), Arg((4, 6)), Arg((6, 5))), _SCALED, free=3),
        Sample((Arg((4, 1)), Arg((4, 6)), Arg((6, 5))), _SCALED, free=3),
    ),
    operands=("bias",),
)
contraction(
    "baddbmm",
    _added((["b", "m", "k"], ["b", "k", "n"], ["b", "m", "n"])),
    aten=("baddbmm.default",),
    samples=(
        Sample((Arg((3, 4, 5)), Arg((3, 4, 6)), Arg((3, 6, 5))), _SCALED, free=4),
        Sample((Arg((1, 5)), Arg((3, 4, 6)), Arg((3, 6, 5))), free=4),
    ),
    operands=("bias",),
)
contraction(
    "addbmm",
    _added((["b", "m", "k"], ["b", "k", "n"], ["m", "n"])),
    aten=("addbmm.default",),
    samples=(Sample((Arg((5,)), Arg((3, 4, 6)), Arg((3, 6, 5))), _SCALED, free=4),),
    operands=("bias",),
)
contraction(
    "addmv",
    _added((["m", "k"], ["k"], ["m"])),
    aten=("addmv.default",),
    samples=(Sample((Arg((4,)), Arg((4, 6)), Arg((6,))), _SCALED, free=2),),
    operands=("bias",),
)
contraction(
    "addr",
    _added((["m"], ["n"], ["m", "n"])),
    aten=("addr.default",),
    samples=(Sample((Arg((5,)), Arg((4,)), Arg((5,))), _SCALED, free=2),),
    operands=("bias",),
)

# -- products of many ------------------------------------------------------------------------------


def _einsum(node: Node) -> Letters:
    ranks = [node.operand(i).rank for i in range(len(node.inputs))]
    return parse_equation(node.attrs["equation"], ranks)


def parse_equation(equation: str, ranks: Sequence[int]) -> Letters:
    """The letters of an einsum equation, the dimensions of ``...`` named and an implicit result
    written out.

    Raises Unsupported for an equation that does not fit operands of these ranks.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    covered = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=False)]
    if len(terms) != len(ranks) or any(
        c < 0 or (c > 0 and "..." not in t) for c, t in zip(covered, terms, strict=True)
    ):
        raise Unsupported(f"the equation {equation!r} over operands of rank {list(ranks)}")
    many = max((c for c, t in zip(covered, terms, strict=True) if "..." in t), default=0)

    def spread(term: str, own: int) -> list[str]:
        head, dots, tail = term.partition("...")
        return [*head, *(_batch(own, many) if dots else ()), *tail]

    sides = [spread(t, c) for t, c in zip(terms, covered, strict=True)]
    if not arrow:  # the ellipsis, then the letters met once, in alphabetical order
        letters = "".join(terms).replace(".", "")
        right = "..." + "".join(sorted(x for x in dict.fromkeys(letters) if letters.count(x) == 1))
    return (*sides, spread(right, many))


_A, _B = Arg((2, 3, 4, 6)), Arg((2, 3, 5, 6))
contraction(
    "einsum",
    _einsum,
    aten=("einsum.default",),
    samples=(
        Sample(((_A, _B),), {"equation": "bhqd,bhkd->bhqk"}, free=5),
        Sample(((_A, Arg((6, 5))),), {"equation": "... d, d e -> ... e"}, free=5),
        Sample(((_A, Arg((3, 6, 5))),), {"equation": "b...td,...de"}, free=5),
        Sample(((Arg((4, 6)), Arg((6, 5))),), {"equation": "ki,ij"}, free=3),
        Sample(((Arg((6, 6)),),), {"equation": "ii->i"}, free=1),
        Sample(((Arg((6, 6)),),), {"equation": "ii"}, free=1),
        Sample(((Arg((4, 6)), Arg((6, 5)), Arg((5, 3))),), {"equation": "ab,bc,cd->da"}, free=4),
        Sample(((Arg((4, 6)), Arg((4, 1))),), {"equation": "ab,ab->b"}, free=2),
        Sample(((Arg((4,)), Arg((6,))),), {"equation": "i,j->ji"}, free=2),
        Sample(
            ((Arg((3, 4, 6)), Arg((3, 6, 5)), Arg((4, 3))),), {"equation": "etd,edf,te->tf"}, free=4
        ),
    ),
)


def _chain(node: Node) -> Letters:
    """Matrices one after the other; the first and the last may be vectors."""
    ranks = [node.operand(i).rank for i in range(len(node.inputs))]
    terms = [[f"m{i}", f"m{i + 1}"] for i in range(len(ranks))]
    if ranks[0] == 1:
        terms[0] = ["m1"]
    if ranks[-1] == 1:
        terms[-1] = terms[-1][:1]
    return (
        *terms,
        [x for x, there in (("m0", ranks[0] > 1), (f"m{len(ranks)}", ranks[-1] > 1)) if there],
    )


contraction(
    "chain_matmul",
    _chain,
    aten={"linalg_multi_dot.default": {}, "chain_matmul.default": {"matrices": "tensors"}},
    samples=(
        Sample(((Arg((4, 6)), Arg((6, 5)), Arg((5, 3))),), free=4),
        Sample(((Arg((6,)), Arg((6, 5)), Arg((5,))),), free=2),
    ),
)


def _bilinear(node: Node) -> Letters:
    rank = node.operand(0).rank - 1
    lead = _batch(rank, rank)
    return [*lead, "i"], [*lead, "j"], ["o", "i", "j"], (["o"] if node.has(3) else []), [*lead, "o"]


contraction(
    "bilinear",
    _bilinear,
    aten=("bilinear.default",),
    samples=(
        Sample((Arg((2, 3, 4)), Arg((2, 3, 6)), Arg((5, 4, 6)), Arg((5,))), free=5),
        Sample((Arg((3, 4)), Arg((3, 6)), Arg((5, 4, 6)), None), free=4),
    ),
    operands=("data", "data", "weight", "bias"),
)
contraction(
    "trace",
    lambda node: (["i", "i"], []),
    aten=("trace.default",),
    samples=(Sample((Arg((6, 6)),), free=1),),
)


def _cdist(node: Node) -> Letters:
    """Distances between rows: a coordinate that is zero on both sides adds nothing."""
    a, b = node.operand(0).rank, node.operand(1).rank
    many = max(a, b) - 2
    return (
        [*_batch(a - 2, many), "p", "k"],
        [*_batch(b - 2, many), "r", "k"],
        [*_batch(many, many), "p", "r"],
    )


def _cdist_silence(
    torch: Any, node: Node, operands: list[Any], present: Any, run: Callable[..., Any]
) -> Any:
    return run(
        *(zeroed(torch, x, present(node.operand(i), [x.dim() - 1])) for i, x in enumerate(operands))
    )


contraction(
    "cdist",
    _cdist,
    silence=_cdist_silence,
    aten=("cdist.default", "_cdist_forward.default"),
    samples=(
        Sample((Arg((2, 4, 6)), Arg((5, 6))), {"p": 2.0}, free=4),
        Sample((Arg((4, 6)), Arg((5, 6))), {"p": 1.0, "compute_mode": None}, free=3),
        Sample(
            (Arg((4, 6)), Arg((5, 6))),
            {"p": 1.0, "compute_mode": None},
            free=3,
            target="aten._cdist_forward.default",
        ),
    ),
    linear=lambda node: False,
)


def _grouped(node: Node) -> Letters:
    """Rows sorted by expert against one matrix per expert: which rows belong to which is known only
    at run time.

    torch's own kernel wants rows of a multiple of 16 bytes, as it was recorded and, behind the
    fallback of transformers, in the model's own calls.
    """
    ranks = node.operand(0).rank, node.operand(1).rank
    if node.origin.target == "aten._grouped_mm.default" or ranks != (2, 3):
        raise Unsupported("a grouped matrix product whose rows must stay multiples of 16 bytes")
    return ["=t", "k"], ["=e", "k", "n"], ["=e"], ["=t", "n"]


def row_macs(node: Node) -> tuple[tuple[Axis, ...], ...]:
    """Each element of the result sums over the last dimension of the first operand."""
    return ((*(node.out.axes or ()), (node.operand(0).axes or ())[-1]),)


contraction(
    "grouped_mm",
    _grouped,
    macs=row_macs,
    row_bytes=16,
    aten={
        "transformers.grouped_mm_fallback.default": {"input": "self", "weight": "mat2"},
        "_grouped_mm.default": {},
    },
)


def _cross(axes: Axes, node: Node) -> None:
    """A vector product along one dimension of size 3, element-wise in the others."""
    broadcast(axes, node)
    rank = node.out.rank
    axes.freeze(
        (node.out.axes or ())[node.attrs.get("dim", -1) % rank], "dimension of a vector product"
    )


op(
    "cross",
    _cross,
    aten=("linalg_cross.default",),
    samples=(Sample((Arg((4, 3)), Arg((1, 3))), {"dim": -1}, free=1),),
)
