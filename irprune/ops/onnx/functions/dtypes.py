"""Element types by their short names."""

# mypy: ignore-errors
from __future__ import annotations

import torch


def torch_type(name):
    longer = {"f": "float", "i": "int", "u": "uint", "c": "complex", "bf": "bfloat"}
    letters = name.rstrip("0123456789")
    return getattr(torch, longer.get(letters, letters) + name[len(letters) :])
