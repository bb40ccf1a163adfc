"""A cut model as whoever judges it wants to have it: as a module, as a session of onnxruntime, as a
file, as a message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from irprune.emit.backends.base import backend_of
from irprune.ops.arrays import as_numpy, as_tensor
from irprune.run.session import run_session, session

if TYPE_CHECKING:
    from irprune.api.pruned import Pruned

__all__ = ["Candidate"]


class Candidate:
    """The ways to hold ``pruned``, each made once; files go to ``folder``, which the caller
    keeps while they are used."""

    def __init__(
        self, pruned: Pruned, folder: Path, device: str = "auto", threads: int = 0
    ) -> None:
        self.pruned, self.folder = pruned, folder
        self.device, self.threads = device.split(":")[0], threads
        self._made: dict[str, Any] = {}

    def as_form(self, form: str) -> Any:
        """The model in one of ``irprune.api.model_form.FORMS``; "" is what the model came in as: a
        session for an ONNX file, else a module."""
        form = form or ("session" if self.pruned.from_onnx else "module")
        if form not in self._made:
            self._made[form] = self._make(form)
        return self._made[form]

    def _make(self, form: str) -> Any:
        if form == "module":
            return self.pruned.module
        if form == "session":
            return session(self.as_form("path"), self.device, threads=self.threads)
        path = self.folder / "model.onnx"
        if form == "path":
            # The file alone: trials are neither checked nor quantised nor timed
            module = None if self.pruned.from_onnx else self.pruned.module
            return backend_of(self.pruned.graph).write_onnx(self.pruned.cut, module, path)
        import onnx

        return onnx.load(self.as_form("path"))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Every output for inputs by the names of the graph's: on onnxruntime for a model that came
        in as ONNX, else as the graph computes on torch."""
        if self.pruned.from_onnx:
            return list(run_session(self.as_form("session"), inputs).values())

        from irprune.run.interpret import evaluate
        from irprune.run.precision import computing_type

        cut = self.pruned.cut
        given = [as_tensor(inputs[v.name]) for v in cut.inputs]
        half = computing_type(cut)
        return [as_numpy(t) for t in evaluate(cut, given, dtype=half)]
