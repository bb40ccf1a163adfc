"""Running a graph in torch, node by node: what the oracle and folding of constants stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irprune.errors import IrpruneError
from irprune.ir.body import Body
from irprune.ir.dtype import element_type, is_float, is_half, is_real
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.size import Sym, UnboundSymbol, number
from irprune.ir.symbols import backward_slice, defined_symbols
from irprune.ops.arrays import as_tensor
from irprune.ops.call import bind, overload, substitute
from irprune.ops.choice import Guards, guards
from irprune.ops.dtypes import FROM_TORCH
from irprune.ops.registry import aten_target, lookup
from irprune.run.typed_load import TypedLoad

__all__ = [
    "Arithmetic",
    "device_of_weights",
    "evaluate",
    "is_taken",
    "named_types",
    "run_node",
    "symbols_of",
]

Hook = Callable[[Node, list[Any], Callable[..., Any]], Any]


def device_of_weights(graph: Graph) -> torch.device:
    """The CUDA device that a weight of ``graph`` lies on, else the CPU."""
    for weight in graph.weights.values():
        if isinstance(held := weight.load(), torch.Tensor):
            return held.device if held.is_cuda else torch.device("cpu")
    return torch.device("cpu")


def symbols_of(graph: Graph, inputs: Iterable[torch.Tensor]) -> dict[str, int]:
    """The value of each size symbol, read off the inputs."""
    out: dict[str, int] = {}
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        for s, n in zip(
            value.type.shape or (), tensor.shape if value.type.shape else (), strict=True
        ):
            if isinstance(s, Sym) and s.name:
                out.setdefault(s.name, int(n))
    return out


def run_node(node: Node, operands: list[Any], symbols: dict[str, int], device: torch.device) -> Any:
    """The result of ``node`` on ``operands``: a tensor, or a sequence for several results.
    ``symbols`` learns the sizes that it tells."""
    entry = lookup(node)
    if entry is not None and entry.letters is not None:
        operands = _in_rows(operands)

    def size(s: Sym) -> int | float:
        try:
            return number(s, symbols)
        except UnboundSymbol as unknown:
            raise IrpruneError(
                f"{node.op} takes a size {s} that depends on the values of tensors",
                node.where,
                "shapes must follow from the shapes of the inputs",
            ) from unknown

    def fill(x: Any) -> Any:
        if isinstance(x, Body):
            return _running(x, operands)
        return substitute(x, lambda k: operands[k], size, device)

    if entry is not None and entry.run is not None and not aten_target(node):
        plain = Node(
            node.op, [], {k: fill(v) for k, v in node.attrs.items()}, node.outputs, node.origin
        )
        plain.inputs = node.inputs
        made = entry.run(torch, plain, operands)
    else:
        call = bind(node)
        made = overload(call.target)(
            *map(fill, call.args), **{k: fill(v) for k, v in call.kwargs.items()}
        )
    results = made if isinstance(made, (list, tuple)) else [made]
    for name, i, d in defined_symbols(node):
        if i < len(results) and (d is None or isinstance(results[i], torch.Tensor)):
            symbols.setdefault(name, int(results[i] if d is None else results[i].shape[d]))
    return made


def _in_rows(operands: list[Any]) -> list[Any]:
    """The operands of a product: beside a matrix, one of more dimensions in float64 that lies
    transposed is copied. torch multiplies such ones as many small matrices, in four times the time.
    In narrower types the same kernels as those of forward round the same."""
    if all(x.dim() != 2 for x in operands if isinstance(x, torch.Tensor)):
        return operands
    return [
        x.contiguous()
        if isinstance(x, torch.Tensor) and x.dim() > 2 and x.dtype == torch.float64
        else x
        for x in operands
    ]


def _running(body: Body, operands: Sequence[Any]) -> Callable[..., Any]:
    """``body`` as a function of its own inputs."""

    def run(*own: Any) -> list[Any]:
        outside = [operands[int(k)] for k in body.outer]
        return evaluate(
            body.graph, [*own, *outside], weights={} if torch.is_grad_enabled() else None
        )

    return run


@dataclass(frozen=True)
class Arithmetic:
    """Where a graph is computed, and in which floating-point type.

    Args:
        device: where values and weights are brought.
        dtype: the type of all floating-point values; None leaves each in its own.
        halves_only: convert to ``dtype`` only what is of 16 bits.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    halves_only: bool = False

    def converted(self, x: Any) -> Any:
        """``x`` on the device and in the type; what is no tensor (a sequence, or what is optional
        and left out) as it is."""
        if not isinstance(x, torch.Tensor):
            return x
        x = x.to(self.device)
        return (
            x
            if self.dtype is None or not self._covers(FROM_TORCH.get(x.dtype, ""))
            else x.to(self.dtype)
        )

    def loaded(self, weight: Weight) -> Any:
        """The values of ``weight`` on the device and in the type."""
        if isinstance(weight.load, TypedLoad) and self.dtype and self._covers(weight.dtype):
            return weight.load.typed(self.dtype).to(self.device)
        return self.converted(as_tensor(weight.load()))

    def _covers(self, name: str) -> bool:
        return is_half(name) if self.halves_only else is_float(name)

    def results(
        self, node: Node, operands: list[Any], symbols: dict[str, int], hook: Hook | None = None
    ) -> list[Any]:
        """The results of ``node``, one for each of its outputs; ``hook(node, operands, run)`` may
        compute it its own way."""
        as_run, named = node, node.attrs.get("dtype") or ""
        if self.dtype is not None and is_real(named) and self._covers(named):
            attrs = {**node.attrs, "dtype": FROM_TORCH[self.dtype]}
            as_run = Node(node.op, [], attrs, node.outputs, node.origin)
            as_run.inputs = node.inputs

        def run(*xs: Any) -> Any:
            return run_node(as_run, list(xs), symbols, self.device)

        made = run(*operands) if hook is None else hook(node, operands, run)
        sequence = len(node.outputs) == 1 and node.out.dtype == "sequence_type"
        many = list(made) if isinstance(made, (list, tuple)) and not sequence else [made]
        # zeros and their like come in the default type
        return many if self.dtype is None else list(map(self.converted, many))


