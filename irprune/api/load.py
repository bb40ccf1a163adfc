"""Models by name, as the command line takes them: files, callables, and the model libraries.

``file.onnx``, ``file.pt2``, ``file.py:callable``, ``package.module:callable``, ``timm:NAME``,
``torchvision:NAME``, ``ultralytics:NAME.yaml``, ``diffusers:CLASS``, ``smp:NAME``,
``hf:FOLDER``, and a folder that irprune saved. Random weights and random inputs are drawn from a
fixed seed."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from irprune.api.libraries import LIBRARIES, Maker, library
from irprune.api.user_code import import_place, must_be_file
from irprune.base.entry_points import entry_point
from irprune.base.extension import users_code
from irprune.base.memory import memory_budget
from irprune.base.near import meant
from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, gist, option
from irprune.frontend.capture import capture
from irprune.frontend.torch.pretrained import without_bar
from irprune.ir.graph import Graph
from irprune.run.inputs import check_fits

if TYPE_CHECKING:
    import torch

__all__ = ["InputSpec", "Loaded", "load_graph", "load_model", "parse_input"]

SEED = 0
_FORMS = (
    "file.onnx, file.pt2, file.py:callable, package.module:callable, timm:NAME, torchvision:NAME, "
    "ultralytics:NAME.yaml, diffusers:CLASS or FOLDER, smp:NAME, hf:FOLDER, a folder that irprune wrote"
)


@dataclass(frozen=True)
class InputSpec:
    """One ``--input``: a shape and an element type, or a file that holds the array; ``name`` is ""
    for the next positional one. ``value`` is the whole number that an input without dimensions
    holds."""

    name: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    file: str = ""
    value: int | None = None


@dataclass
class Loaded:
    """A model and an example call. ``model`` is an ``nn.Module``, or the path of an ``.onnx`` or
    ``.pt2`` file."""

    model: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    dynamic_shapes: Any = None
    trust: bool = False

    def capture(self, dynamic: str = "all") -> Graph:
        """The graph of the model; ``dynamic`` says which sizes of a torch model stay open."""
        return capture(
            self.model,
            self.args,
            self.kwargs,
            self.dynamic_shapes,
            dynamic=dynamic,
            trust=self.trust,
        )

    @property
    def kind(self) -> str:
        """``module``, ``onnx`` or ``pt2``."""
        return Path(self.model).suffix[1:] if isinstance(self.model, (str, Path)) else "module"


_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_][\w.]*)=)?(?P<shape>\d+(?:x\d+)*|scalar)(?::(?P<dtype>\w+))?"
)


def parse_input(text: str) -> InputSpec:
    """``1x3x224x224``, ``ids=1x16:i64``, ``mask=scalar:bool`` or ``x=values.npy``. Raises
    IrpruneError for anything else."""
    name, _, rest = text.rpartition("=")
    if Path(rest).suffix in (".npy", ".npz"):
        if not Path(rest).exists():
            raise IrpruneError("no such input file", rest, "check the path of --input")
        return InputSpec(name, file=rest)
    found = _INPUT.fullmatch(text)
    if found is None:
        raise IrpruneError(
            f"--input {text!r} is no shape",
            "",
            "write 1x3x224x224, NAME=1x16:i64, or NAME=file.npy",
        )
    shape = found["shape"]
    return InputSpec(
        found["name"] or "",
        () if shape == "scalar" else tuple(map(int, shape.split("x"))),
        found["dtype"] or "",
    )


def load_graph(spec: str, inputs: Sequence[str] = (), trust: bool = False) -> Graph:
    """The captured graph of the model that ``spec`` names. Raises IrpruneError for what is no
    model."""
    loaded = load_model(spec, inputs, trust=trust)
    graph = loaded.capture()
    graph.name = loaded.name or graph.name
    return graph


def load_model(
    spec: str, inputs: Sequence[str] = (), pretrained: bool = False, trust: bool = False
) -> Loaded:
    """The model that ``spec`` names, with an example call.

    Args:
        spec: As the command line takes it.
        inputs: Texts of ``--input``.
        pretrained: Trained weights for the models of timm and torchvision.
        trust: Run code that lies in the file or the folder: of a ``.pt2`` program, of a
            ``model.py`` that irprune did not write, of a transformers folder.

    Raises:
        IrpruneError: For what is no model, and for what runs code of its own without ``trust``.
    """
    given = [parse_input(text) for text in inputs]
    path = Path(spec)
    if path.suffix in (".onnx", ".pt2"):
        must_be_file(path)
        if path.suffix == ".onnx" and given:
            given = _with_values(path, given)
        tensors = _draw(given) if path.suffix == ".onnx" and given else []
        pairs = list(zip(tensors, given, strict=False))
        return Loaded(
            str(path),
            tuple(t for t, spec in pairs if not spec.name),
            {spec.name: t for t, spec in pairs if spec.name},
            path.stem,
            trust=trust,
        )
    if (
        path.is_dir()
        and not given
        and not (path / "model.pt2").exists()
        and (path / "model.onnx").exists()
    ):
        # What came in as ONNX goes on as ONNX: the file knows its own inputs
        return replace(load_model(str(path / "model.onnx"), (), pretrained, trust), name=path.name)
    if path.is_dir():
        from irprune.emit.torch.saved import from_folder

        return _called(from_folder(path, trust), given, lambda: _saved_call(path, trust), path.name)
    head, colon, tail = spec.rpartition(":")
    if not colon or not head or not tail:
        if path.suffix == ".py":
            must_be_file(path)
            raise IrpruneError(
                "no callable is named", spec, f"say which function gives the model: {spec}:build"
            )
        raise IrpruneError(
            "not a model" if path.exists() else "no such model", spec, f"MODEL is one of {_FORMS}"
        )
    makers: dict[str, Maker] = {**LIBRARIES, "hf": _hugging_face}
    maker = makers.get(head) or entry_point("irprune.sources", head)
    if maker is not None:
        with _seeded():
            model, example = maker(tail, pretrained, trust)
            return _called(model, given, example, tail.rstrip("/").rsplit("/", 1)[-1])
    with _seeded():
        return _from_code(head, tail, given)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Random weights and inputs are the same in every run, and the caller's generator is left as it
    was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


# -- example calls ---------------------------------------------------------------------------------


def _called(
    model: Any, given: Sequence[InputSpec], example: Callable[[], Any], name: str
) -> Loaded:
    """The model with the user's inputs, or with its own example."""
    if given:
        tensors = _draw(given)
        args = tuple(t for t, spec in zip(tensors, given, strict=True) if not spec.name)
        kwargs = {spec.name: t for t, spec in zip(tensors, given, strict=True) if spec.name}
        return Loaded(model, args, kwargs, name)
    return Loaded(model, *_call_of(example()), name=name)


