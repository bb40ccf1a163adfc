"""The tests inside the onnx package: every case whose operator is in the table, through capture,
emission, onnxruntime and torch."""

from __future__ import annotations

import pytest

from irprune.testing import onnx_backend
from irprune.testing.onnx_backend import cases, check


@pytest.mark.parametrize(
    ("kind", "least"),
    [("node", 1600), ("simple", 15), ("pytorch-operator", 30), ("pytorch-converted", 80)],
)
@pytest.mark.filterwarnings("ignore")
def test_backend_cases(kind: str, least: int) -> None:
    whole = 0
    failed = {}
    for case in cases(kind):
        outcome = check(case)
        if outcome.failed:
            failed[case.name] = outcome.failed
        whole += not (outcome.failed or outcome.left_out or outcome.torch)
    assert failed == {}
    assert whole >= least, "fewer cases pass through the torch module than before"


def shrink(x, *, bias, lambd):  # type: ignore[no-untyped-def]
    return 2 * x


@pytest.mark.filterwarnings("ignore")  # of onnx, where cases are collected
def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees an operator that computes something else."""
    from irprune.ops.onnx import functions

    case = next(c for c in cases() if c.name == "test_shrink_soft")
    assert check(case).failed == ""
    monkeypatch.setattr(functions, "shrink", shrink)
    assert "module" in check(case).failed


@pytest.mark.filterwarnings("ignore")  # of onnx, where cases are collected
def test_a_changed_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in cases() if c.name == "test_relu")
    whole = onnx_backend.emit_onnx

    def other(graph: object) -> object:
        model = whole(graph)  # type: ignore[arg-type]
        model.graph.node[0].doc_string = "lost"
        return model

    monkeypatch.setattr(onnx_backend, "emit_onnx", other)
    assert "differs" in check(case).failed
