"""What emitted modules carry to refuse values by which forward would go another way, in torch."""

# mypy: ignore-errors
from __future__ import annotations

import torch


def assert_value(*of, left, relation, right, dim, where, what="it"):
    """Refuse values that the graph was not captured with.

    ``left`` is compared with ``right``; without ``left`` it is the size ``dim`` of the tensor that
    is given, or the tensor's one value; ``what`` says what that is. The result says nothing: it is
    there to be depended on."""
    token = torch.ones((), dtype=torch.bool, device=of[0].device if of else None)
    if of and of[0].is_meta:
        return token
    why = f"forward goes by values at {where}: "
    known = "the model was captured " + (
        f"with {right}" if relation == "==" else f"where it is {relation} {right}"
    )
    one = bool(of) and dim is None
    if of:
        left = of[0].shape[dim] if dim is not None else of[0] != 0 if type(right) is bool else of[0]
    if one and not torch.compiler.is_compiling():
        left = left.item()
    holds = {
        "==": lambda: left == right,
        "!=": lambda: left != right,
        "<": lambda: left < right,
        "<=": lambda: left <= right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
    }[relation]()
    if not torch.compiler.is_compiling():
        if not holds:
            raise ValueError(f"{why}{what} is {left} here, {known}")
    elif one:
        torch._assert_async(holds, why + known)
    else:
        torch._check(holds, lambda: why + known)
        torch._assert_async(token, "sizes: " + why)  # says to a later capture that there is a check
    return token


def with_dependencies(x, *tokens):
    """``x``, once everything that ``tokens`` come from has run."""
    return x
