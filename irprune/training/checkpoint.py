"""What a schedule has done so far, in a folder: the plans, and what was trained, written by
``torch.distributed.checkpoint``. Each rank writes the shards that it holds, the first alone the
plans; any number of ranks goes on from it."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from irprune.base.atomic_write import cannot_write, left_over, locked, write_text
from irprune.base.quiet import quiet
from irprune.choice.plan import Plan
from irprune.errors import IrpruneError, gist
from irprune.training.optimizer import OptimizerState

if TYPE_CHECKING:
    from irprune.run.ranks import Ranks

__all__ = ["Checkpoint", "CheckpointContents"]

_PLANS = "plans.json"
_MODEL, _OPTIMIZER = "model/", "optimizer/"  # how the keys of tensors begin


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint holds.

    Args:
        plans: Those of the steps that were finished.
        state: The tensors of the module that the last was trained to; None where there was none.
        optimizer: What ``irprune.step_optimizer`` goes on with, where the last step had one.
    """

    plans: list[Plan] = field(default_factory=list)
    state: dict[str, torch.Tensor] | None = None
    optimizer: OptimizerState | None = None


class Checkpoint:
    """``plans.json`` and a folder of tensors that it names, replaced together: a writer that is
    killed leaves the checkpoint before."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        if folder.exists() and not folder.is_dir():
            raise IrpruneError(
                "the checkpoint is a file", str(folder), "name a folder, which may not exist yet"
            )
        self.folder, self.settings = folder, settings

    def read(self, ranks: Ranks) -> CheckpointContents:
        """What is there, on every rank; all of them call it, and must see the folder. Raises
        IrpruneError where it cannot be read, or is of another schedule."""
        told: dict[str, Any] | None = ranks.first(self._plans() if ranks.leads else None)
        if told is None:
            return CheckpointContents()
        file = self.folder / _PLANS
        try:
            plans = [Plan.read(p) for p in told["plans"]]
            tensors = _load(self.folder / str(told["state"]))
            state = _under(_MODEL, tensors)
            about = told.get("optimizer")
            optimizer = None
            if about is not None:
                values: dict[str, dict[str, Any]] = {n: dict(v) for n, v in about["plain"].items()}
                for key, value in _under(_OPTIMIZER, tensors).items():
                    name, _, own = key.rpartition("/")
                    values.setdefault(name, {})[own] = value
                shapes = {name: state[name].shape for name in values}
                optimizer = OptimizerState(about["settings"], values, shapes)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as broken:
            raise _unreadable(broken, file) from broken
        except (CheckpointException, pickle.UnpicklingError, EOFError) as broken:
            raise _unreadable(broken, file) from broken
        if told["settings"] != self.settings:
            raise IrpruneError(
                f"the checkpoint is of another schedule: {told['settings']}",
                str(file),
                "delete it, or name another folder",
            )
        return CheckpointContents(plans, state, optimizer)

    def _plans(self) -> dict[str, Any] | None:
        file = self.folder / _PLANS
        if not file.exists():
            return None
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            return {name: told[name] for name in ("settings", "state", "plans")} | {
                "optimizer": told.get("optimizer")
            }
        except (OSError, ValueError, KeyError, TypeError) as broken:
            raise _unreadable(broken, file) from broken

    def write(
        self,
        ranks: Ranks,
        plans: Sequence[Plan],
        state: Mapping[str, torch.Tensor],
        optimizer: OptimizerState | None = None,
    ) -> None:
        """Replace what is there; all ranks call it. Raises IrpruneError where it cannot be
        written."""
        name = ranks.first(f"state-{len(plans)}-{uuid.uuid4().hex[:12]}")
        tensors: dict[str, Any] = {_MODEL + n: t.detach() for n, t in state.items()}
        told: dict[str, Any] = {
            "settings": self.settings,
            "state": name,
            "plans": [p.as_json() for p in plans],
        }
        if optimizer is not None:
            told["optimizer"] = {"settings": optimizer.settings, "plain": {}}
            for own, entries in optimizer.values.items():
                told["optimizer"]["plain"][own] = {}
                for key, value in entries.items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"{_OPTIMIZER}{own}/{key}"] = value.detach()
                    else:
                        told["optimizer"]["plain"][own][key] = value
        with self._own(self.folder / name) if ranks.leads else nullcontext():
            _save(tensors, self.folder / name, ranks)
            if ranks.leads:
                write_text(self.folder / _PLANS, json.dumps(told))
                for old in self.folder.glob("state-*"):
                    if old.name != name and left_over(old):
                        rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()

    @contextmanager
    def _own(self, place: Path) -> Iterator[None]:
        """No other writer takes ``place`` for left over before the plans name it: it has that name
        only once it is locked."""
        draft = place.with_name(f".{place.name}")
        try:
            draft.mkdir(parents=True)
        except OSError:  # what writes there says why, on every rank
            yield
            return
        with locked(draft):
            draft.rename(place)
            yield


def _save(tensors: dict[str, Any], place: Path, ranks: Ranks) -> None:
    try:
        with quiet():
            place.parent.mkdir(parents=True, exist_ok=True)
            save(
                tensors,
                storage_writer=FileSystemWriter(place),
                process_group=ranks.group,
                no_dist=ranks.group is None,
            )
    except OSError as failed:
        raise cannot_write(failed, place.parent) from failed
    except CheckpointException as failed:
        first = next(iter(failed.failures.values()))[0]
        if isinstance(first, OSError):
            raise cannot_write(first, place.parent) from failed
        raise IrpruneError(
            f"the checkpoint cannot be written: {gist(first)}", str(place.parent), ""
        ) from failed


def _load(place: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, whole: a cut needs the whole module on each rank."""
    reader = _Reader(place)
    tensors: dict[str, Any] = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in reader.read_metadata().state_dict_metadata.items()
        if isinstance(about, TensorStorageMetadata)
    }
    with quiet():
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


class _Reader(FileSystemReader):
    """Reads what is in a folder without running code that somebody may have put there."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            made = _Plain(file).load()
        if not isinstance(made, Metadata):
            raise ValueError("its .metadata is something else")
        made.storage_meta = made.storage_meta or StorageMeta()
        made.storage_meta.load_id = self.load_id
        return made


_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_NAMES = (
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("builtins", "set"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
)


class _Plain(pickle.Unpickler):
    """Makes what describes tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        own = module in _MODULES and "." not in name and name.lstrip("_")[:1].isupper()
        kind = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (own or kind or (module, name) in _NAMES):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint")
        return super().find_class(module, name)


def _under(start: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}


def _unreadable(broken: BaseException, file: Path) -> IrpruneError:
    if isinstance(broken, CheckpointException):
        broken = next(iter(broken.failures.values()))[0]
    return IrpruneError(
        f"the checkpoint cannot be read: {broken}", str(file), "delete the folder to start over"
    )
