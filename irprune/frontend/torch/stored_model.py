"""A folder of safetensors files as a model whose weights stay in the files: each is read when an
operator uses it (``irprune.run.stored_tensor``)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from irprune.base.memory import large_blocks_apart, trim
from irprune.base.quiet import quiet
from irprune.errors import IrpruneError, gist
from irprune.frontend.torch.pretrained import without_bar
from irprune.ir.dtype import ELEMENT_TYPES
from irprune.ops.dtypes import TO_TORCH
from irprune.run.stored_tensor import StoredTensor

__all__ = ["check_weight_files", "check_weights", "stored_files", "stored_model", "stored_tensors"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def stored_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that ``save_pretrained`` wrote, in the order of its index;
    none where its weights are written otherwise.

    Raises:
        IrpruneError: Where the index cannot be read, or names a file that is not there.
    """
    index = folder / _INDEX
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    if not index.exists():
        return []
    try:
        names = dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as broken:
        raise IrpruneError(
            f"the index of the shards cannot be read: {gist(broken)}",
            str(index),
            "save the model again",
        ) from broken
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = f"shards are missing: {', '.join(missing[:3])}" if names else "there are no shards"
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise IrpruneError(what + more, str(folder), "the index names them: copy them here")
    return [folder / name for name in names]


def stored_tensors(files: list[Path]) -> dict[str, StoredTensor]:
    """The tensors of safetensors files by name; none is read.

    Raises:
        IrpruneError: For a file that is none, or is cut off.
    """
    known = {t.safetensors: name for name, t in ELEMENT_TYPES.items() if t.safetensors}
    out: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as held:
                for name in held.keys():  # noqa: SIM118 - not a dictionary
                    part = held.get_slice(name)
                    kind = part.get_dtype()
                    if kind not in known:
                        raise IrpruneError(
                            f"{name!r} has the element type {kind}", str(file), "convert the file"
                        )
                    dtype = TO_TORCH[known[kind]]
                    out[name] = StoredTensor(partial(_read, file, name), part.get_shape(), dtype)
        except (SafetensorError, OSError) as broken:
            raise IrpruneError(
                f"the shard cannot be read: {gist(broken)}", str(file), "copy or save it again"
            ) from broken
    return out


def _read(file: Path, name: str) -> torch.Tensor:
    """A tensor of ``file``, which is mapped only as long as the tensor lives: mapped pages that
    were read count as memory of the process."""
    trim()
    try:
        with safe_open(file, "pt") as held:
            made: torch.Tensor = held.get_tensor(name)
            return made
    except (SafetensorError, OSError) as broken:
        raise IrpruneError(
            f"{name!r} cannot be read: {gist(broken)}",
            str(file),
            "the file has changed since the start: leave it as it is",
        ) from broken


def _class_of(kind: Any, config: Any, folder: Path) -> Any:
    """The class of the model where ``kind`` is one of those that choose by the config: one of the
    folder's own code, which the caller trusts, or of transformers."""
    from transformers import PreTrainedModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if issubclass(kind, PreTrainedModel):
        return kind
    own = (getattr(config, "auto_map", None) or {}).get(kind.__name__)
    if own is not None:
        return get_class_from_dynamic_module(own, str(folder))
    found = kind._model_mapping[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found


def check_weight_files(folder: Path, endings: Iterable[str]) -> None:
    """Whether there are weights beside the config of a folder. A model of random numbers is nothing
    that is pruned without a word.

    Args:
        folder: Where config.json lies.
        endings: How the names of files with weights end.

    Raises:
        IrpruneError: Where there is none.
    """
    if not any(any(folder.glob(f"*{ending}")) for ending in endings):
        raise IrpruneError(
            "no weights here: neither a safetensors file nor shards with their index",
            str(folder),
            "copy them here; a model with random weights is given as FILE.py:function",
        )


def check_weights(found: Mapping[str, Any], folder: Path) -> None:
    """Whether the files of a folder hold all weights of its model: transformers draws random
    numbers for the others.

    Args:
        found: What ``from_pretrained`` says of the loading (``output_loading_info=True``).
        folder: Where the files lie.

    Raises:
        IrpruneError: Where a weight is in no file.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise IrpruneError(
            f"no file holds the weights {', '.join(missing[:3])}{more}",
            str(folder),
            "copy the missing files here, or save the whole model with save_pretrained",
        )


def stored_model(kind: Any, config: Any, folder: Path, **told: Any) -> Any:
    """What ``kind.from_pretrained(folder)`` of transformers gives, with weights that stay in the
    files; None where the folder has no safetensors files.

    transformers itself puts the tensors into the model; a tensor that it makes from several, as the
    experts of some mixtures, is in memory afterwards.

    Args:
        kind: The class of the model.
        config: Its configuration.
        folder: Where the files lie.
        **told: Further arguments of ``from_pretrained``.

    Raises:
        IrpruneError: For files that cannot be read, or do not hold all weights.
    """
    files = stored_files(folder)
    if not files:
        return None
    large_blocks_apart()
    kind = _class_of(kind, config, folder)
    with without_bar(), quiet():
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=stored_tensors(files),
            output_loading_info=True,
            **told,
        )
    check_weights(found, folder)
    model.name_or_path = model.config._name_or_path = str(folder)
    if model.can_generate() and (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model
