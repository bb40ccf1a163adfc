"""A pruned transformers model as the folder that people have of the original: config, weights,
tokenizer and generation config, to be loaded with ``from_pretrained`` alone.

Where no config of the class can say the new sizes (widths that differ from layer to layer), the
config keeps the original's, and a short model file in the folder gives the layers their own: it is
loaded with ``trust_remote_code=True``. Either way a fresh process loads the folder and must compute
what the pruned module computes, with the cache as well."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irprune.base.atomic_write import JOURNAL, unfinished
from irprune.base.quiet import quiet
from irprune.choice.plan import Plan
from irprune.emit.torch.hugging_face import pretrained
from irprune.emit.torch.instance import apply_to
from irprune.emit.torch.safetensors_file import write_tensors
from irprune.emit.torch.skipped_branch import Skipped
from irprune.errors import CheckFailed, IrpruneError
from irprune.frontend.torch.source import TorchSource, torch_source
from irprune.frontend.torch.stored_model import stored_files, stored_tensors
from irprune.ir.graph import Graph
from irprune.ops.arrays import checksum
from irprune.run.inputs import flat_tensors, to_device
from irprune.run.stored_tensor import is_stored, module_device, read_whole

__all__ = ["copy_tokenizer", "write_pretrained"]

_FILE = "modeling_irprune.py"
_BESIDE = (  # files of a tokenizer or processor
    "token*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "source.spm",
    "target.spm",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)
_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForImageClassification",
    "AutoModel",
)
_MODEL = '''"""A model whose layers have sizes of their own, as config.json lists them under "irprune"."""

import torch
from torch import nn
from transformers import {kind}


class Skipped(nn.Module):
    """Gives zeros in the place of a branch that was left out."""

    def __init__(self, several):
        super().__init__()
        self.several = several

    def forward(self, *args, **kwargs):
        x = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        zeros = torch.zeros_like(x)
        return (zeros, *[None] * (self.several - 1)) if self.several else zeros


class Pruned(_BASE_):
    """The class of the original, with the tensors and size attributes of the pruned model."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, changes in config.irprune.items():
            if "skipped" in changes:
                parent, _, own = path.rpartition(".")
                setattr(self.get_submodule(parent), own, Skipped(changes["skipped"]))
                continue
            module = self.get_submodule(path)
            for name, shape in changes.get("parameters", {{}}).items():
                old = getattr(module, name)
                new = torch.zeros(shape, dtype=old.dtype, device=old.device)
                setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
            for name, shape in changes.get("buffers", {{}}).items():
                old = getattr(module, name)
                new = torch.zeros(shape, dtype=old.dtype, device=old.device)
                module.register_buffer(name, new, persistent=True)
            for name, value in changes.get("attributes", {{}}).items():
                old = getattr(module, name)
                setattr(module, name, tuple(value) if isinstance(old, tuple) else value)
        self.tie_weights()
