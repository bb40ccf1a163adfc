"""Narrower numbers for an ONNX file that was written: 8-bit integers by onnxruntime's static
quantisation, or 16-bit floats; and how well what comes out agrees with the file before."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from irprune.analysis.sizes import example_symbols
from irprune.api.option_kinds import INT8
from irprune.base.atomic_write import atomic_write
from irprune.base.format import human
from irprune.errors import IrpruneError, gist, option
from irprune.ops.arrays import as_numpy
from irprune.run.inputs import random_inputs
from irprune.run.session import run_session, session
from irprune.validate.metrics import Metric, choose_metric, metric_of
from irprune.validate.saturation import products_saturate

if TYPE_CHECKING:
    from irprune.ir.graph import Graph

__all__ = ["Narrowed", "narrow"]

_SAMPLES = 256  # of the calibration data, at most, that ranges are read from
_WARNINGS, _ERRORS = 2, 3  # levels of onnxruntime's messages: what it begins with, and above it
_DRAWS = 8  # random calls that are compared where there are no data

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Narrowed:
    """A file in narrower numbers.

    Attributes:
        kind: "int8" or "fp16".
        metric: What agreement was measured by.
        agreement: The metric between the file before and after.
        samples: How many inputs it was measured on.
        drawn: Whether those were random, and not calibration data.
        before: Bytes of the file before.
        after: Bytes of the file after.
        notes: What else is to be said.
    """

    kind: str
    metric: str
    agreement: float
    samples: int
    drawn: bool
    before: int
    after: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        on = f"{self.samples} {'random ' if self.drawn else ''}inputs"
        return (
            f"{self.kind}: {human(self.before)}B -> {human(self.after)}B; {self.metric} "
            f"{self.agreement:.4g} with the file before, on {on}"
        )


def narrow(
    plain: Path,
    path: Path,
    kind: str,
    graph: Graph,
    calibration: Any,
    metric: str | None = None,
    symmetric: bool = False,
) -> Narrowed:
    """Write ``plain``, an ONNX file that was written of ``graph``, in narrower numbers.

    Args:
        plain: The file.
        path: Where to write; what is there is replaced in one step.
        kind: "int8": weights in whole numbers by channel, activations by ranges that the data show,
            as operators between QuantizeLinear and DequantizeLinear. "fp16": 16-bit floats, inputs
            and outputs as they were.
        graph: The original, whose inputs the data fit.
        calibration: The data, as ``prune`` takes them; None for none.
        metric: By what agreement is measured; None chooses by the outputs.
        symmetric: Activations of int8 in signed integers around zero, biases as they were: what
            TensorRT takes.

    Returns:
        What was measured.

    Raises:
        IrpruneError: For int8 without data, for files with data beside them, and for what
            onnxruntime's tools do not take.
    """
    if _has_data(plain):
        raise IrpruneError(
            f"{kind} is for files of up to 2 GB", str(path), f"leave {option('quantize')} out"
        )
    feeds = list(_feeds(plain, graph, calibration))
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="irprune-") as folder, _quietly():
        made = Path(folder) / "narrow.onnx"
        try:
            if kind == INT8:
                notes += _int8(plain, made, feeds, symmetric)
            else:
                _fp16(plain, made)
        except IrpruneError:
            raise
        except Exception as refused:  # the tools of onnxruntime raise what they like
            raise IrpruneError(
                f"{kind} is not possible: {gist(refused)}",
                path.name,
                f"leave {option('quantize')} out",
            ) from refused
        chosen, value = _agreement(plain, made, feeds, metric)
        before, after = plain.stat().st_size, made.stat().st_size
        with atomic_write(path) as draft:
            (draft / path.name).write_bytes(made.read_bytes())
    samples = sum(len(next(iter(f.values()))) if f else 1 for f in feeds)
    return Narrowed(
        kind, chosen.name, value, samples, calibration is None, before, after, tuple(notes)
    )


def _has_data(path: Path) -> bool:
    """Whether weights lie beside the file."""
    model = onnx.load(path, load_external_data=False)
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


def _int8(path: Path, made: Path, feeds: Sequence[Feed], symmetric: bool) -> list[str]:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            found = next(self.left, None)
            return None if found is None else dict(found)

    ready = made.with_name("ready.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    saturates = products_saturate() and not symmetric  # of s8 with s8 none saturate
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        str(ready),
        str(made),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=saturates,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=extra if symmetric else {},
    )
    if not saturates:
        return []
    return ["weights have 7 bits: products of u8 with s8 saturate on this processor"]


def _fp16(path: Path, made: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    onnx.save(model, made)


def _feeds(path: Path, graph: Graph, calibration: Any) -> Iterator[Feed]:
    """Inputs of the file: calibration data, or random ones."""
    names = [v.name for v in session(str(path), "cpu").get_inputs()]
    own = [v.name for v in graph.inputs]
    if calibration is None:
        symbols = example_symbols(graph)
        draws = (random_inputs(graph, symbols, seed=seed) for seed in range(_DRAWS))
    else:
        from irprune.run.calibration import Calibration

        draws = (
            {n: np.ascontiguousarray(as_numpy(x)) for n, x in zip(own, b.inputs, strict=True)}
            for b in Calibration(calibration, graph, samples=_SAMPLES)
        )
    for given in islice(draws, _SAMPLES):
        if set(names) <= given.keys():
            yield {name: given[name] for name in names}
        elif len(names) == len(own):  # an exporter may call them otherwise
            yield {name: given[v] for name, v in zip(names, own, strict=True)}
        else:
            raise IrpruneError(
                f"the inputs {', '.join(names)} of the file are not those of the model",
                path.name,
                f"leave {option('quantize')} out",
            )


def _agreement(
    path: Path, made: Path, feeds: Sequence[Feed], metric: str | None
) -> tuple[Metric, float]:
    before, after = (session(str(p), "cpu") for p in (path, made))

    def run(running: Any, feed: Feed) -> list[NDArray[Any]]:
        return [np.asarray(y) for y in run_session(running, feed).values()]

    chosen = (
        choose_metric(feeds[0], lambda feed: run(before, feed))
        if metric is None
        else metric_of(metric)
    )
    meter = chosen.meter()
    for feed in feeds:
        meter.add(feed, run(after, feed), run(before, feed))
    return chosen, meter.value()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the tools say of themselves, and without the warnings of the sessions that they
    make: onnxruntime writes those to the standard error at the level that it begins with."""
    import onnxruntime

    level = logging.root.level
    logging.root.setLevel(max(level, logging.ERROR))
    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
        onnxruntime.set_default_logger_severity(_WARNINGS)
