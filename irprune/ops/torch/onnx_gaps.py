"""What torch's ONNX exporter cannot say of itself: programs made ready for it, and operators that
it has no function for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from irprune.errors import IrpruneError
from irprune.ops.torch.onnx_distances import cdist
from irprune.ops.torch.onnx_fourier import INVERSES, in_full
from irprune.ops.torch.onnx_pools import POOLS, reads_positions
from irprune.ops.torch.onnx_scatter import scatter_reduce
from irprune.ops.torch.onnx_special import digamma, lgamma

__all__ = ["exportable", "translations"]


def exportable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program``, changed in place, with a copy in front of each reshape of what was transposed,
    what is read by strides in the order in which it lies, complex numbers unsqueezed as pairs,
    inverse transforms of half a spectrum over all of it, remainders by sizes as by tensors,
    attention in four dimensions, and a bound that bounds nothing between a pad and a max pool.

    The exporter makes a reshape a view where the strides at hand allow one, then takes attention
    for products whose results lie otherwise in memory, and refuses the view of their transpose. The
    copies leave no trace in the file. onnxruntime 1.31 takes zeros that are padded in front of a
    max pool for the pool's own padding, which never wins a maximum.

    Raises IrpruneError for a number of groups that follows an open size, for which a file has no
    place."""
    graph = program.graph
    for node in list(graph.nodes):
        if isinstance(_argument(node, "groups"), torch.fx.Node):
            raise IrpruneError(
                "an ONNX file holds no number of groups that follows an open size",
                f"{node.name} (each element of the batch has a kernel of its own)",
                "write a file for one batch: dynamic='none' (--dynamic none)",
            )
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            _in_four_dimensions(graph, node)
        if node.target is torch.ops.aten.as_strided.default:
            _as_it_lies(graph, node)
        if node.target in INVERSES:
            in_full(graph, node)
        if node.target in _BY_TENSOR and isinstance(node.args[1], torch.fx.Node):
            with graph.inserting_before(node):
                size = graph.call_function(torch.ops.aten.scalar_tensor.default, (node.args[1],))
                size.kwargs = {"dtype": torch.int64}
                size.meta = {"val": torch.ops.aten.scalar_tensor.default(1, dtype=torch.int64)}
            node.args = (node.args[0], size)
            node.target = _BY_TENSOR[node.target]
        if node.target in _VIEWS and node.args[0].target in _TURNED:
            with graph.inserting_before(node):
                copy = _inserted(
                    graph,
                    torch.ops.aten.clone.default,
                    node.args[0],
                    memory_format=torch.contiguous_format,
                )
            node.replace_input_with(node.args[0], copy)
        elif node.target is torch.ops.aten.einsum.default and node.meta["val"].is_complex():
            _in_real_numbers(graph, node)
        elif node.target is torch.ops.aten.unsqueeze.default and node.meta["val"].is_complex():
            source, dim = node.args
            with graph.inserting_before(node):
                pairs = _inserted(graph, torch.ops.aten.view_as_real.default, source)
                opened = _inserted(
                    graph, torch.ops.aten.unsqueeze.default, pairs, dim if dim >= 0 else dim - 1
                )
            node.target, node.args = torch.ops.aten.view_as_complex.default, (opened,)
        elif (
            node.target in _MAX_POOLS
            and node.args[0].target in _PADS
            and node.meta["val"].is_floating_point()
        ):
            with graph.inserting_before(node):
                bound = _inserted(
                    graph,
                    torch.ops.aten.clamp.default,
                    node.args[0],
                    torch.finfo(node.meta["val"].dtype).min,
                )
            node.replace_input_with(node.args[0], bound)
    program.graph_module.recompile()
    return program


