"""An ONNX file as the two files of OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irprune.errors import IrpruneError, gist

__all__ = ["openvino", "write_openvino"]


def openvino() -> Any:
    """The package. Raises IrpruneError where it is not installed."""
    try:
        import openvino as package
    except ImportError as missing:
        raise IrpruneError(
            "OpenVINO is not installed", "", "pip install irprune[openvino]"
        ) from missing
    return package


def write_openvino(file: Path, folder: Path) -> Path:
    """Write ``model.xml`` and ``model.bin`` into ``folder``, with the numbers as they are in the
    ONNX file ``file``; returns the path of the first. Raises IrpruneError for an operator that
    OpenVINO does not know."""
    package = openvino()
    path = folder / "model.xml"
    try:
        model = package.convert_model(str(file))
        package.save_model(model, str(path), compress_to_fp16=False)
    except Exception as refused:  # the frontend raises classes of its own
        raise IrpruneError(
            f"OpenVINO does not take the model: {gist(refused)}", file.name, "write the ONNX file"
        ) from refused
    return path
