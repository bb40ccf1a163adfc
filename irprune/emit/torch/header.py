"""What stands above the class in every emitted module, and the names that it takes."""

from __future__ import annotations

__all__ = ["ABOUT", "HEADER", "RESERVED"]

ABOUT = "{name}, pruned by irprune. Needs only torch; the weights lie beside this file."
HEADER = '''\
import collections
import math

import torch
import torch.nn.functional as F
from torch import nn


class Part(nn.Module):
    """A named place in the tree of modules; ``part[0]`` is its child "0", ``for child in part`` goes
    through all of them."""

    def __getitem__(self, key):
        return getattr(self, str(key))

    def __iter__(self):
        return iter(self._modules.values())


def put(root, path, item, persistent=True):
    """Hang ``item`` (a module, a parameter or a buffer) into the tree below ``root``."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, Part())
        root = root._modules[parent]
    if isinstance(item, nn.Module):
        root.add_module(name, item)
    elif isinstance(item, nn.Parameter):
        root.register_parameter(name, item)
    else:
        root.register_buffer(name, item, persistent)


def fill(model, tensors):
    """Give every parameter and buffer of ``model`` its tensor; names that share one keep sharing it."""
    places, made = [], {}
    for path, module in model.named_modules():
        for name, old in (*module._parameters.items(), *module._buffers.items()):
            if old is not None:
                places.append((module, name, old))
                new = tensors.get(path + "." + name if path else name)
                if new is not None:
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for module, name, old in places:
        setattr(module, name, made[id(old)])
    return model


def expect(name, value, captured):
    """Refuse a value that the graph was not captured with."""
    if value != captured:
        raise ValueError(f"{name}={value!r}: the model was captured with {captured!r}")


def require(name, value):
    """Refuse to go on without an argument that the graph was captured with."""
    if value is None:
        raise TypeError(f"missing argument {name!r}: the model was captured with it")


def sized(name, tensor, rank, *fixed):
    """Refuse an input of another size than the one that the model is right for."""
    if tensor.dim() != rank:
        raise ValueError(f"{name} has {tensor.dim()} dimensions, the model was captured with {rank}")
    for dim, size, why in fixed:
        if tensor.shape[dim] != size:
            raise ValueError(
                f"{name}: dimension {dim} is {tensor.shape[dim]}, the model was captured with {size}{why}"
            )


def holds(truth, why, *sizes):
    """Refuse sizes that forward treats in another way than those that it was captured with."""
    if not truth:
        found = ", ".join(
            f"{name}: dimension {dim} is {size}, the model was captured with {was}"
            for name, dim, size, was in sizes
        )
        raise ValueError(f"{found} ({why})")


def record(name, fields):
    """A class of dictionaries with attributes, in place of one that is not installed here."""
    def init(self, **values):
        dict.__init__(self, {k: v for k, v in values.items() if v is not None})
        self.__dict__.update(values)

    return type(name, (dict,), {"__init__": init, "__slots__": ("__dict__",)})


'''


RESERVED = (
    "self",
    "torch",
    "F",
    "nn",
    "put",
    "fill",
    "expect",
    "require",
    "record",
    "sized",
    "holds",
    "collections",
    "math",
    "Part",
    "Model",
    "device",
    "max",
    "min",
    "float",
    "int",
    "type",
    "complex",
    "getattr",
    "abs",
    "round",
    "next",
    "own",
)
