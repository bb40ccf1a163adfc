"""The second pass of the proof of an ONNX model: with random numbers for its weights, in float64
where onnxruntime has kernels for it, against the oracle and against an independent judge."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from irprune.base.atomic_write import NotWritten
from irprune.base.format import human
from irprune.base.tolerance import FLOAT32, FLOAT64, LEAST_RANGE, LEAST_RANGE64
from irprune.driver.pipelines import cut_graph
from irprune.emit.onnx import file as onnx_file
from irprune.emit.onnx.file import held_bytes, with_arrays, write_model
from irprune.errors import IrpruneError
from irprune.frontend.onnx.file import Loader
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph, Node, Weight
from irprune.ops.arrays import as_numpy
from irprune.run.error import channel_error
from irprune.run.inputs import random_inputs
from irprune.validate.affected_outputs import reached_of
from irprune.validate.judge_share import judged_share, not_judged
from irprune.validate.onnx_double import doubled
from irprune.validate.onnx_forced_branches import emitted
from irprune.validate.onnx_judge import judgeable_parts, zeroed_model
from irprune.validate.onnx_oracle import silenced_model
from irprune.validate.onnx_random_weights import with_random_weights
from irprune.validate.onnx_run import APART, NoPlace, run_model
from irprune.validate.onnx_unrounded import unrounded
from irprune.validate.onnx_widen import widen, widened_inputs
from irprune.validate.proof_result import Proof, SecondPass, says_nothing
from irprune.validate.random_weights import Draw, redrawn, with_random_numbers

__all__ = ["Remake", "prove_with_random_weights"]

Array = NDArray[Any]
Model = tuple[onnx.ModelProto, Mapping[str, Loader]]
Remake = Callable[["onnx.ModelProto | str"], "tuple[Graph, Graph] | None"]

_DRAWN: tuple[tuple[str, Draw | None], ...] = (
    ("random", redrawn),
    ("slightly random", with_random_numbers),
    ("its own", None),
)

_COPIES = 4  # of all weights that lie on the disk at a time: one drawn, one of those in float64


def prove_with_random_weights(
    proof: Proof, graph: Graph, remake: Remake, sizes: Mapping[str, int], seed: int
) -> None:
    """Put the second pass into ``proof``.

    Args:
        proof: the first pass.
        graph: the analysed original with its choice.
        remake: analyses a model and makes the same cut, or gives None.
        sizes: of the inputs' symbols.
        seed: the same seed gives the same numbers.
    """
    taken = _COPIES * 4 * sum(_elements(w) for w in graph.weights.values())
    place = tempfile.gettempdir()
    if taken > _COPIES * APART and taken > shutil.disk_usage(place).free:
        proof.notes.append(
            f"proven with its own weights alone: random ones take {human(taken)}B of the disk, "
            f"and {place} has not that much (TMPDIR names another place)"
        )
        return
    quantised = any(w.dtype.startswith(("i8", "u8", "i4", "u4")) for w in graph.weights.values())
    for weights, draw in _DRAWN:
        if quantised and draw is not None:
            continue  # steps and zero points that are drawn would saturate everything
        with contextlib.ExitStack() as beside:
            made = remake(_captured_from(*with_random_weights(graph, draw, seed), beside))
            if made is None:
                proof.notes.append("proven with its own weights alone: others give other groups")
                return
            second = _Second(*made, sizes, seed)
            found = second.compared(weights)
            if found is not None and (draw is None or second.numbers):
                second.judge(found)
                proof.second_pass, proof.passes = found, proof.passes + second.passes
                proof.notes += second.notes
                return


def _captured_from(
    message: onnx.ModelProto, data: Mapping[str, Loader], beside: contextlib.ExitStack
) -> onnx.ModelProto | str:
    """What a model is captured from: the message with all of its arrays; of a large one a file that
    is there as long as ``beside``, so that they are read when they are used."""
    if held_bytes(message, data) <= min(APART, onnx_file.LIMIT):
        return with_arrays(message, data)
    folder = beside.enter_context(tempfile.TemporaryDirectory(prefix="irprune-"))
    try:
        return str(write_model(message, data, Path(folder) / "model.onnx", outside=()))
    except NotWritten as refused:
        raise NoPlace(refused) from refused


class _Second:
    """The second pass with one set of weights."""

    def __init__(self, graph: Graph, cut: Graph, sizes: Mapping[str, int], seed: int) -> None:
        self.graph, self.cut = graph, cut
        self.inputs = random_inputs(graph, sizes, seed=seed)
        self.asked: dict[Node, set[Axis]] = {}
        self.wide = True
        self.numbers = True
        self.passes = 0
        self.ours: list[Array] = []
        self.notes: list[str] = []

    def compared(self, weights: str) -> SecondPass | None:
        """The oracle against the cut; None where onnxruntime runs neither."""
        assert self.graph.kept is not None
        whole = silenced_model(self.graph, self.graph.kept, self.inputs, self.asked)
        small = emitted(self.cut)
        try:
            theirs, self.ours = self._run(whole, small)
        except IrpruneError:
            return None
        self.numbers = all(
            bool((x == x).all()) for x in map(as_numpy, theirs) if x.dtype.kind in "fV"
        )
        return SecondPass(
            channel_error(self.ours, theirs, LEAST_RANGE64 if self.wide else LEAST_RANGE),
            FLOAT64 if self.wide else FLOAT32,
            "float64" if self.wide else "float32",
            nothing=says_nothing(reached_of(self.graph, theirs)),
            weights=weights,
        )

    def judge(self, found: SecondPass) -> None:
        """Compare the cut with the model itself, its dropped weights zeroed."""
        kept = self.graph.kept
        assert kept is not None
        part = judgeable_parts(self.graph, kept, self.asked)
        zeroed = zeroed_model(self.graph, part)
        ours = self.ours
        small: Model | None = None
        if part.choice.keys() != kept.choice.keys() or kept.dropped:
            smaller = self.graph.copy()
            smaller.kept = part
            small = emitted(cut_graph(smaller))
        try:
            theirs = self._once(zeroed)
            ours = ours if small is None else self._once(small)
        except IrpruneError:
            return
        if any(bool((~np.isfinite(x)).any()) for x in map(as_numpy, theirs) if x.dtype.kind == "f"):
            return  # zeros divide something, or have a logarithm
        found.judged = judged_share(self.graph, kept, part)
        self.notes = not_judged(self.graph, kept, part)
        found.judge_error = channel_error(ours, theirs, LEAST_RANGE64 if self.wide else LEAST_RANGE)
        found.judge_tolerance = FLOAT64 if self.wide else FLOAT32

    def _run(self, whole: Model, small: Model) -> tuple[list[Array], list[Array]]:
        """Outputs of both, in float64 where onnxruntime can, else in float32."""
        try:
            return self._once(whole), self._once(small)
        except IrpruneError:
            if not self.wide:
                raise
        self.wide = False
        return self._once(whole), self._once(small)

    def _once(self, model: Model) -> list[Array]:
        self.passes += 1
        message, data = model
        plain = unrounded(message)
        message = message if plain is None else plain
        if not self.wide:
            copy = onnx.ModelProto()
            copy.CopyFrom(message)
            return run_model(
                copy, widened_inputs(self.inputs), optimise=False, data=widen(copy, data)
            )
        made = doubled(message, data)
        if made is None:
            raise IrpruneError("an operator without a form in float64")
        inputs = widened_inputs(self.inputs, TensorProto.DOUBLE)
        return run_model(made[0], inputs, optimise=False, data=made[1])


def _elements(weight: Weight) -> int:
    total = 1
    for s in weight.type.shape or ():
        total *= s if isinstance(s, int) else 1
    return total
