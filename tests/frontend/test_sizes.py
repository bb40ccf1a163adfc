"""torch's symbolic sizes become trees of the same value."""

import pytest
import sympy
import torch
from torch.utils._sympy import functions as f

from irprune.frontend.torch.sizes import _symbolic, tree_of
from irprune.ir.size import Sym, evaluate, parse_size

s0, s1 = (sympy.Symbol(n, integer=True, positive=True) for n in ("s0", "s1"))
EXPRESSIONS = {
    "sum": (2 * s0 - 3 * s1 + 1, "(((s0 * 2) - (s1 * 3)) + 1)"),
    "product": (-s0 * s1 * 6, None),
    "power": (s0**3 + s0, None),
    "quotient": (f.FloorDiv(s0 + 1, 2), None),
    "clean": (f.CleanDiv(4 * s0, 2), None),
    "rational": ((s0 * 6 + 12) / 3 + s0, None),
    "rest": (f.Mod(s0, 3) + f.PythonMod(s0, 5), None),
    "modular": (f.ModularIndexing(s0, 3, 4), None),
    "extremes": (f.Max(1, s0 - 7) + f.Min(s1, 5), None),
    "scaled": (f.TruncToInt(f.ToFloat(s0) * 1.5), None),
    "ceiling": (f.CeilToInt(f.IntTrueDiv(s0, 4)), None),
    "floor": (f.FloorToInt(f.FloatTrueDiv(f.ToFloat(s0), 3.0)), None),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_tree_has_the_value_of_the_expression(name):
    expr, text = EXPRESSIONS[name]
    tree = _symbolic(expr)
    assert isinstance(tree, Sym) and parse_size(str(tree)) == tree
    assert text is None or str(tree) == text
    for a, b in ((1, 1), (3, 8), (12, 5), (40, 7)):
        want = expr.xreplace({s0: sympy.Integer(a), s1: sympy.Integer(b)})
        assert evaluate(tree, {"s0": a, "s1": b}) == int(want)


def test_numbers_and_symbols_alone():
    assert _symbolic(sympy.Integer(4)) == 4
    assert str(tree_of(s0)) == "s0"


def test_an_operation_that_sizes_do_not_have_is_a_symbol_of_its_own():
    made = _symbolic(f.Where(sympy.Gt(s0, 3), s0, s1))
    assert isinstance(made, Sym) and made.name.startswith("size_")
    assert made == _symbolic(f.Where(sympy.Gt(s0, 3), s0, s1))


def test_a_captured_model_holds_trees():
    from irprune.frontend.capture import capture

    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.interpolate(x[:, :, 1:], scale_factor=2.0)

    length = torch.export.Dim("length", min=4, max=64)
    graph = capture(Model(), (torch.randn(1, 2, 9),), dynamic_shapes={"x": {2: length}})
    size = graph.outputs[0].shape[2]
    name = graph.inputs[0].shape[2].name
    assert isinstance(size, Sym) and evaluate(size, {name: 9}) == 16
