"""Ways to plant a fault: contexts in which a function, the source that is written, the loader, the
ONNX file or the reading of an operator is another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import onnx
from onnx import helper

import irprune.emit.onnx.emitter as emitter
import irprune.emit.torch.module as emission
import irprune.emit.torch.saved as saved
from irprune.ir.graph import Graph
from irprune.ops.onnx.importer import SPELLINGS

__all__ = ["NotPlanted", "Plant", "attribute", "loader", "message", "source", "spelled", "wrapped"]

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


class NotPlanted(AssertionError):
    """The place for a fault was not found, so that nothing can be said about it."""


def wrapped(place: Any, name: str, change: Callable[..., Any]) -> Plant:
    """The function ``name`` of ``place`` called through ``change(real, *args)``."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        real = getattr(place, name)
        met = []

        def wrong(*args: Any, **kwargs: Any) -> Any:
            met.append(1)
            return change(real, *args, **kwargs)

        with mock.patch.object(place, name, wrong):
            yield
        if not met:
            raise NotPlanted(name)

    return plant


def source(old: str, new: str) -> Plant:
    """The emitted source with ``new`` in the place of ``old``."""

    def change(real: Any, graph: Graph) -> Any:
        made = real(graph)
        if old not in made.text:
            raise NotPlanted(old)
        return replace(made, text=made.text.replace(old, new))

    return wrapped(emission, "write", change)


def loader(old: str, new: str) -> Plant:
    """The loader in ``model.py`` with ``new`` in the place of ``old``."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        if old not in saved._LOADER:
            raise NotPlanted(old)
        with mock.patch.object(saved, "_LOADER", saved._LOADER.replace(old, new)):
            yield

    return plant


def message(change: Callable[[onnx.ModelProto], None]) -> Plant:
    """The ONNX file that is made, changed."""

    def wrong(real: Any, self: Any) -> Any:
        made = real(self)
        before = made.SerializeToString()
        change(made)
        if made.SerializeToString() == before:
            raise NotPlanted("message")
        return made

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        real = emitter.Emitter.emit
        with mock.patch.object(emitter.Emitter, "emit", lambda self: wrong(real, self)):
            yield

    return plant


def attribute(kind: str, name: str, value: Any) -> Plant:
    """An attribute of every node ``kind`` of the ONNX file that is made set to ``value``."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == kind:
                kept = [a for a in node.attribute if a.name != name]
                del node.attribute[:]
                node.attribute.extend(kept)
                if value is not None:
                    node.attribute.append(helper.make_attribute(name, value))

    return message(change)


def spelled(target: str, change: Callable[[Any], Any]) -> Plant:
    """The ONNX operator ``target`` read with other attributes."""

    def plant() -> contextlib.AbstractContextManager[Any]:
        made = SPELLINGS[target]

        def read(node: Any) -> Any:
            return made.read(replace(node, attrs=change(dict(node.attrs))))

        return mock.patch.dict(SPELLINGS, {target: replace(made, read=read)})

    return plant
