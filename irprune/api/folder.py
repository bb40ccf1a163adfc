"""A folder that irprune wrote, read again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load"]


def load(folder: str | Path, trust: bool = False) -> nn.Module:
    """The pruned module in a folder that ``pruned.save`` or ``irprune prune -o`` wrote, in eval
    mode.

    Args:
        folder: The folder.
        trust: Run its ``model.py`` even where irprune did not write it.

    Raises:
        IrpruneError: Where there is no such module, and, without ``trust``, where ``model.py`` is
            not what irprune wrote.
    """
    from irprune.emit.torch.saved import from_folder

    return from_folder(folder, trust)