'''.replace("_BASE_", "{kind}")


def write_pretrained(
    graph: Graph,
    cut: Graph,
    module: nn.Module,
    folder: Path,
    *,
    repaired: bool = False,
    per_layer: bool = False,
) -> list[str]:
    """Write ``folder``, which exists and is empty, and return what the user is to be told.

    Args:
        graph: The original with its choice.
        cut: What is left of it.
        module: What the folder's model must compute.
        folder: Where to write.
        repaired: Whether ``cut`` holds refitted weights.
        per_layer: Write the model file even where a plain config would do.

    Raises:
        IrpruneError: Where the class cannot hold the sizes either way.
        CheckFailed: Where a fresh process computes something else from the folder.
    """
    source = torch_source(graph)
    model = source.module
    assert model is not None
    notes: list[str] = []
    with quiet():
        made: Any = (
            "sizes of each layer were asked for" if per_layer else pretrained(graph, cut, module)
        )
        plain = not isinstance(made, str)
        if plain:
            _save(made, folder, _fingerprint(graph, cut, model, repaired))
        else:
            kind = _with_file(graph, cut, model, folder, repaired)
            notes.append(
                f"the folder has a model file of its own and loads with trust_remote_code=True: {made}"
            )
        if plain:
            kind = type(model).__name__ if _in_library(type(model)) else _auto(model)
        copy_tokenizer(model, folder)
    _check(source, module, folder, kind, not plain, is_stored(model))
    return notes


def _save(model: Any, folder: Path, fingerprint: str) -> None:
    """What ``model.save_pretrained(folder)`` writes; weights that are read when they are used one
    by one, going on from where a run that was killed has stopped."""
    tensors = _under_own_names(model) if is_stored(model) else None
    if tensors is None:
        read_whole(model)
        model.save_pretrained(str(folder))
        return
    model.save_pretrained(str(folder), state_dict={})
    (folder / "model.safetensors").unlink(missing_ok=True)
    left = unfinished(folder)
    for file in (left / JOURNAL, *left.glob("*.safetensors")) if left is not None else ():
        file.replace(folder / file.name)
    write_tensors(folder, tensors, fingerprint)


def _under_own_names(model: Any) -> dict[str, torch.Tensor] | None:
    """What ``save_pretrained`` would write of ``model``; None where its class writes under other
    names than those of the state, or several tensors as one."""
    origin = stored_files(Path(str(model.name_or_path))) if model.name_or_path else []
    held = model.state_dict()
    if any(name not in held for name in stored_tensors(origin)):
        return None
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        source = model.all_tied_weights_keys.get(name, name)
        first.setdefault(id(tensor), source if source in held else name)
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    kept = set(first.values()) - ignored
    return {name: held[name] for name in held if name in kept}


def _fingerprint(graph: Graph, cut: Graph, model: Any, repaired: bool) -> str:
    """Of what the weights that are written depend on: the files that they come from, the choice,
    and what a repair made of them."""
    made = sha256(Plan.from_graph(graph).digest().encode())
    origin = Path(str(model.name_or_path)) if model.name_or_path else None
    for file in stored_files(origin) if origin is not None and origin.is_dir() else ():
        about = file.stat()
        made.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    if repaired:
        for weight in cut.weights.values():
            made.update(weight.name.encode() + checksum(weight.load()))
    return made.hexdigest()


def _in_library(kind: type) -> bool:
    import transformers

    return getattr(transformers, kind.__name__, None) is kind


def _auto(model: Any) -> str:
    """The class of transformers that makes ``model`` of its config. Raises IrpruneError where none
    does."""
    import transformers

    for name in _AUTO:
        mapping = getattr(transformers, name)._model_mapping
        found = mapping.get(type(model.config), None)
        if found is type(model) or (isinstance(found, tuple) and type(model) in found):
            return name
    raise IrpruneError(
        "no class of transformers loads this model by its config",
        type(model).__name__,
        "save the folder of irprune instead, without format='hf'",
    )


# -- sizes by layer --------------------------------------------------------------------------------


def _with_file(graph: Graph, cut: Graph, model: Any, folder: Path, repaired: bool) -> str:
    """Write the folder with a model file; returns the class of transformers that loads it."""
    if not _in_library(type(model)):
        raise IrpruneError(
            "the model's class is not one of transformers, so that no model file can build on it",
            type(model).__name__,
            "prune with uniform=True, or save the folder of irprune instead",
        )
    auto = _auto(model)
    instance: Any = apply_to(copy.deepcopy(model), graph, cut, repaired)
    instance.config.irprune = _changes(model, instance)
    instance.config.auto_map = {auto: f"{_FILE.removesuffix('.py')}.Pruned"}
    _save(instance, folder, _fingerprint(graph, cut, model, repaired))
    text = _MODEL.format(kind=type(model).__name__)
    (folder / _FILE).write_text(text, encoding="utf-8", newline="\n")
    return auto


def _changes(model: nn.Module, instance: nn.Module) -> dict[str, dict[str, Any]]:
    """By the path of a module: new shapes of its parameters and buffers, new values of its
    attributes; or that it is skipped. Buffers that change become part of the state."""
    out: dict[str, dict[str, Any]] = {}
    twins = dict(model.named_modules())
    for path, module in instance.named_modules():
        twin = twins[path]
        if isinstance(module, Skipped):
            out[path] = {"skipped": module.several}
            continue
        parameters = _shapes(module._parameters, twin._parameters)
        buffers = _shapes(module._buffers, twin._buffers)
        module._non_persistent_buffers_set.difference_update(buffers)
        attributes = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_")
            and isinstance(value, (int, tuple, list))
            and name in vars(twin)
            and vars(twin)[name] != value
        }
        changes: dict[str, dict[str, Any]] = {
            "parameters": parameters,
            "buffers": buffers,
            "attributes": attributes,
        }
        if any(changes.values()):
            out[path] = {k: v for k, v in changes.items() if v}
    return out


def _shapes(new: Any, old: Any) -> dict[str, list[int]]:
    return {
        name: list(t.shape)
        for name, t in new.items()
        if t is not None and old.get(name) is not None and t.shape != old[name].shape
    }


# -- what lies beside ------------------------------------------------------------------------------


def copy_tokenizer(model: Any, folder: Path) -> None:
    """The files of the tokenizer, where the model came from a folder that has them."""
    origin = Path(str(getattr(model, "name_or_path", "") or ""))
    if not str(origin) or origin == Path() or not origin.is_dir():
        return
    for pattern in _BESIDE:
        for file in sorted(origin.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)


# -- the check -------------------------------------------------------------------------------------


def _check(
    source: TorchSource, module: nn.Module, folder: Path, kind: str, trust: bool, stored: bool
) -> None:
    """Load ``folder`` in a fresh process and compare; what is ``stored`` is read there as well when
    it is used. Raises CheckFailed where it fails."""
    args, kwargs = to_device((tuple(source.args), dict(source.kwargs)), module_device(module))
    with torch.no_grad():
        expected = [t.cpu() for t in flat_tensors(module(*args, **kwargs))]
    call = to_device((list(args), kwargs), torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="irprune-") as aside:
        data = Path(aside) / "call.pt"
        torch.save({"args": call[0], "kwargs": call[1], "expected": expected}, data)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "irprune.emit.torch.reload_check",
                str(folder),
                str(data),
                kind,
                *(["trust"] if trust else []),
                *(["stored"] if stored else []),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
        raise CheckFailed(
            f"the folder that was written does not load as the pruned model: {lines[-1] if lines else ''}",
            str(folder),
            "save the folder of irprune instead, without format='hf', and report this as a bug",
        )
