"""What an operator returns on types that it has been called on before is what torch returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import irprune
import models
from irprune.frontend.torch import result_types
from irprune.frontend.torch.views import shares

aten = torch.ops.aten
FAKE = FakeTensorMode()


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(result_types, "_KNOWN", {})
    with torch.inference_mode():
        yield


def fakes(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Any]:
    with FAKE:
        return [torch.empty(s, dtype=dtype) for s in shapes]


def said(x: torch.Tensor) -> tuple[Any, ...]:
    return (x.shape, x.stride(), x.storage_offset(), x.dtype, x.device, x.is_inference())


KEPT = {
    "conv": (aten.conv2d.default, [(2, 3, 8, 8), (4, 3, 3, 3)], (None, [2, 2], [1, 1])),
    "sum": (aten.add.Tensor, [(2, 3), (3,)], ()),
    "transposed": (aten.transpose.int, [(2, 3, 4)], (0, 2)),
    "a part": (aten.slice.Tensor, [(6, 4)], (0, 2, 5)),
    "a reshape that is a view": (aten.reshape.default, [(6, 4)], ([3, 8],)),
    "in place": (aten.relu_.default, [(6, 4)], ()),
    "converted": (aten._to_copy.default, [(6, 4)], ()),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_result_is_made_as_torch_makes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    func, shapes, rest = KEPT[name]
    first, second = fakes(*shapes), fakes(*shapes)
    plain = result_types.call(FAKE, func, (*first, *rest), {})
    assert len(result_types._KNOWN) == 1
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", lambda *a, **k: pytest.fail("called"))
    again = result_types.call(FAKE, func, (*second, *rest), {})
    monkeypatch.undo()
    assert said(again) == said(plain)
    assert (again is second[0]) == (plain is first[0])
    assert [shares(again, t) for t in second] == [shares(plain, t) for t in first]
    assert torch._C._dispatch_key_set(again) == torch._C._dispatch_key_set(plain)


def test_other_types_and_arguments_are_other_calls() -> None:
    (x,), (y,), (z,) = fakes((4, 4)), fakes((4, 4), dtype=torch.int64), fakes((4, 8))
    with FAKE:
        t = torch.empty(4, 4).t()
    for arg in (x, y, z, t):
        for scale in (2, 2.0, True):
            made = result_types.call(FAKE, aten.mul.Scalar, (arg, scale), {})
            assert said(made) == said(aten.mul.Scalar(arg, scale)), (arg, scale)
    wide = result_types.call(FAKE, aten.sum.default, (y,), {"dtype": torch.float64})
    assert wide.dtype == torch.float64
    assert result_types.call(FAKE, aten.sum.default, (y,), {}).dtype == torch.int64


def test_what_does_not_follow_from_types_goes_to_torch() -> None:
    (x,) = fakes((1, 4))
    with FAKE:
        known = torch.tensor(3)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (aten.contiguous.default, (x,)),  # the operand itself
        (aten.squeeze_.dim, (x, 0)),  # its type is another afterwards
        (aten.split.Tensor, (x, 2)),  # several results
        (aten.add.Tensor, (known, 1)),  # values are known
        (aten.numel.default, (x,)),
    ]
    for func, args in calls:
        result_types.call(FAKE, func, args, {})
    assert result_types._KNOWN == {}


@pytest.mark.parametrize(
    "name", ["resnet50", "bert", "mha_packed", "inplace", "qkv_unbind", "swin_t", "wavenet", "moe"]
)
@pytest.mark.parametrize("dynamic", ["all", "none"])
def test_a_capture_from_what_is_known_is_the_same(
    name: str, dynamic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode(False):
        case = models.get(name)
        model, (args, kwargs) = case.build(small=True).eval(), case.example_inputs(small=True)
        first = irprune.capture(model, args, kwargs, dynamic=dynamic)
        known = dict(result_types._KNOWN)
        second = irprune.capture(model, args, kwargs, dynamic=dynamic)
        assert known == result_types._KNOWN  # nothing was new
        monkeypatch.setattr(result_types, "_key", lambda *x: None)
        assert known
        assert (
            str(first) == str(second) == str(irprune.capture(model, args, kwargs, dynamic=dynamic))
        )
