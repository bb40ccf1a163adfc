"""Sizes are trees: what they evaluate to, how they print and what text is read as one."""

import operator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from irprune.ir.size import (
    Sym,
    UnboundSymbol,
    evaluate,
    linear,
    operation,
    parse_size,
    probe_of,
    same,
    symbol,
    symbols,
)

NAMES = ("n", "m", "s0")
_PYTHON = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "min": min,
    "max": max,
}
_LEAVES = st.sampled_from(NAMES).map(lambda n: (n,)) | st.integers(-9, 99).map(lambda k: (k,))
_PLANS = st.recursive(
    _LEAVES,
    lambda inner: (
        st.tuples(st.sampled_from(sorted(_PYTHON)), inner, inner)
        | st.tuples(st.just("neg"), inner)
        | st.tuples(st.just("//"), inner, st.integers(1, 9).map(lambda k: (k,)))
    ),
    max_leaves=8,
)
_BINDINGS = st.fixed_dictionaries({n: st.integers(0, 50) for n in NAMES})


def built(plan):
    """The tree of a nested tuple, without simplification."""
    head, *rest = plan
    if not rest:
        return symbol(head) if isinstance(head, str) else head
    return operation(head, *map(built, rest))


def computed(plan, bindings):
    """What the nested tuple says, in Python's own arithmetic."""
    head, *rest = plan
    if not rest:
        return bindings[head] if isinstance(head, str) else head
    values = [computed(p, bindings) for p in rest]
    return -values[0] if head == "neg" else _PYTHON[head](*values)


def tree(plan):
    try:
        return built(plan)
    except ZeroDivisionError:
        assume(False)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_PLANS, _BINDINGS)
def test_evaluates_as_python_does(plan, bindings):
    size = tree(plan)
    try:
        want = computed(plan, bindings)
    except ZeroDivisionError:
        if isinstance(size, Sym):
            with pytest.raises(ZeroDivisionError):
                evaluate(size, bindings)
        return
    assert evaluate(size, bindings) == want


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_PLANS)
def test_prints_and_parses_to_the_same_tree(plan):
    size = tree(plan)
    assert parse_size(str(size)) == size
    if isinstance(size, Sym):
        assert str(parse_size(str(size))) == str(size)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_PLANS, _BINDINGS)
def test_the_text_is_python_of_the_same_value(plan, bindings):
    """Emitted modules hold the text, so Python must read the tree in it."""
    size = tree(plan)
    try:
        want = computed(plan, bindings)
    except ZeroDivisionError:
        return
    assert eval(str(size), {"__builtins__": {"min": min, "max": max}}, bindings) == want


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_PLANS, _BINDINGS)
def test_a_linear_size_is_that_sum_everywhere(plan, bindings):
    size = tree(plan)
    found = linear(size)
    if found is None:
        return
    factors, constant = found
    try:
        value = evaluate(size, bindings)
    except ZeroDivisionError:
        return
    assert value == sum(k * bindings[n] for n, k in factors.items()) + constant


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_PLANS, _PLANS, _BINDINGS)
def test_arithmetic_leaves_out_only_what_changes_nothing(one, other, bindings):
    a, b = tree(one), tree(other)
    assume(isinstance(a, Sym) or isinstance(b, Sym))
    for op in (operator.add, operator.mul):
        try:
            want = op(computed(one, bindings), computed(other, bindings))
        except ZeroDivisionError:
            return
        assert evaluate(op(a, b), bindings) == want


@settings(max_examples=200, deadline=None, derandomize=True)
@given(_PLANS)
def test_the_probe_is_the_value_at_the_probe_point(plan):
    size = tree(plan)
    assert probe_of(size) == evaluate(size, {n: symbol(n).probe for n in NAMES})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=20) | st.text("nm0 1+-*/%()[]{}.,:=<>'\"@", max_size=20))
def test_any_text_is_a_size_or_refused(text):
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert isinstance(size, (int, Sym)) and parse_size(str(size)) == size


REFUSED = (
    *("", "n +", "f(n)", "'n'", "n // 0", "[n]", "n if n else m", "n.real", "n[0]", "lambda: n"),
    *("min()", "min(n, key=m)", "min(*n)", "max", "max(n) or 1", "2.5", "n / 2", "n ** n"),
    *("n ** 99999999", "9 ** 9 ** 9", "math.exp(n)", "__import__('os').getpid()", "True", "~n"),
    *("open('x')", "(n := 3)", "n = 3", "float(n)", "n\x00", "(" * 5000, "-" * 100_000 + "n"),
)


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: t[:24].replace("\0", "0"))
def test_other_text_is_refused_and_never_run(text):
    if text == "max":  # a name like any other
        assert parse_size(text) == symbol("max")
        return
    with pytest.raises(ValueError, match=r"is no size|cannot name"):
        parse_size(text)


def test_reading_text_runs_nothing(tmp_path):
    with pytest.raises(ValueError, match="is no size"):
        parse_size(f"__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()")
    assert not list(tmp_path.iterdir())


def test_a_symbol_without_a_value_is_named():
    n, m = symbol("n"), symbol("m")
    with pytest.raises(UnboundSymbol, match="m") as caught:
        evaluate(n * m, {"n": 3})
    assert caught.value.name == "m"
    assert evaluate(n * m, {"n": 3}, default=2) == 6
    assert evaluate(7, {}) == 7


def test_the_names_in_a_size_come_in_order():
    n, m = symbol("n"), symbol("m")
    assert list(symbols((n + 1) * m // n)) == ["n", "m", "n"] and list(symbols(4)) == []
    assert n.name == "n" and (n + 1).name == ""
    with pytest.raises(ValueError, match="cannot name a size"):
        symbol("n + 1")


def test_sums_and_products_are_known_to_be_equal():
    n, m = symbol("n"), symbol("m")
    assert same(n * m, m * n) and same((n + 1) * 2, n * 2 + 2) and not same(n, m)


def test_what_need_not_be_whole_inside_is_computed_as_real_numbers():
    size = parse_size("math.trunc((float(n) * 1.5))")
    assert isinstance(size, Sym) and evaluate(size, {"n": 5}) == 7
    assert str(size) == "math.trunc((float(n) * 1.5))"
    assert parse_size(str(size)) == size


def test_what_is_linear():
    n, m = symbol("n"), symbol("m")
    assert linear(n * 4 + m - 3) == ({"n": 4, "m": 1}, -3)
    assert linear((n * 4 + 6) // 2) == ({"n": 2}, 3)
    for no in (n * m, n // 2, n % 13, 10 // n):
        assert linear(no) is None