def _as_it_lies(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Strides of memory, which the exporter counts in the order of the dimensions, over what was
    transposed: it is turned to the order in which it lies. What does not lie densely is left."""
    source: Any = node.args[0]
    value = source.meta["val"]
    steps = [s if isinstance(s, int) else s.node.hint for s in value.stride()]
    if value.is_contiguous() or any(s is None for s in steps):
        return
    order = sorted(range(value.dim()), key=lambda d: -steps[d])
    if not value.permute(order).is_contiguous():
        return
    aten = torch.ops.aten
    with graph.inserting_before(node):
        turned = _inserted(graph, aten.permute.default, source, order)
        copy = _inserted(graph, aten.clone.default, turned, memory_format=torch.contiguous_format)
    node.replace_input_with(source, copy)


def _in_real_numbers(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """A sum of products of one or two complex tensors as sums of products of their parts; left as
    it is for more of them."""
    equation, operands, *rest = node.args
    aten = torch.ops.aten
    if rest or not isinstance(operands, (list, tuple)) or len(operands) > 2:
        return

    def summed(*parts: torch.fx.Node) -> torch.fx.Node:
        made = graph.call_function(aten.einsum.default, (equation, list(parts)))
        values = [p.meta["val"] for p in parts]
        made.meta = {**node.meta, "val": aten.einsum.default(equation, values)}
        return made

    with graph.inserting_before(node):
        parts = []
        for operand in operands:
            pair = _inserted(graph, aten.view_as_real.default, operand)  # type: ignore[arg-type]
            parts.append([_inserted(graph, aten.select.int, pair, -1, k) for k in (0, 1)])
        if len(parts) == 1:
            real, imaginary = (summed(p) for p in parts[0])
        else:
            (a, b), (c, d) = parts
            real = _inserted(graph, aten.sub.Tensor, summed(a, c), summed(b, d))
            imaginary = _inserted(graph, aten.add.Tensor, summed(a, d), summed(b, c))
        both = [_inserted(graph, aten.unsqueeze.default, x, -1) for x in (real, imaginary)]
        pair = graph.call_function(aten.cat.default, (both, -1))
        values = [x.meta["val"] for x in both]
        pair.meta = {**node.meta, "val": aten.cat.default(values, -1)}
        made = _inserted(graph, aten.view_as_complex.default, pair)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _in_four_dimensions(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Attention over more or fewer leading dimensions than one, which the exporter refuses, with
    these as one."""
    operands: Any = node.args
    query, key, value, *rest = operands
    made = node.meta["val"]
    lead = made.shape[:-3]
    if len(lead) == 1 or made.dim() < 3:
        return
    mask: Any = rest[0] if rest else None
    readers = [x for x in (query, key, value, mask) if x is not None]

    def size(at: int) -> int | torch.fx.Node:
        """The leading size ``at`` of the result."""
        return next(
            _size(graph, x, at - made.dim())
            for x in readers
            if x.meta["val"].dim() >= made.dim() - at
            and _are_same(x.meta["val"].shape[at - made.dim()], lead[at])
        )

    def folded(x: torch.fx.Node) -> torch.fx.Node:
        if not lead:
            return _inserted(graph, torch.ops.aten.unsqueeze.default, x, 0)
        own = x.meta["val"].shape[:-3]
        if len(own) < len(lead) or not all(map(_are_same, own, lead)):
            sizes = [size(d) for d in range(len(lead))]
            x = _inserted(graph, torch.ops.aten.expand.default, x, [*sizes, -1, -1, -1])
        rows = [_size(graph, x, d) for d in (-3, -2, -1)]
        return _inserted(graph, torch.ops.aten.reshape.default, x, [-1, *rows])

    with graph.inserting_before(node):
        # A mask of its own for each leading index; else one for all
        if mask is not None and mask.meta["val"].dim() > 3:
            mask = folded(mask)
        attended = _inserted(
            graph,
            node.target,
            folded(query),
            folded(key),
            folded(value),
            *([mask] if rest else []),
            *rest[1:],
            **node.kwargs,
        )
        if lead:
            rows = [_size(graph, attended, d) for d in (-3, -2, -1)]
            sizes = [*(size(d) for d in range(len(lead))), *rows]
            out = _inserted(graph, torch.ops.aten.reshape.default, attended, sizes)
        else:
            out = _inserted(graph, torch.ops.aten.squeeze.dim, attended, 0)
    out.meta = {**node.meta, "val": out.meta["val"]}
    node.replace_all_uses_with(out)
    graph.erase_node(node)


def _are_same(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are one number or one expression; unlike ``==`` it guards nothing."""
    return str(a) == str(b)


def _size(graph: torch.fx.Graph, x: torch.fx.Node, dim: int) -> int | torch.fx.Node:
    """Size ``dim`` of ``x``; a new node that reads it where it is open."""
    found: int | torch.SymInt = x.meta["val"].shape[dim]
    if isinstance(found, int):
        return found
    return _inserted(graph, torch.ops.aten.sym_size.int, x, x.meta["val"].dim() + dim)


def _inserted(
    graph: torch.fx.Graph, target: Any, source: torch.fx.Node, *rest: Any, **options: Any
) -> torch.fx.Node:
    """A new node that calls ``target`` on the result of ``source``."""
    node = graph.call_function(target, (source, *rest), options)
    values = torch.fx.map_arg((source, *rest), lambda x: x.meta["val"])
    node.meta = {**source.meta, "val": target(*values, **options)}
    return node


_VIEWS = (
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
)
# What the exporter divides by a number that is known alone
_BY_TENSOR = {
    torch.ops.aten.remainder.Scalar: torch.ops.aten.remainder.Tensor,
    torch.ops.aten.fmod.Scalar: torch.ops.aten.fmod.Tensor,
}
_TURNED = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)
_PADS = (torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default)
_MAX_POOLS = (
    torch.ops.aten.max_pool1d.default,
    torch.ops.aten.max_pool2d.default,
    torch.ops.aten.max_pool3d.default,
)


def _argument(node: torch.fx.Node, name: str) -> Any:
    """What ``node`` is given for the parameter ``name`` of its operator, None where nothing is."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    places = [a.name for a in node.target._schema.arguments]
    if name not in places:
        return None
    at = places.index(name)
    return node.args[at] if at < len(node.args) else node.kwargs.get(name)


def translations(
    program: torch.export.ExportedProgram,
) -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX functions for the operators in ``program`` of which the exporter has none that serves,
    as its ``custom_translation_table``."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    open_ = {n.target for n in calls if str(n.target) in POOLS and reads_positions(n)}
    targets = dict.fromkeys(node.target for node in calls if node.target not in open_)
    return {t: _GAPS[str(t)] for t in targets if str(t) in _GAPS}


def _grouped_mm(input: Any, weight: Any, offs: Any) -> Any:
    """Rows ``offs[i-1]:offs[i]`` of ``input`` (rows, k) times matrix i of ``weight`` (groups, k,
    n): (rows, n)."""
    import onnxscript

    op: Any = onnxscript.opset18
    ends = op.Cast(offs, to=7)
    starts = op.Concat(op.Constant(value_ints=[0]), op.Slice(ends, [0], [-1], [0]), axis=0)
    parts = []
    for i in range(weight.shape[0]):
        rows = op.Slice(
            input, op.Slice(starts, [i], [i + 1], [0]), op.Slice(ends, [i], [i + 1], [0]), [0]
        )
        parts.append(op.MatMul(rows, op.Gather(weight, i, axis=0)))
    return op.Concat(*parts, axis=0)


def _index_add(self: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
    """``self`` with the rows of ``source`` added at ``index`` along ``dim``.

    The exporter's own way is ScatterND, whose threads lose additions on onnxruntime where an index
    comes twice (github.com/microsoft/onnxruntime/issues/23396)."""
    import onnxscript

    op: Any = onnxscript.opset18
    rank = len(source.shape)
    at = op.Reshape(
        op.Cast(index, to=7),
        op.Constant(value_ints=[-1 if d == dim % rank else 1 for d in range(rank)]),
    )
    added = (
        source
        if alpha == 1
        else op.Mul(source, op.CastLike(op.Constant(value_float=float(alpha)), source))
    )
    return op.ScatterElements(
        self, op.Expand(at, op.Shape(source)), added, axis=dim, reduction="add"
    )


def _erfinv(self: Any) -> Any:
    """The inverse of the error function, to 4e-7 of its value: M. Giles, "Approximating the erfinv
    function", GPU Computing Gems, 2011."""
    import onnxscript

    op: Any = onnxscript.opset18

    def number(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), self)

    def polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
        sum = number(coefficients[0])
        for c in coefficients[1:]:
            sum = op.Add(op.Mul(sum, x), number(c))
        return sum

    w = op.Neg(op.Log(op.Mul(op.Sub(number(1.0), self), op.Add(number(1.0), self))))
    small, large = op.Sub(w, number(2.5)), op.Sub(op.Sqrt(op.Max(w, number(0.0))), number(3.0))
    found = op.Where(op.Less(w, number(5.0)), polynomial(small, _CENTRE), polynomial(large, _TAILS))
    return op.Mul(found, self)


_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_TAILS = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)

_GAPS: dict[str, Callable[..., Any]] = {
    "transformers.grouped_mm_fallback.default": _grouped_mm,
    "aten.index_add.default": _index_add,
    "aten.erfinv.default": _erfinv,
    "aten.lgamma.default": lgamma,
    "aten.digamma.default": digamma,
    "aten.cdist.default": cdist,
    "aten._cdist_forward.default": cdist,
    "aten.scatter_reduce.two": scatter_reduce,
    **POOLS,
}