def is_taken(path: Guards, read: Callable[[Value | None], Any]) -> bool:
    """Whether a node under the conditions of ``path`` runs; ``read`` gives what they are."""
    return all(bool(read(choice.operand(0))) == truth for choice, truth in path)


def evaluate(
    graph: Graph,
    inputs: Iterable[torch.Tensor],
    *,
    wanted: Iterable[Value] | None = None,
    dtype: torch.dtype | None = None,
    hook: Hook | None = None,
    device: torch.device | None = None,
    weights: Mapping[Weight, torch.Tensor] | None = None,
    keep: bool = True,
) -> list[torch.Tensor]:
    """The values ``wanted`` (the graph's outputs by default) for ``inputs``.

    ``dtype`` converts floating-point inputs and weights; ``hook(node, operands, run)`` may compute
    a node its own way. ``weights`` stand in for stored ones, and gradients are recorded where they
    are given. Only what the wanted values need is run, and each value is dropped after its last
    use; without ``keep`` the wanted ones too, where the hook alone reads them, and nothing is
    returned. Of the branches of an If that stand in the graph, the one is run that is taken; what
    was wanted of another is None."""
    tensors = list(inputs)
    device = device or (tensors[0].device if tensors else torch.device("cpu"))
    targets = list(graph.outputs if wanted is None else wanted)
    nodes, last = _schedule(graph, targets)
    guarded = guards(graph.nodes, graph.outputs)
    symbols = symbols_of(graph, tensors) if tensors or not graph.inputs else {}

    arithmetic = Arithmetic(device, dtype)
    converted = arithmetic.converted
    env: dict[Value, Any] = {
        v: converted(t) for v, t in zip(graph.inputs, tensors, strict=bool(tensors))
    }
    env |= dict((weights or {}).items())

    def read(v: Value | None) -> Any:
        if v is None:
            return None
        if v not in env and isinstance(v, Weight):
            env[v] = arithmetic.loaded(v)
        return env[v]

    kept = set(map(id, targets)) if keep else set()
    with torch.set_grad_enabled(weights is not None):
        for i, node in enumerate(nodes):
            many = [None] * len(node.outputs)
            if is_taken(guarded.get(node, ()), read):
                operands = [read(v) for v in node.inputs]
                many = arithmetic.results(node, operands, symbols, hook)
            made = zip(node.outputs, many, strict=False)
            env.update((v, t) for v, t in made if v in last or id(v) in kept)
            for v in {id(v): v for v in node.inputs if v is not None}.values():
                if last.get(v) == i and id(v) not in kept:
                    env.pop(v, None)
        return [read(v) for v in targets] if keep else []


def named_types(graph: Graph) -> set[str]:
    """The real element types that nodes of ``graph`` name themselves: casts, and what is made in a
    type; and those of what forward computes from numbers of its own, such as ``torch.arange(4) /
    7``, which are in the default type whatever the model is in."""
    named = {t for n in graph.nodes if is_real(t := n.attrs.get("dtype") or "")}
    own: set[Value] = {w for w in graph.weights.values() if w.kind == "constant"}
    for node in graph.nodes:
        if not all(v in own for v in node.inputs if v is not None and _rounds(v)):
            continue
        own.update(node.outputs)
        entry = lookup(node)
        if any(node.inputs) and not (entry is not None and entry.is_view):
            named |= {_real_type(v) for v in node.outputs if _rounds(v)}
    return named


def _rounds(value: Value) -> bool:
    """Whether it holds numbers that are rounded: real or complex ones."""
    kind = element_type(value.type.dtype)
    return kind.is_real or kind.is_complex


def _real_type(value: Value) -> str:
    """Its element type; of complex numbers that of their parts."""
    kind = element_type(value.type.dtype)
    return f"f{kind.bits // 2}" if kind.is_complex else kind.name


def _schedule(graph: Graph, targets: list[Value]) -> tuple[list[Node], dict[Value, int]]:
    """The nodes that ``targets`` need, in order, and the last place where each value is read."""
    nodes = backward_slice(graph, targets)
    last: dict[Value, int] = {}
    for i, node in enumerate(nodes):
        for v in node.inputs:
            if v is not None:
                last[v] = i
    return nodes, last
