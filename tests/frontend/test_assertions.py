"""What forward decides by the values of tensors: the graph goes as the example does, and values
that go another way are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.errors import IrpruneError, OtherOutcome
from irprune.frontend.torch.capture import capture
from irprune.frontend.torch.source import torch_source
from irprune.ir.parse import from_text
from irprune.ir.text import to_text
from irprune.run.interpret import evaluate


class Net(nn.Module):
    """Two layers with ``between`` them, which sees a mask."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 12), nn.Linear(12, 4), between

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).relu(), mask))


def branch(h: Tensor, mask: Tensor) -> Tensor:
    return h * 2 if (mask == 0).any() else h


def chosen(h: Tensor, mask: Tensor) -> Tensor:
    rows = (mask > 0).nonzero(as_tuple=True)[0]
    return h[rows] * 3 if rows.shape[0] > 2 else h[rows]


def counted(h: Tensor, mask: Tensor) -> Tensor:
    n = int(mask.sum())
    return h[:n] + 1 if n > 3 else h[:n]


def experts(h: Tensor, mask: Tensor) -> Tensor:
    scale = {f"expert_{i}": i + 0.5 for i in range(5)}
    for row in (mask > 0).nonzero():
        h = h * scale[f"expert_{row[0]}"]
    return h


def listed(h: Tensor, mask: Tensor) -> Tensor:
    return h * (1.5 if 0 in mask else 1)


WAYS = [branch, chosen, counted, experts, listed]
X, MASK = torch.randn(5, 6, generator=torch.Generator().manual_seed(3)), torch.ones(5).long()
OTHER = torch.tensor([1, 1, 0, 0, 0])


def net(between: Callable[[Tensor, Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    return Net(between).eval()


@pytest.mark.parametrize("between", WAYS, ids=lambda f: f.__name__)
def test_the_example_s_way_is_proven_and_another_is_refused(between: Any, tmp_path: Path) -> None:
    pruned = irprune.prune(net(between), (X, MASK), ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed and pruned.report.params.left < 0.7
    assert pruned.module(X, MASK).shape == (5, 4)
    with pytest.raises(
        ValueError, match=r"goes by values at test_assertions\.py:\d+: .*'\w+' is .* captured"
    ) as e:
        pruned.module(X, OTHER)
    assert "\n" not in str(e.value)
    assert any("goes by values at test_assertions.py" in note for note in pruned.report.notes)
    # whatever is cut, original and pruned module go the same way for the same mask
    whole = irprune.prune(net(between), (X, MASK), ratio=0)
    torch.testing.assert_close(whole.module(X, MASK), net(between)(X, MASK))
    # the file computes the example's way, the program asserts too
    file = pruned.onnx(tmp_path / "m.onnx")
    fed = {"x": X.numpy(), "mask": MASK.numpy()}
    session = onnxruntime.InferenceSession(file)
    made = session.run(None, {i.name: fed[i.name] for i in session.get_inputs()})[0]
    np.testing.assert_allclose(made, pruned.module(X, MASK).detach().numpy(), atol=1e-5)
    pruned.save(tmp_path / "out")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    torch.testing.assert_close(program(X, MASK), pruned.module(X, MASK))
    with pytest.raises(RuntimeError):
        program(X, OTHER)


@pytest.mark.parametrize("between", WAYS, ids=lambda f: f.__name__)
def test_a_pruned_module_that_is_pruned_again_still_refuses(between: Any) -> None:
    once = irprune.prune(net(between), (X, MASK), ratio=0.3)
    twice = irprune.prune(once.module, (X, MASK), ratio=0.3)
    assert twice.module(X, MASK).shape == (5, 4)
    with pytest.raises(ValueError, match="goes by values at"):
        twice.module(X, OTHER)


@pytest.mark.parametrize("between", WAYS, ids=lambda f: f.__name__)
def test_the_graph_itself_refuses_and_prints(between: Any) -> None:
    graph = capture(net(between), (X, MASK))
    source = torch_source(graph)
    with pytest.raises(OtherOutcome, match="goes by values at"):
        evaluate(graph, source.tensors((X, OTHER), {}))
    text = to_text(graph)
    assert to_text(from_text(text)) == text


def test_what_a_size_is_compared_with_is_all_that_is_asserted() -> None:
    pruned = irprune.prune(net(chosen), (X, MASK), ratio=0.5)
    kept = torch.tensor([1, 0, 1, 1, 0])
    expected = irprune.prune(net(chosen), (X, kept), ratio=0.5)
    torch.testing.assert_close(pruned.module(X, kept), expected.module(X, kept))
    assert pruned.module(torch.randn(9, 6), torch.ones(9).long()).shape == (9, 4)


def test_a_branch_on_activations_stops_a_cut_that_turns_it() -> None:
    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.b(h) if (h.sum() > self.total).all() else -self.b(h)

    torch.manual_seed(0)
    model = Sure().eval()
    model.register_buffer("total", model.a(X).relu().sum() * 0.9)
    with pytest.raises(IrpruneError, match=r"changes which way forward goes.*cut less \(ratio\)"):
        irprune.prune(model, (X,), ratio=0.5)
    model.register_buffer("total", torch.tensor(0.0))
    assert irprune.prune(model, (X,), ratio=0.5).report.proof.passed  # type: ignore[union-attr]


def test_a_real_number_that_is_read_is_refused() -> None:
    class Read(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.max())

    with pytest.raises(IrpruneError, match="cannot be captured"):
        capture(Read(), (X,))


def test_strides_of_open_sizes_are_not_numbers() -> None:
    """Windows that overlap: right at the example's sizes, which are then fixed."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu().view(x.shape[0], 4, 4, 12)
            steps = list(h.stride())
            return self.b(
                h.as_strided([x.shape[0], 7, 4, 12], [steps[0], steps[1] // 2, *steps[2:]])
            )

    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(2, 16, 6)
    whole = irprune.prune(model, (x,), ratio=0)
    torch.testing.assert_close(whole.module(x), model(x))
    assert whole.report.proof is not None and whole.report.proof.passed
    with pytest.raises(ValueError, match="captured with 2"):
        whole.module(torch.randn(3, 16, 6))
