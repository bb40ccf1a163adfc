"""Results that depend on values, which fake tensors do not have: numbers that are read and sizes
that follow from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from irprune.frontend.torch.build import (
    Builder,
)
from irprune.frontend.torch.constant_values import from_constants
from irprune.frontend.torch.decisions import Decisions
from irprune.frontend.torch.declined import Declined, SizesOfValues
from irprune.frontend.torch.size_nodes import as_torch
from irprune.frontend.torch.sizes import size_of
from irprune.frontend.torch.tensor_table import TensorTable
from irprune.frontend.torch.user_line import user_line
from irprune.ir.graph import TensorType, Value
from irprune.ir.open_sizes import OpenSizes
from irprune.ir.size import Sym, evaluate, number
from irprune.ops.dtypes import FROM_TORCH, TO_TORCH
from irprune.ops.torch.dispatched import all_true_target, reads_number, reads_truth

__all__ = ["ByValue"]


class ByValue(TensorTable):
    """A table of tensors that also tells what operators return where fake tensors cannot.

    Args:
        decisions: Knows the values of the example, and what was decided by them.
    """

    def __init__(
        self, build: Builder, fake: FakeTensorMode, model: nn.Module, decisions: Decisions
    ) -> None:
        super().__init__(build, fake, model)
        self.decisions = decisions

    def _known(self, func: Any, values: Any, kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns where fake tensors cannot tell: plain data as it is, tensors as
        constants of the program.

        Raises LookupError where it does not follow from constants.
        """
        if reads_number(func) and _asserted(values[0]):
            return True  # the other answer raises
        made = from_constants(func, values, kwargs, self.build.graph, self.build.sizes)
        return pytree.tree_map(lambda x: self._leaf(x) if isinstance(x, torch.Tensor) else x, made)

    def _number(self, func: Any, fakes: Any, values: Any, named: dict[str, Any], why: str) -> Any:
        """What reading one value gives: a whole number as a symbol, a truth as it is in the
        example, which is asserted."""
        kind = fakes[0]
        truth = reads_truth(func) or kind.dtype == torch.bool
        if not truth and (kind.is_floating_point() or kind.is_complex()):
            raise Declined(f"{func} {why}")
        if not truth and not self.decisions.by_example:
            made = self._sized(func, fakes, {})
            number = self._call(func, values, named, TensorType("i64", ()))
            number.producer.attrs["symbol"] = size_of(made)
            return made
        sizes = self.build.sizes
        try:
            found = self.decisions.real(func, values, named, sizes)
        except LookupError as unknown:
            raise Declined(f"{func} {unknown}") from unknown
        if truth:
            self.decisions.assert_that(values[0], "==", bool(found), user_line())
            return bool(found)
        assert sizes is not None
        own = sizes.of_values(int(found))
        number = self._call(func, values, named, TensorType("i64", ()))
        number.producer.attrs["symbol"] = own
        return as_torch(own, sizes)

    def _by_example(
        self, func: Any, fakes: Any, own: dict[str, Any], values: Any, named: dict[str, Any]
    ) -> Any:
        """What ``func`` returns where its size depends on values: tensors of the size that they
        have in the example, which a symbol stands for."""
        sizes = self.build.sizes
        assert sizes is not None
        made = self._sized(func, fakes, own)
        try:
            real = self.decisions.real(func, values, named, sizes)
        except LookupError as unknown:
            raise Declined(f"{func} {unknown}") from unknown
        several = isinstance(made, (list, tuple))
        others = self._at_others(func, values, named)
        symbols: dict[str, Any] = {}
        twins, types = [], []
        pairs = list(zip(*((made, real) if several else ([made], [real])), strict=True))
        for i, (fake, tensor) in enumerate(pairs):
            shape: list[Any] = list(tensor.shape)
            for d, s in enumerate(fake.shape):
                if isinstance(s, torch.SymInt):
                    text = str(s.node.expr)
                    symbols[text] = symbols.get(text) or self._symbol(sizes, shape[d])
                    shape[d] = symbols[text]
                elif any(len(at) <= i or list(at[i])[d : d + 1] != [s] for at in others):
                    shape[d] = self._symbol(sizes, shape[d])
            types.append(TensorType(FROM_TORCH[tensor.dtype], tuple(shape)))
            stand_in = [sizes.value(s) for s in shape]
            with self.fake:
                twins.append(torch.empty(stand_in, dtype=tensor.dtype, device=tensor.device))
        self.build.sizes = None
        try:
            recorded = self._call(func, values, named, types if several else types[0])
        finally:
            self.build.sizes = sizes
        results = recorded if several else [recorded]
        shown = [self.shown(t, v) for t, v in zip(twins, results, strict=True)]
        for tensor in shown:
            self.aliases.made(id(tensor))
        return type(made)(shown) if several else shown[0]

    def _symbol(self, sizes: OpenSizes, real: int) -> Sym:
        """A symbol for a size that is ``real`` in the example."""
        loops = self.decisions.loops
        return sizes.of_values(real if loops is None else loops.size(real), real)

    def _at_others(self, func: Any, values: Any, named: dict[str, Any]) -> list[list[Any]]:
        """The shapes of the results of ``func`` where the sizes that are open have other values;
        none where no size is."""
        sizes = self.build.sizes
        leaves = [v for v in pytree.tree_leaves((values, named)) if isinstance(v, Value)]
        if sizes is None or all(v.type.static for v in leaves):
            return []
        found: list[list[Any]] = []
        for more in (1, 4):
            bindings = {n: s + more for n, s in sizes.example.items()}

            def blank(x: Any, bindings: dict[str, int] = bindings) -> Any:
                if isinstance(x, Value):
                    shape = [evaluate(s, bindings) for s in x.shape]
                    with self.fake:
                        return torch.empty(shape, dtype=TO_TORCH[x.dtype])
                return number(x, bindings) if isinstance(x, Sym) else x

            args, kwargs = pytree.tree_map(blank, (values, named))
            try:
                made = self._sized(func, args, kwargs)
            except Exception:  # sizes that the operator does not take: nothing is known of them
                found.append([])
                continue
            several = made if isinstance(made, (list, tuple)) else [made]
            found.append([t.shape for t in several])
        return found

    def _sized(self, func: Any, fakes: Any, kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns where its size, or the whole number that it reads, depends on
        values: a symbol stands for that."""
        if self.build.sizes is not None and not self.decisions.by_example:
            raise SizesOfValues("sizes that depend on values")
        if self.fake.shape_env is None:
            self.fake.shape_env = ShapeEnv(
                allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False
            )
        sizes = self.fake.shape_env
        closed = sizes.settings
        sizes.settings = replace(
            closed, allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True
        )
        try:
            return func(*fakes, **kwargs)
        finally:
            sizes.settings = closed


def _asserted(value: Any) -> bool:
    """Whether ``value`` is what ``torch._check_tensor_all`` reads."""
    node = value.producer if isinstance(value, Value) else None
    return node is not None and all_true_target(node.origin.target)
