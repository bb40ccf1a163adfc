"""Running ONNX models that are still in memory on onnxruntime, on the CPU with one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from irprune.base.atomic_write import NotWritten
from irprune.emit.onnx.file import held_bytes, write_model
from irprune.errors import IrpruneError, first_line
from irprune.frontend.onnx.closed_branches import close_branches
from irprune.frontend.onnx.file import Loader
from irprune.run.session import session as one_session

__all__ = ["APART", "NoPlace", "run_model", "session"]

Array = NDArray[Any]
APART = 1 << 26  # bytes of weights, from which on they are read from a file and not held


class NoPlace(OSError):
    """There is no place on the disk for a copy of the weights: that says nothing about a model, so
    whoever asks whether one runs does not take it for an answer."""

    def __init__(self, refused: NotWritten) -> None:
        super().__init__(
            f"no place for a copy of the weights: {refused.what} ({tempfile.gettempdir()})"
        )


def session(
    model: onnx.ModelProto | str | Path,
    optimise: bool = True,
    data: Mapping[str, Loader] | None = None,
    precise: bool = False,
) -> Any:
    """An onnxruntime session on the CPU; ``data`` holds initializers that lie apart from a model
    given as an object. What is large is mapped from a file, which is gone afterwards.

    ``precise`` asks for integer products that do not saturate on any processor, which only the
    optimiser can give. Raises IrpruneError with onnxruntime's own words where it refuses the model,
    and NoPlace where the disk has none for the file."""
    if not isinstance(model, onnx.ModelProto):
        return one_session(model, "cpu", threads=1, optimise=optimise, precise=precise)
    model = close_branches(model)
    if not data:
        given = model.SerializeToString()
        return one_session(given, "cpu", threads=1, optimise=optimise, precise=precise)
    with tempfile.TemporaryDirectory(prefix="irprune-") as folder:  # a file has no limit of size
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        # onnxruntime maps what lies beside a file, and copies what lies in it
        apart = held_bytes(model, data) > APART
        try:
            file = write_model(whole, data, Path(folder) / "model.onnx", () if apart else None)
        except NotWritten as refused:
            raise NoPlace(refused) from refused
        return one_session(file, "cpu", threads=1, optimise=optimise, precise=precise, mapped=apart)


def run_model(
    model: onnx.ModelProto | str | Path,
    inputs: Mapping[str, Array],
    optimise: bool = True,
    data: Mapping[str, Loader] | None = None,
    precise: bool = False,
) -> list[Array]:
    """All outputs of ``model`` for ``inputs``; ``data`` and ``precise`` as in ``session``."""
    made = session(model, optimise, data, precise)
    known = {i.name for i in made.get_inputs()}
    try:
        return list(made.run(None, {k: v for k, v in inputs.items() if k in known}))
    except Exception as error:  # onnxruntime raises a class per status code
        raise IrpruneError("onnxruntime cannot run the model", "", first_line(error)) from error