def _call_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(args, kwargs)``, ``args``, a dict of keyword arguments, or one tensor."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if not isinstance(example, tuple):
        return (example,), {}
    if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
        return example[0], dict(example[1])
    return example, {}


def _draw(given: Iterable[InputSpec]) -> list[torch.Tensor]:
    """A tensor for each spec: random numbers, 0 and 1 for integers, True and False for booleans."""
    import torch

    from irprune.ops.dtypes import TO_TORCH

    generator = torch.Generator().manual_seed(SEED)
    out = []
    for spec in given:
        if spec.file:
            try:
                array = np.load(spec.file)
            except (OSError, ValueError) as broken:
                raise IrpruneError(
                    f"cannot be read: {gist(broken)}",
                    spec.file,
                    "write it with numpy.save or numpy.savez",
                ) from broken
            out.append(
                torch.from_numpy(array if isinstance(array, np.ndarray) else array[array.files[0]])
            )
            continue
        if spec.value is not None:
            out.append(torch.tensor(spec.value))
            continue
        if (spec.dtype or "f32") not in TO_TORCH:
            raise IrpruneError(
                f"no element type {spec.dtype!r}",
                "--input",
                meant(str(spec.dtype), TO_TORCH, f"one of {', '.join(TO_TORCH)}"),
            )
        dtype = TO_TORCH[spec.dtype or "f32"]
        check_fits(spec.shape, "--input")
        if dtype.is_floating_point or dtype.is_complex:
            out.append(torch.randn(spec.shape, generator=generator).to(dtype))
        else:
            out.append(torch.randint(0, 2, spec.shape, generator=generator).to(dtype))
    return out


