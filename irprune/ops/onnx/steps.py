"""Steps that several readers end with: what a runtime fuses into an operator stands as operators of
its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irprune.ops.onnx.importer import PREVIOUS, Step, UnsupportedUse

__all__ = ["activated", "hard_sigmoid", "swish"]


def activated(name: str, parameters: Sequence[float]) -> list[Step]:
    """The activation that a fused operator names, over the result of the step before.

    Args:
        name: ONNX's name of the activation, "" for none.
        parameters: its attributes in the order of their names; ONNX's defaults where empty.

    Raises:
        UnsupportedUse: for an activation that no step says.
    """
    if not name:
        return []
    if name == "HardSigmoid":
        alpha, beta = parameters or (0.2, 0.5)
        return hard_sigmoid(alpha, beta, PREVIOUS)
    attrs: dict[str, Any] = {}
    if name == "LeakyRelu":
        attrs = {"negative_slope": parameters[0] if parameters else 0.01}
    elif name == "Clip":
        attrs = dict(zip(("min", "max"), parameters, strict=False))
    entries = {"Relu": "relu", "LeakyRelu": "leaky_relu", "Clip": "clamp"}
    entries |= {"Sigmoid": "sigmoid", "Tanh": "tanh"}
    if name not in entries:
        raise UnsupportedUse(f"the activation {name}")
    return [Step(entries[name], (PREVIOUS,), attrs)]


def hard_sigmoid(alpha: float, beta: float, operand: int = 0) -> list[Step]:
    """``max(0, min(1, alpha * x + beta))``: torch's own where alpha is a sixth and beta a half."""
    if abs(6 * alpha - 1) < 1e-6 and beta == 0.5:
        return [Step("hardsigmoid", (operand,), {})]
    return [
        Step("mul", (operand,), {"other": alpha}),
        Step("add", (PREVIOUS,), {"other": beta}),
        Step("clamp", (PREVIOUS,), {"min": 0.0, "max": 1.0}),
    ]


def swish(alpha: float) -> list[Step]:
    """``x * sigmoid(alpha * x)``."""
    if alpha == 1:
        return [Step("silu", (0,), {})]
    return [
        Step("mul", (0,), {"other": alpha}),
        Step("sigmoid", (PREVIOUS,), {}),
        Step("mul", (0, PREVIOUS), {}),
    ]
