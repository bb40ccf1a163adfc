"""What the operator table is held to: a sample becomes a graph of one node, and slicing must
commute with it.

The node runs three ways: plain, at full width with the dropped indices silenced, and cut. The first
two must agree when nothing is dropped, the last two on what is kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils.flop_counter import FlopCounterMode

from irprune.frontend.torch.build import plain, type_of
from irprune.ir.axis import Axes, Axis, factors, leaves
from irprune.ir.graph import Graph, Node, Origin, TensorType, Value, Weight
from irprune.ir.selection import Selection
from irprune.ir.size import Sym, same
from irprune.ops.call import overload
from irprune.ops.dtypes import TO_TORCH
from irprune.ops.registry import Arg, Op, Sample, load_table, lookup
from irprune.passes.infer_axes import infer
from irprune.passes.slice import Slice
from irprune.run.interpret import evaluate, run_node
from irprune.run.oracle import silencer
from irprune.run.take import take

# float64 operands of size about 1: rounding stays below 1e-13, a wrong index is of order 1
TOLERANCE = 1e-9
CPU = torch.device("cpu")


class Refused(AssertionError):
    """The rule under test is wrong; the text says how."""


class Misfit(Exception):
    """The sample cannot be spelled with this overload."""


@dataclass(frozen=True)
class Case:
    """One sample of one operator in one spelling."""

    entry: Op
    target: str
    sample: Sample
    number: int

    def __str__(self) -> str:
        return f"{self.entry.name}-{self.target}-{self.number}"


@dataclass
class Built:
    """The graph of a case, what its inputs are fed and what the node computed."""

    graph: Graph
    node: Node
    results: list[torch.Tensor]
    feed: list[torch.Tensor]


def cases() -> Iterator[Case]:
    """Every sample in the spelling it names, and samples that name none in every spelling of the
    entry that takes them."""
    for entry in load_table().values():
        for target in entry.aten:
            named = [s for s in entry.samples if s.target == target]
            first = target == next(iter(entry.aten))
            open_ = [
                s
                for s in entry.samples
                if not s.target and (first or (not named and fits(entry, target, s)))
            ]
            for number, sample in enumerate(named + open_):
                yield Case(entry, target, sample, number)
        if not entry.aten and entry.run is not None:
            for number, sample in enumerate(entry.samples):
                yield Case(entry, "", sample, number)


def fits(entry: Op, target: str, sample: Sample) -> bool:
    """Whether ``sample`` can be said with ``target`` and torch takes it."""
    try:
        build(Case(entry, target, sample, 0))
    except (Misfit, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return False
    return True


def tensor(arg: Arg, seed: int) -> torch.Tensor:
    """Random data for ``arg``; floating point is float64."""
    generator = torch.Generator().manual_seed(seed)
    dtype = TO_TORCH[arg.dtype]
    if arg.values is not None:
        return torch.tensor(
            arg.values, dtype=torch.float64 if dtype.is_floating_point else dtype
        ).reshape(arg.shape)
    uniform = torch.rand(arg.shape, generator=generator, dtype=torch.float64)
    if dtype.is_complex:
        return torch.complex(
            uniform, torch.rand(arg.shape, generator=generator, dtype=torch.float64)
        )
    if dtype == torch.bool:
        return uniform < 0.5
    scaled = arg.low + (arg.high - arg.low) * uniform
    return scaled if dtype.is_floating_point else scaled.floor().to(dtype)


def arguments(
    entry: Op, target: str, sample: Sample
) -> tuple[list[Arg | None], dict[str, Any], tuple[Any, ...]]:
    """Operands, completed attributes and the layout of the schema's tensor arguments, made as the
    capture makes them."""
    rename = entry.aten[target]
    given: list[Any] = list(sample.args)
    unread = dict(sample.attrs)
    operands: list[Arg | None] = []
    attrs: dict[str, Any] = {}
    layout: list[tuple[str, int | tuple[int | None, ...] | None]] = []
    for a in overload(target)._schema.arguments:
        name, kind = rename.get(a.name, a.name), str(a.type)
        if "Tensor" not in kind:
            if name not in unread and not a.has_default_value():
                raise Misfit(f"{entry.name}: the sample lacks {name!r}, which {target} needs")
            value = unread.pop(name, plain(a.default_value))
            attrs[name] = "f64" if value == "f32" and "dtype" in name else value
        elif name in unread:
            attrs[name] = unread.pop(name)  # a number where the schema has a tensor
        elif kind.startswith("List"):
            many = (
                given.pop(0)
                if given and isinstance(given[0], tuple)
                else [given.pop(0) for _ in range(len(given))]
            )
            layout.append((a.name, tuple(range(len(operands), len(operands) + len(many)))))
            operands += many
        else:
            if not given and not a.has_default_value():
                raise Misfit(f"{entry.name}: the sample has too few operands for {target}")
            layout.append((a.name, len(operands)))
            operands.append(given.pop(0) if given else None)
    if given or unread:
        raise Misfit(
            f"{entry.name}: {target} takes neither {given} nor {sorted(unread)} of the sample"
        )
    while operands and operands[-1] is None:
        operands.pop()
    return (
        operands,
        attrs,
        tuple((n, s) for n, s in layout if not (isinstance(s, int) and s >= len(operands))),
    )


def build(case: Case, dynamic: bool = False) -> Built:
    """The graph of one node whose operands are weights, so that no axis is frozen but by the rule;
    the rule has run.

    With ``dynamic`` the operands are inputs whose first dimension is known only at run time.
    """
    entry, sample = case.entry, case.sample
    if case.target:
        operands, attrs, layout = arguments(entry, case.target, sample)
        origin = Origin("aten", case.target, layout)
    else:
        operands, attrs, origin = list(sample.args), dict(sample.attrs), Origin()
    data = [
        None if a is None else tensor(a, zlib.crc32(f"{case} {i}".encode()))
        for i, a in enumerate(operands)
    ]
    fixed = [not dynamic or a is None or a.values is not None for a in operands]
    node = Node(
        entry.name,
        [None if t is None else Value(f"x{i}", type_of(t)) for i, t in enumerate(data)],
        attrs,
        [],
        origin,
    )
    with torch.no_grad():
        results = _several(run_node(node, data, {}, CPU))
    types, made = _shown(node, data, results, fixed) if dynamic else (data, results)
    graph = Graph(str(case))
    values: list[Value | None] = []
    for i, (arg, given, shown) in enumerate(zip(operands, data, types, strict=True)):
        if arg is None or given is None:
            values.append(None)
        elif fixed[i]:
            kind = "parameter" if arg.values is None else "constant"
            values.append(
                graph.add_weight(Weight(f"x{i}", type_of(given), lambda given=given: given, kind))
            )
        else:
            values.append(graph.add_input(f"x{i}", type_of(shown)))
    named = [
        (f"y{i}", type_of(r) if isinstance(r, torch.Tensor) else TensorType("none", ()))
        for i, r in enumerate(made)
    ]
    node = graph.add(entry.name, values, attrs, named, origin)
    graph.outputs = [v for v in node.outputs if sample.read is None or v.index in sample.read]
    graph.axes = axes = Axes()
    for v in values:
        if v is not None:
            axes.of(v)
    axes.node = node
    infer(axes, node, constant=False)
    axes.node = None
    return Built(
        graph,
        node,
        results,
        [t for t, f in zip(data, fixed, strict=True) if t is not None and not f],
    )


def _several(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _shown(
    node: Node, data: list[Any], results: list[Any], fixed: list[bool]
) -> tuple[list[Any], list[Any]]:
    """Operands and results without data, whose first dimensions are symbols where the operator
    allows."""
    mode = FakeTensorMode(shape_env=ShapeEnv())

    def shown(i: int, t: Any) -> Any:
        if t is None:
            return None
        sizes = [
            DimDynamic.DUCK if k == 0 and n > 1 and not fixed[i] else DimDynamic.STATIC
            for k, n in enumerate(t.shape)
        ]
        return mode.from_tensor(
            t, symbolic_context=StatelessSymbolicContext(sizes), source=ConstantSource(f"x{i}")
        )

    fakes = [shown(i, t) for i, t in enumerate(data)]
    try:
        with mode, torch.no_grad():
            return fakes, _several(run_node(node, fakes, {}, CPU))
    except (RuntimeError, TypeError, NotImplementedError, GuardOnDataDependentSymNode) as why:
        raise Misfit(f"torch cannot tell the shape: {why}") from why


def free_leaves(built: Built) -> list[Axis]:
    """The leaves of size > 1 that may shrink, in order of first appearance."""
    found: dict[Axis, None] = {}
    for value in (*built.node.inputs, *built.node.outputs):
        for a in (value.axes or ()) if value is not None else ():
            found.update(dict.fromkeys(x for x in leaves(a) if x.reason is None and x.size != 1))
    return list(found)


def choices(free: list[Axis], seed: int) -> Iterator[Mapping[Axis, np.ndarray]]:
    """Random subsets: of each leaf alone, then twice of all leaves together."""
    random = np.random.default_rng(seed)

    def some(a: Axis) -> np.ndarray:
        n = int(a.size)  # type: ignore[arg-type]
        return np.sort(random.permutation(n)[: random.integers(1, n)])

    for a in free:
        yield {a: some(a)}
    if len(free) > 1:
        for _ in range(2):
            yield {a: some(a) for a in free}


def check(case: Case, dynamic: bool = False) -> Built:
    """Raise ``Refused`` where the entry's rule, resize or silence is wrong for this case."""
    built = build(case, dynamic)
    _check_sizes(built)
    free = free_leaves(built)
    if not dynamic and case.sample.free is None:
        raise Refused(f"{case}: the sample does not say free={len(free)}; {_picture(built)}")
    if not dynamic and len(free) != case.sample.free:
        raise Refused(
            f"{case}: {len(free)} free axes {free}, the sample says {case.sample.free}; {_picture(built)}"
        )
    if any(isinstance(a.size, Sym) for a in free):
        raise Refused(f"{case}: an axis of dynamic size is free; {_picture(built)}")
    if not case.entry.random:
        _check_silence_of_nothing(built)
    for choice in choices(free, zlib.crc32(str(case).encode())):
        _check_cut(built, choice, case.entry)
    return built