def _with_values(path: Path, given: Sequence[InputSpec]) -> list[InputSpec]:
    """``given`` with a number taken for a value, not for a shape, where the file's input of that
    name has no dimensions."""
    from irprune.frontend.onnx.file import read_model

    single = {
        v.name
        for v in read_model(path).graph.input
        if v.type.tensor_type.HasField("shape") and not v.type.tensor_type.shape.dim
    }
    return [
        replace(spec, shape=(), value=spec.shape[0])
        if spec.name in single and len(spec.shape) == 1
        else spec
        for spec in given
    ]


def _saved_call(folder: Path, trust: bool) -> Any:
    """The example call that a saved folder's program holds."""
    from irprune.frontend.torch.program_file import load_program

    program = load_program(folder / "model.pt2", trust)
    if program.example_inputs is None:
        raise IrpruneError("the folder holds no example input", str(folder), "give --input")
    return program.example_inputs


# -- the user's code -------------------------------------------------------------------------------


def _from_code(place: str, name: str, given: Sequence[InputSpec]) -> Loaded:
    """What the callable returns: a module, ``(module, args)`` or ``(module, args, kwargs)``; else
    ``example_inputs`` gives the call."""
    import torch

    module = import_place(place, f"give MODEL as one of {_FORMS}")
    made = getattr(module, name, None)
    if made is None:
        own = [
            k
            for k, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        known = [k for k in own if not k.startswith("_")]
        raise IrpruneError(
            f"no {name!r} here",
            place,
            meant(name, known, f"there are: {', '.join(known) or 'no callables'}"),
        )
    if not isinstance(made, torch.nn.Module):
        hint = "name a function without arguments that returns the model"
        if not callable(made):
            raise IrpruneError(f"{name!r} is neither a module nor a callable", place, hint)
        try:
            inspect.signature(made).bind()
        except TypeError as refused:
            raise IrpruneError(f"{name}() cannot be called: {refused}", place, hint) from refused
        except ValueError:  # a callable that says nothing of its parameters
            pass
        with users_code(place, f"{name}()"):
            made = made()
    example: Callable[[], Any] = getattr(module, "example_inputs", None) or _no_example(place)
    if isinstance(made, tuple) and made and isinstance(made[0], torch.nn.Module):
        model, *call = made
        if call:
            example = lambda: (tuple(call[0]), dict(call[1])) if len(call) > 1 else call[0]  # noqa: E731
        made = model
    if not isinstance(made, torch.nn.Module):
        raise IrpruneError(
            f"{name}() gave {type(made).__name__}, not an nn.Module",
            place,
            "return the model, or (model, args, kwargs)",
        )
    with users_code(place, "example_inputs()"):
        loaded = _called(made, given, example, type(made).__name__)
    dynamic = getattr(getattr(module, "CASE", None), "dynamic", None)
    if not given and dynamic:
        loaded.dynamic_shapes = dict(dynamic)
    return loaded


def _no_example(place: str) -> Callable[[], Any]:
    def refuse() -> Any:
        raise IrpruneError(
            "no example input",
            place,
            "give --input 1x3x224x224, or a function example_inputs() beside the model",
        )

    return refuse


# -- model libraries -------------------------------------------------------------------------------


def _hugging_face(folder: str, pretrained: bool, trust: bool) -> tuple[Any, Callable[[], Any]]:
    """A model from a folder with config.json and its weights."""
    from irprune.frontend.torch.stored_model import (
        check_weight_files,
        check_weights,
        stored_model,
    )

    transformers = library("transformers")
    if not (Path(folder) / "config.json").exists():
        raise IrpruneError(
            "no config.json here", folder, "give a folder that save_pretrained wrote"
        )
    _check_hugging_face(Path(folder), trust)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust
        )
        own = [
            name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModel")
        ]
        names = (
            own if trust and own else config.architectures or [""]
        )  # its own code knows its sizes
        kind = getattr(transformers, names[0], None) or transformers.AutoModel
    except (
        ImportError
    ) as missing:  # transformers imports what a model needs when the model is asked for
        raise IrpruneError(
            f"transformers cannot import the model's class: {gist(missing)}",
            folder,
            "install what it needs; transformers names it when you import the class",
        ) from missing
    except (ValueError, KeyError, OSError) as broken:
        why = str(broken).splitlines()[0][:200]
        raise IrpruneError(
            f"transformers cannot read the config: {why}", folder, "check config.json"
        ) from broken
    except (RecursionError, MemoryError):
        raise
    except Exception as broken:  # each class of transformers has checks of its own
        raise IrpruneError(
            f"transformers cannot read the config: {gist(broken)}", folder, "check config.json"
        ) from broken
    try:
        stored = None
        if _is_large(Path(folder)):
            told = {"trust_remote_code": trust}
            stored = stored_model(kind, config, Path(folder), **told)
        if stored is not None:
            model = stored
        else:
            check_weight_files(Path(folder), (".safetensors", ".bin"))
            told = {"trust_remote_code": trust, "weights_only": not trust}
            with without_bar(), quiet():
                model, found = kind.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True, **told
                )
            check_weights(found, Path(folder))
    except (RecursionError, MemoryError, IrpruneError):
        raise
    except (
        Exception
    ) as broken:  # sizes that do not fit, files that are cut off: errors of all kinds
        raise IrpruneError(
            f"transformers cannot load the model: {gist(broken)}",
            folder,
            "check config.json and the weights beside it",
        ) from broken
    return model, lambda: _hugging_face_call(model)


