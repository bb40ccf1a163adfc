"""Models that libraries give by name: pruned, trained by the library's own loss, fused, exported.

Skipped where a library is missing."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import irprune
from irprune.api.load import load_model
from irprune.errors import IrpruneError
from irprune.run.inputs import flat_tensors


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ultralytics asks no host and writes no settings of the user's."""
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))


def package(name: str) -> Any:
    if importlib.util.find_spec("tvshim") is not None:
        importlib.import_module("tvshim")
    return pytest.importorskip(name)


def labels(task: str, side: int = 128) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {
        "img": torch.rand(2, 3, side, side),
        "cls": torch.randint(0, 80, (6, 1)).float(),
        "bboxes": torch.rand(6, 4) * 0.4 + 0.3,
        "batch_idx": torch.arange(2).repeat_interleave(3).float(),
    }
    if task == "segment":
        made["masks"] = (torch.rand(2, side // 4, side // 4) > 0.5).float()
        made["sem_masks"] = torch.randint(0, 80, (2, side // 4, side // 4))
    if task == "pose":
        made |= {"keypoints": torch.rand(6, 17, 3), "cls": torch.zeros(6, 1)}
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "yolo11n",
        "yolov8n",
        "yolov8n-seg",
        "yolov8n-pose",
        "yolov10n",
        "yolo12n",
        "yolov5n",
        "yolov9t",
    ],
)
def test_ultralytics(name: str, tmp_path: Path) -> None:
    package("ultralytics")
    from ultralytics.cfg import get_cfg

    spec = f"ultralytics:{name}.yaml"
    loaded = load_model(spec, ["1x3x128x128"])
    assert load_model(spec).args[0].shape == (1, 3, 640, 640)
    pruned = irprune.prune(loaded.model, loaded.args)
    assert pruned.report.params.left < 0.5
    assert pruned.report.proof.other_sizes  # type: ignore[union-attr]
    for batch, side in ((4, 160), (1, 64)):
        x = torch.rand(batch, 3, side, side)
        assert flat_tensors(pruned.module(x))[0].shape[0] == batch
    mine = pruned.apply_to(copy.deepcopy(loaded.model))
    mine.args = get_cfg()
    mine.train()
    loss, _ = mine(labels({"seg": "segment", "pose": "pose"}.get(name.partition("-")[2], "detect")))
    loss.sum().backward()
    assert all(p.grad is not None for p in mine.parameters() if p.requires_grad)
    mine.eval()
    x = torch.rand(2, 3, 128, 128)
    before = flat_tensors(mine(x))
    # fused, YOLOv10 leaves its second head out
    for a, b in zip(flat_tensors(mine.fuse(verbose=False)(x))[:1], before, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    if name == "yolo11n":
        import onnxruntime

        session = onnxruntime.InferenceSession(pruned.onnx(tmp_path / "m.onnx"))
        x = torch.rand(3, 3, 96, 160)
        (first, *_) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(first), pruned.module(x)[0], rtol=1e-3, atol=1e-3
        )


def test_names_of_ultralytics() -> None:
    package("ultralytics")
    with pytest.raises(IrpruneError, match=r"no model 'yolo11.yml'; near matches: yolo11"):
        load_model("ultralytics:yolo11.yml")
    with pytest.raises(IrpruneError, match="trust=True"):
        load_model("ultralytics:yolo11n.pt")
    with pytest.raises(IrpruneError, match="without weights"):
        load_model("ultralytics:yolo11n.yaml", pretrained=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Unet/mobilenet_v2", "FPN/resnet18", "Segformer/resnet18"])
def test_segmentation_models(name: str) -> None:
    package("segmentation_models_pytorch")
    loaded = load_model(f"smp:{name}", ["1x3x64x64"])
    report = irprune.prune(loaded.model, loaded.args).report
    assert report.params.left < 0.4
    assert report.proof.passed  # type: ignore[union-attr]
    with pytest.raises(IrpruneError, match="near matches: resnet18"):
        load_model("smp:Unet/resnet17")


SMALL: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
    },
    "UNet2DConditionModel": {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    },
    "SD3Transformer2DModel": {
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "sample_size": 16,
        "in_channels": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 32,
    },
    "FluxTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "in_channels": 8,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL)
def test_diffusers(name: str, tmp_path: Path) -> None:
    diffusers = package("diffusers")
    getattr(diffusers, name)(**SMALL[name]).save_pretrained(tmp_path)
    loaded = load_model(f"diffusers:{tmp_path}")
    assert type(loaded.model).__name__ == name
    report = irprune.prune(loaded.model, loaded.args, loaded.kwargs).report
    assert report.params.left < 0.4
    assert report.proof.passed  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore")
def test_classes_of_diffusers() -> None:
    package("diffusers")
    loaded = load_model("diffusers:AutoencoderTiny")
    assert irprune.prune(loaded.model, (), loaded.kwargs).report.params.left < 0.4
    with pytest.raises(IrpruneError, match="near matches"):
        load_model("diffusers:UNet2DModle")