def macs(built: Built) -> tuple[int, float]:
    """Multiply-accumulates as the entry says and as torch counts them; 0 where torch does not."""
    entry = lookup(built.node)
    assert entry is not None and entry.macs is not None
    ours = sum(
        int(np.prod([a.size for a in term], dtype=np.int64))
        for term in entry.macs(built.node)
        if term
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_node(built.node, [None if v is None else v.load() for v in built.node.inputs], {}, CPU)
    return ours, counter.get_total_flops() / 2


def _picture(built: Built) -> str:
    said = {v.name: v.axes for v in (*built.node.inputs, *built.node.outputs) if v is not None}
    reasons = dict.fromkeys(
        str(x.reason)
        for axes in said.values()
        for a in axes or ()
        for x in leaves(a)
        if x.reason is not None
    )
    return f"axes {said}, frozen by {list(reasons)}"


def _check_sizes(built: Built) -> None:
    for value, result in zip(built.node.outputs, built.results, strict=True):
        if value.axes is None:
            raise Refused(f"the rule left {value} without axes")
        if not isinstance(result, torch.Tensor):
            continue
        if len(value.axes) != len(value.shape) or not all(
            same(a.size, s) for a, s in zip(value.axes, value.shape, strict=True)
        ):
            raise Refused(f"{value} has the axes {value.axes}")


def _check_silence_of_nothing(built: Built) -> None:
    """With masks that are true throughout, the silenced operator is the operator."""
    entry, node = lookup(built.node), built.node
    if entry is None or entry.silence is None:
        return

    def present(value: Any, dims: Any) -> torch.Tensor | None:
        shape = operands[node.inputs.index(value)].shape
        return torch.ones(
            [s if k in {d % len(shape) for d in dims} else 1 for k, s in enumerate(shape)],
            dtype=torch.bool,
        )

    feed = iter(built.feed)
    operands = [
        None if v is None else v.load() if isinstance(v, Weight) else next(feed)
        for v in node.inputs
    ]
    with torch.no_grad():
        made = entry.silence(
            torch, node, operands, present, lambda *xs: run_node(node, list(xs), {}, CPU)
        )
    _compare(_several(made), built.results, "the silenced operator with nothing silenced")


def _check_cut(built: Built, choice: Mapping[Axis, np.ndarray], entry: Op) -> None:
    graph, kept = built.graph, Selection(choice)
    torch.manual_seed(0)
    full = evaluate(graph, built.feed, hook=silencer(kept, CPU), device=CPU)
    expected = [cut(y, v, kept) for y, v in zip(full, graph.outputs, strict=True)]
    twin = graph.copy()
    twin.kept = kept
    Slice().run(twin)
    for value, want in zip(twin.outputs, expected, strict=True):
        if len(value.shape) != want.dim() or any(
            isinstance(s, int) and s != n for s, n in zip(value.shape, want.shape, strict=True)
        ):
            raise Refused(
                f"keeping {_said(choice)}: the type says {value.type}, the kept indices {tuple(want.shape)}; {_picture(built)}"
            )
    torch.manual_seed(0)
    try:
        found = evaluate(
            twin,
            [cut(t, v, kept) for t, v in zip(built.feed, graph.inputs, strict=True)],
            device=CPU,
        )
    except (RuntimeError, IndexError, ValueError) as why:
        raise Refused(
            f"keeping {_said(choice)}, the cut operator does not run: {why}; {_picture(built)}"
        ) from why
    if entry.random and entry.family != "chance":  # memory that nobody wrote
        found, expected = (
            [torch.zeros_like(t) for t in found],
            [torch.zeros_like(t) for t in expected],
        )
    _compare(found, expected, f"keeping {_said(choice)} ({_picture(built)}), the cut operator")


def cut(array: torch.Tensor, value: Value, kept: Selection) -> torch.Tensor:
    """What is kept of ``array``, which stands for ``value``; factors of dynamic size are whole."""
    for d, a in enumerate(value.axes or ()):
        if not isinstance(a.size, Sym):
            continue
        known = int(
            np.prod([f.size for f in factors(a) if not isinstance(f.size, Sym)], dtype=np.int64)
        )
        mask = np.ones(1, dtype=bool)
        for f in factors(a):
            whole = (
                np.ones(array.shape[d] // known, dtype=bool)
                if isinstance(f.size, Sym)
                else np.isin(np.arange(f.size), kept.kept(f))
            )
            mask = np.outer(mask, whole).ravel()
        array = array.index_select(d, torch.from_numpy(np.flatnonzero(mask)))
    static = [
        None if isinstance(a.size, Sym) or not kept.changes(a) else kept.kept(a)
        for a in value.axes or ()
    ]
    return take(array, static)


def _said(choice: Mapping[Axis, np.ndarray]) -> str:
    return ", ".join(f"{k.tolist()} of {a!r}" for a, k in choice.items())


def _compare(found: list[Any], expected: list[Any], what: str) -> None:
    if len(found) != len(expected):
        raise Refused(f"{what} gives {len(found)} results, not {len(expected)}")
    for i, (y, want) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(want, torch.Tensor):
            continue
        if y.shape != want.shape or y.dtype != want.dtype:
            raise Refused(
                f"{what} gives {y.dtype}{list(y.shape)} as result {i}, not {want.dtype}{list(want.shape)}"
            )
        if not want.dtype.is_floating_point and not want.dtype.is_complex:
            if not torch.equal(y, want):
                raise Refused(f"{what} differs in result {i}, which is exact")
        elif not torch.allclose(y, want, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            off = (y - want).abs().nan_to_num(float("inf")).max().item()
            raise Refused(f"{what} differs in result {i} by {off:.3g}")