def _is_large(folder: Path) -> bool:
    """Whether the weights of a folder, as they are and as they become, take more memory than there
    is for them."""
    from irprune.frontend.torch.stored_model import stored_files

    return 3 * sum(file.stat().st_size for file in stored_files(folder)) > memory_budget()


_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def _check_hugging_face(folder: Path, trust: bool) -> None:
    """Raises IrpruneError for a folder that brings code or pickled weights, without ``trust``."""
    if trust:
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as broken:
        raise IrpruneError(
            f"config.json cannot be read: {gist(broken)}", str(folder), "save the model again"
        ) from broken
    if not isinstance(config, dict):
        raise IrpruneError("config.json is no object", str(folder), "save the model again")
    if "auto_map" in config:
        raise IrpruneError(
            "the model brings code of its own (auto_map in config.json)",
            str(folder),
            f"read it, then say {option('trust', 'True')}",
        )
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled and not any(folder.glob("*.safetensors")):
        raise IrpruneError(
            f"the weights are pickled and may run code: {pickled[0]}",
            str(folder),
            f"save them as safetensors, or say {option('trust', 'True')}",
        )


def _hugging_face_call(model: Any) -> dict[str, Any]:
    """Keyword arguments that fit the model's main input."""
    import torch

    config = getattr(model.config, "text_config", model.config)
    main = model.main_input_name
    if main == "pixel_values":
        vision = getattr(model.config, "vision_config", model.config)
        size = getattr(vision, "image_size", 224)
        high, wide = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.randn(1, getattr(vision, "num_channels", 3), high, wide)}
    if main == "input_values":
        return {"input_values": torch.randn(1, 16000)}
    if main == "input_features":
        heard = torch.randn(
            1,
            getattr(config, "num_mel_bins", 80),
            2 * getattr(config, "max_source_positions", 1500),
        )
        said = (
            {"decoder_input_ids": torch.randint(0, int(config.vocab_size), (1, 16))}
            if config.is_encoder_decoder
            else {}
        )
        return {"input_features": heard, **said}
    ids = torch.randint(0, int(config.vocab_size), (1, 16))
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        call["decoder_input_ids"] = ids
    return call
