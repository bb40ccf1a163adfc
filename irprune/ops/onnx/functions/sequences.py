"""Sequences and optional values of ONNX in torch: lists, and None for what is left out."""

# mypy: ignore-errors
from __future__ import annotations

import torch


def sequence_of(*items):
    return list(items)


def sequence_with(items, item, place=None):
    at = len(items) if place is None else int(place)
    at = at + len(items) if at < 0 else at
    return [*items[:at], item, *items[at:]]


def sequence_without(items, place=None):
    at = len(items) - 1 if place is None else int(place) % len(items)
    return [*items[:at], *items[at + 1 :]]


def sequence_at(items, place):
    return items[int(place)]


def sequence_length(items):
    return torch.tensor(len(items))


def sequence_joined(items, *, axis, new_axis):
    return torch.stack(items, axis) if new_axis else torch.cat(items, axis)


def sequence_split(x, sizes=None, *, axis, keepdims):
    if sizes is None:
        return [t if keepdims else t.squeeze(axis) for t in x.split(1, axis)]
    return list(x.split(int(sizes) if sizes.dim() == 0 else sizes.tolist(), axis))


def optional(x=None):
    return x


def optional_has(x=None):
    return torch.tensor(x is not None)
