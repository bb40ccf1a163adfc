"""Models of any kind behind one call: arrays in, named arrays out. What ``irprune validate`` and
``irprune bench`` run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.analysis.sizes import input_shapes
from irprune.api.options import device_of
from irprune.api.sizes_that_run import sizes_that_run
from irprune.base.near import meant
from irprune.errors import IrpruneError, gist, option, users_line
from irprune.frontend.capture import capture
from irprune.ir.dtype import element_type
from irprune.ops.arrays import as_numpy
from irprune.run.inputs import drawn, redraw
from irprune.run.session import run_session, run_type, session

if TYPE_CHECKING:
    from irprune.api.load import Loaded

__all__ = ["Runner", "runner"]

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Input:
    """What a model takes: sizes that it leaves open are None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Runner:
    """A model that runs: ``inputs`` says what it takes, ``draw`` makes a call, ``run`` gives every
    output by name."""

    kind = ""

    def __init__(self, name: str, inputs: list[Input]) -> None:
        self.name, self.inputs = name, inputs

    @property
    def held(self) -> Any:
        """The session or the module that runs."""
        raise NotImplementedError

    def draw(self, seed: int) -> Arrays:
        """Random inputs; the same seed gives the same numbers."""
        raise NotImplementedError

    def run(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name."""
        raise NotImplementedError

    def check(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Raises IrpruneError where ``arrays`` are not what the model takes."""
        if len(arrays) != len(self.inputs):
            raise IrpruneError(
                f"takes {len(self.inputs)} inputs, is given {len(arrays)}",
                self.name,
                "compare models of the same call",
            )
        for own, a in zip(self.inputs, arrays, strict=True):
            if len(own.shape) != a.ndim or any(
                s is not None and s != n for s, n in zip(own.shape, a.shape, strict=True)
            ):
                raise IrpruneError(
                    f"input {own.name!r} takes {_shown(own.shape)}, is given {list(a.shape)}",
                    self.name,
                    f"give {option('args')} of that shape",
                )


def _shown(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if s is None else str(s) for s in shape) + "]"


def runner(loaded: Loaded, device: str = "auto", threads: int = 0, exact: bool = False) -> Runner:
    """The model behind ``loaded``, ready to run; ``exact`` keeps CUDA from rounding products to
    TF32, a CPU from saturating integers."""
    if loaded.kind == "onnx":
        return _OnnxRunner(loaded, device, threads, exact)
    return _TorchRunner(loaded, device, exact)


class _OnnxRunner(Runner):
    kind = "onnxruntime"

    def __init__(self, loaded: Loaded, device: str, threads: int, exact: bool) -> None:
        self.session = session(loaded.model, device, threads=threads, exact=exact)
        inputs = []
        for v in self.session.get_inputs():
            kind = element_type(run_type(v.type))
            if not (kind.is_float or kind.is_integer or kind.kind == "bool"):
                raise IrpruneError(
                    f"input {v.name!r} is a {v.type}",
                    str(loaded.model),
                    "only tensors of numbers can be drawn",
                )
            inputs.append(
                Input(
                    v.name,
                    tuple(s if isinstance(s, int) else None for s in v.shape),
                    kind.name,
                )
            )
        super().__init__(Path(loaded.model).name, inputs)
        self.file, self.shapes = loaded.model, dict[str, tuple[int, ...]]()
        self.given = [t.numpy() for t in loaded.args]
        self.named = {k: t.numpy() for k, t in loaded.kwargs.items()}
        unknown = [name for name in self.named if name not in {v.name for v in inputs}]
        if unknown:
            raise IrpruneError(
                f"no input is called {unknown[0]!r}",
                str(loaded.model),
                meant(
                    unknown[0],
                    [v.name for v in inputs],
                    f"there are {', '.join(v.name for v in inputs)}",
                ),
            )

    @property
    def held(self) -> Any:
        return self.session

    def draw(self, seed: int) -> Arrays:
        if self.given:
            self.check(self.given)
            return self.given
        generator = np.random.default_rng(seed)
        return [
            self.named[v.name]
            if v.name in self.named
            else drawn(generator, self._shape(v), v.dtype)
            for v in self.inputs
        ]

    def _shape(self, value: Input) -> list[int]:
        """The shape of ``value``, with plausible sizes where the file leaves them open."""
        if None in value.shape and not self.shapes:
            self.shapes = _plausible_shapes(self.file, self.named, self.session)
        known = self.shapes.get(value.name, ())
        sizes = known if len(known) == len(value.shape) else (1,) * len(value.shape)
        return [n if s is None else s for s, n in zip(value.shape, sizes, strict=True)]

    def run(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return run_session(
            self.session, {v.name: a for v, a in zip(self.inputs, arrays, strict=True)}
        )


def _plausible_shapes(
    file: str, given: Mapping[str, NDArray[Any]], running: Any
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of an ONNX file, as costs and proofs take them; none for a file that
    runs and that irprune cannot read."""
    try:
        graph = capture(file, kwargs=given)
    except IrpruneError:
        return {}
    return {v.name: shape for v, shape in input_shapes(graph, sizes_that_run(graph, running))}


class _TorchRunner(Runner):
    kind = "torch"

    def __init__(self, loaded: Loaded, device: str, exact: bool) -> None:
        import torch
        from torch.utils import _pytree as pytree

        from irprune.run.stored_tensor import read_whole

        model, call = loaded.model, (loaded.args, loaded.kwargs)
        self.device, self.exact = device_of(device), exact
        if loaded.kind == "pt2":
            from torch.export.passes import move_to_device_pass

            from irprune.frontend.torch.program_file import load_program

            program = load_program(Path(model), loaded.trust)
            call = call if any(call) else program.example_inputs or call
            model = move_to_device_pass(
                program, self.device
            ).module()  # what the graph makes itself is made there too
        self.model = read_whole(model).to(self.device)
        if loaded.kind != "pt2":  # the module of an exported program has its mode built in
            self.model.eval()
        self.call = call
        leaves, self.spec = pytree.tree_flatten((tuple(call[0]), dict(call[1])))
        self.leaves = leaves
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        self.example = tensors
        super().__init__(
            loaded.name,
            [Input(f"input {i}", tuple(t.shape), str(t.dtype)) for i, t in enumerate(tensors)],
        )

    @property
    def held(self) -> Any:
        return self.model

    def check(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Sizes are left to forward itself, which says what it takes."""
        if len(arrays) != len(self.inputs):
            super().check(arrays)

    def draw(self, seed: int) -> Arrays:
        args, _ = redraw(tuple(self.example), {}, seed)
        return [as_numpy(t) for t in args]

    def run(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import torch
        from torch.utils import _pytree as pytree

        from irprune.emit.torch.signature import paths
        from irprune.run.precision import full_float32

        fresh = iter(torch.from_numpy(np.asarray(a)).to(self.device) for a in arrays)
        leaves = [next(fresh) if isinstance(x, torch.Tensor) else x for x in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        try:
            with torch.no_grad(), full_float32() if self.exact else contextlib.nullcontext():
                result = self.model(*args, **kwargs)
        except Exception as failed:  # whatever forward raises is what the user must see
            raise IrpruneError(
                f"forward fails: {gist(failed)}",
                users_line(failed) or self.name,
                f"give {option('args')} of the shapes and types that the model takes",
            ) from failed
        out, spec = pytree.tree_flatten(result)
        names = [n or "output" for n in paths(spec)]
        return {
            n: as_numpy(t) for n, t in zip(names, out, strict=True) if isinstance(t, torch.Tensor)
        }
