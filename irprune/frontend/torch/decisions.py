"""What forward decides by the values of tensors, as the example call has them.

The capture goes the way that the example goes. What it went by is asserted in the graph, so that
values which would go another way are refused instead of computed wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from irprune.frontend.torch.constant_values import from_constants
from irprune.frontend.torch.hit_loops import HitLoops
from irprune.ir.graph import Graph, Node, Origin, TensorType, Value
from irprune.ir.open_sizes import OpenSizes, Settled
from irprune.ir.size import Sym
from irprune.ir.symbols import defined_symbols, names_in
from irprune.ops.registry import lookup

__all__ = ["Decisions", "asserted_at", "asserts_sizes", "short_line"]


class Decisions:
    """The values of the example call, computed as far as forward asks for them.

    Args:
        graph: the graph as it is recorded.
        unique: makes a name that nothing else has.
        by_example: whether sizes that depend on values are those of the example where forward goes
            by them, instead of unknown.
        loops: the loops over what a mask hits that are captured over all of it, where those are.
    """

    def __init__(
        self,
        graph: Graph,
        unique: Callable[[str], str],
        by_example: bool,
        loops: HitLoops | None = None,
    ) -> None:
        self.graph, self._unique, self.by_example = graph, unique, by_example
        self.loops = loops
        self.asserts_sizes = False  # whether forward is a pruned module's, which checks such sizes
        self._held: dict[Value, Any] = {}
        self._inputs_of: dict[Value, frozenset[Value]] = {}

    def given(self, value: Value, tensor: torch.Tensor) -> None:
        """``tensor`` is what the example hands to the input ``value``."""
        self._held[value] = tensor

    def real(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sizes: OpenSizes | None,
    ) -> Any:
        """What ``func`` gives in the example call. Raises LookupError where that is not known."""
        if any(v not in self._held or v.dtype == "none" for v in self.graph.inputs):
            raise LookupError("depends on inputs that have no values")
        if any(
            t.is_meta for v in self.graph.inputs if isinstance(t := self._held[v], torch.Tensor)
        ):
            raise LookupError("depends on inputs that have no values")
        return from_constants(func, args, kwargs, self.graph, sizes, self._held)

    def assert_that(
        self,
        of: Value | None,
        relation: str,
        right: Any,
        where: str,
        left: Any = None,
        dim: int | None = None,
        before: Node | None = None,
    ) -> None:
        """Record that ``left``, or the size ``dim`` of ``of``, or its one value, is to ``right`` in
        that relation."""
        attrs = {"left": left, "relation": relation, "right": right, "dim": dim}
        attrs["where"] = short_line(where) or "a line of torch"
        if self.loops is not None and attrs["where"] in self.loops.waived:
            return
        attrs["what"] = self._said(of, left, dim)
        made = [(self._unique("assert_value"), TensorType("bool", ()))]
        origin = Origin("irprune", "assert_value", (), "", where)
        operands = [] if of is None else [of]
        self.graph.add("assert_value", operands, attrs, made, origin, before)

    def _said(self, of: Value | None, left: Any, dim: int | None) -> str:
        """What is compared, by the inputs that it comes from."""
        if of is not None and dim is not None and of in self.graph.inputs:
            return f"dimension {dim} of '{of.name}'"
        if of is None:
            named = set(names_in(left))
            sizes = [
                f"dimension {d} of '{v.name}'"
                for v in self.graph.inputs
                for d, size in enumerate(v.type.shape or ())
                if named.intersection(names_in(size))
            ]
            return f"a size made of {', '.join(sizes[:3])}" if sizes else "it"
        behind = self._behind(of)
        names = [f"'{v.name}'" for v in self.graph.inputs if v in behind]
        what = "what it computes" if dim is None else f"dimension {dim} of what it computes"
        return f"{what} of {', '.join(names[:3])}" if names else "it"

    def _behind(self, value: Value) -> frozenset[Value]:
        """The inputs that ``value`` is computed from. What is found for one value serves those
        that are computed from it: a loop over experts asserts thousands of things."""
        found, waiting = self._inputs_of, [value]
        found.update((v, frozenset((v,))) for v in self.graph.inputs)
        while waiting:
            one = waiting[-1]
            of = [] if one.producer is None else [v for v in one.producer.inputs if v is not None]
            missing = [] if one in found else [v for v in of if v not in found]
            if not missing:
                waiting.pop()
                if one not in found:
                    found[one] = frozenset().union(*(found[v] for v in of))
            waiting += missing
        return found[value]

    def settle(self, settled: Settled) -> None:
        """Record the guards on sizes that depend on values, each as soon as those are known."""
        told = {
            name: (node, i, dim)
            for node in reversed(self.graph.nodes)
            for name, i, dim in defined_symbols(node)
        }
        order = {node: k for k, node in enumerate(self.graph.nodes)}
        following = dict(pairwise(self.graph.nodes))
        for guard in settled.asserted:
            tellers = [told[name][0] for name in guard.symbols if name in told]
            before = following.get(max(tellers, key=order.__getitem__))
            names = guard.symbols
            bare = isinstance(guard.left, Sym) and guard.left.name == names[0]
            if bare and not isinstance(guard.right, Sym):
                node, i, dim = told[names[0]]
                of = node.outputs[i] if dim is not None else node.operand(0)
                self.assert_that(
                    of, guard.relation, guard.right, guard.where, dim=dim, before=before
                )
            else:
                self.assert_that(
                    None, guard.relation, guard.right, guard.where, guard.left, before=before
                )

    def finish(self) -> None:
        """Let the first output depend on what is asserted, and tell the user."""
        graph = self.graph
        asserted = [
            node for node in graph.nodes if (entry := lookup(node)) is not None and entry.asserts
        ]
        if not asserted:
            return
        tokens = [node.out for node in asserted]
        result = graph.outputs[0]
        made = [(self._unique("result"), result.type)]
        origin = Origin("irprune", "with_dependencies")
        graph.outputs[0] = graph.add("with_dependencies", [result, *tokens], {}, made, origin).out
        lines = list(dict.fromkeys(str(node.attrs["where"]) for node in asserted))
        more = f" and {len(lines) - 3} more lines" if len(lines) > 3 else ""
        graph.notes.append(
            f"forward goes by values at {', '.join(lines[:3])}{more}, and is captured as the example goes: "
            "the module refuses values that go another way (an ONNX file cannot)"
        )


_SAID = "forward goes by values at "  # what irprune.ops.assertions raises begins with


def asserted_at(message: str) -> str:
    """The line that an assertion of a pruned module names; "" for any other message."""
    return message.removeprefix(_SAID).partition(": ")[0] if message.startswith(_SAID) else ""


def asserts_sizes(message: str) -> bool:
    """Whether an assertion of a pruned module says that it checks sizes that depend on values."""
    return message.startswith(f"sizes: {_SAID}")


def short_line(where: str) -> str:
    """``file:line`` without the folders."""
    return where.replace("\\", "/").rpartition("/")[2]
