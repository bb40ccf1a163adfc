"""What torch's ONNX exporter refuses without help."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import irprune
from irprune.errors import IrpruneError

# Where torchvision needs its operators declared, see tools/zoo.py
if importlib.util.find_spec("tvshim") is not None:
    importlib.import_module("tvshim")
transformers = pytest.importorskip("transformers")


class Experts(nn.Module):
    """Rows sorted by expert, each block times the matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (
            nn.Parameter(torch.randn(3, 8, 16)),
            nn.Parameter(torch.randn(3, 16, 8)),
        )
        self.register_buffer("ends", torch.tensor([2, 2, 7], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        matmul = torch.ops.transformers.grouped_mm_fallback
        made: Tensor = matmul(torch.relu(matmul(x, self.up, self.ends)), self.down, self.ends)
        return made


def test_heads_joined_by_a_reshape_that_the_exporter_makes_a_view(tmp_path: Path) -> None:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=32, depths=[1, 1], num_heads=[4, 4], window_size=4
    )
    pruned = irprune.prune(
        transformers.SwinModel(config).eval(), kwargs={"pixel_values": torch.randn(1, 3, 32, 32)}
    )
    pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.max_error < 1e-5
    # Of a width that windows are put together again over the batch alone stays open in the file
    batch, _, _, width = (
        onnx.load(str(tmp_path / "m.onnx")).graph.input[0].type.tensor_type.shape.dim
    )
    assert batch.dim_param and width.dim_value == 32
    pruned.onnx(tmp_path / "m.onnx", parity=False)  # and is said once
    said = [n for n in pruned.report.notes if "m.onnx takes pixel_values:3 at the captured" in n]
    assert len(said) == 1
    assert pruned.module(pixel_values=torch.randn(1, 3, 32, 64)) is not None


def test_experts_as_one_product_per_block(tmp_path: Path) -> None:
    importlib.import_module("transformers.integrations.moe")
    pruned = irprune.prune(Experts().eval(), (torch.randn(7, 8),))
    pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.max_error < 1e-5
    assert pruned.module.state_dict()["up"].shape == (3, 8, 8)


class Sums(nn.Module):
    """Messages summed where many meet."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        h = self.inner(x)
        made: Tensor = self.outer(torch.zeros_like(h).index_add(0, index, h, alpha=2))
        return made


def test_sums_over_an_index_use_no_operator_that_loses_additions(tmp_path: Path) -> None:
    pruned = irprune.prune(Sums().eval(), (torch.randn(64, 8), torch.randint(0, 4, (64,))))
    path = pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.max_error < 1e-5
    assert "ScatterND" not in {node.op_type for node in onnx.load(path).graph.node}


class Odd(nn.Module):
    """An inverse error function, complex numbers with one dimension more, a squeeze that does
    nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("turns", torch.randn(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.erfinv(torch.sin(self.inner(x)) * 0.9).squeeze(0).view(2, 3, 8, 2)
        turned = torch.view_as_complex(h).unsqueeze(-2) * torch.view_as_complex(
            self.turns
        ).unsqueeze(1)
        made: Tensor = self.outer(torch.view_as_real(turned).flatten(2))
        return made


def test_operators_that_the_exporter_lacks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(Odd().eval(), (torch.randn(2, 3, 8),))
    pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.max_error < 1e-5


class Padded(nn.Module):
    """Zeros around what is negative win the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(
            nn.functional.max_pool2d(nn.functional.pad(-self.first(x).abs(), (1, 1, 1, 1)), 3, 2)
        )
        return made


def test_a_pad_in_front_of_a_max_pool_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pruned = irprune.prune(Padded().eval(), (torch.randn(1, 3, 8, 8),))
    pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.max_error < 1e-5


class Windows(nn.Module):
    """Attention within windows, over more leading dimensions than one or none; with or without a
    mask, or one for all windows."""

    def __init__(self, leading: int, mask: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.leading, self.mask = leading, mask
        self.register_buffer("bias", torch.randn(3, 4, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        n, w, t, _ = x.shape
        q, k, v = (
            layer(x).reshape(n, w, t, 4, -1).transpose(2, 3) for layer in (self.q, self.k, self.v)
        )
        mask = {"none": None, "own": q @ k.transpose(-1, -2), "shared": self.bias}[self.mask]
        if self.leading == 0:
            q, k, v = (x.reshape(-1, t, 4) for x in (q, k, v))
            mask = mask.reshape(-1, t, t) if self.mask == "own" else None
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        made: Tensor = self.out(y.reshape(n, w, -1, t, 4).transpose(2, 3).flatten(3))
        return made


@pytest.mark.parametrize("leading", [0, 2])
@pytest.mark.parametrize("mask", ["none", "own", "shared"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_over_other_than_four_dimensions(
    tmp_path: Path, leading: int, mask: str, dynamic: bool
) -> None:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    pruned = irprune.prune(
        Windows(leading, mask).eval(), (torch.randn(2, 3, 5, 16),), dynamic_shapes=shapes
    )
    assert pruned.report.params.left < 0.7
    pruned.onnx(tmp_path / "m.onnx")
    assert pruned.report.parity is not None and pruned.report.parity.max_error < 1e-5


def test_an_element_type_that_onnxruntime_has_no_kernel_for_is_named(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(8, 16), nn.Linear(16, 4)
            self.b = nn.Linear(16, 16, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.c(self.b(self.a(x).to(torch.bfloat16)).float().relu())
            return made

    pruned = irprune.prune(Mixed(), (torch.randn(3, 8),), proof=False)
    said = r"CPU provider has no kernel for Gemm of bfloat16 \('.*'\).*float32"
    with pytest.raises(IrpruneError, match=said):
        pruned.onnx(tmp_path / "m.onnx")
