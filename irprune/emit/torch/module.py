"""From a graph to an ``nn.Module``: the emitted source, instantiated and filled with tensors of its
own."""

from __future__ import annotations

import copy
import hashlib
import linecache
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from irprune.base.concurrent import concurrently
from irprune.emit.torch.source import ModuleSource, Tensor, write
from irprune.frontend.torch.source import find_torch_source
from irprune.ir.graph import Graph
from irprune.ops.arrays import as_tensor
from irprune.run.stored_tensor import StoredTensor, read

__all__ = ["build", "emit_module", "module_from_source", "source_of"]


@lru_cache(maxsize=64)
def _namespace(text: str) -> dict[str, Any]:
    """What the emitted source defines. Instances pickle and copy by their source, so that they load
    in another process."""
    file = f"<irprune {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = {"__name__": "irprune.emitted", "__source__": text}
    exec(compile(text, file, "exec"), space)  # the text is our own

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return _revive, (text, type(self).__name__), self.__dict__

    for name in ("Model", "Part"):
        space[name].__reduce_ex__ = reduce
    return space


def _revive(text: str, name: str) -> nn.Module:
    """An empty instance of a class of the emitted source; pickle fills it."""
    kind = _namespace(text)[name]
    made: nn.Module = kind.__new__(kind)
    return made


def source_of(module: nn.Module) -> str:
    """The source that an emitted module was made from. Raises TypeError for any other module."""
    text = getattr(type(module).forward, "__globals__", {}).get("__source__")
    if not isinstance(text, str):
        raise TypeError(f"{type(module).__name__} was not emitted by irprune")
    return text


class _Unfilled(TorchFunctionMode):
    """Layers are made on the meta device, and without the initial values that ``fill`` would
    overwrite."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIAL:
            return args[0] if args else kwargs["tensor"]
        factory = _FACTORIES.get(func)
        if factory is not None:
            return factory(*args, **{**kwargs, "device": "meta"})
        return func(*args, **kwargs)


# Without values all tensors of a size are alike
_FACTORIES: dict[Any, Any] = {
    torch.empty: torch.empty,
    torch.zeros: torch.empty,
    torch.ones: torch.empty,
    torch.full: torch.full,
    torch.tensor: torch.tensor,
    torch.arange: torch.arange,
    torch.rand: torch.empty,
    torch.randn: torch.empty,
}
_INITIAL = {
    nn.init.kaiming_uniform_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.constant_,
    nn.init.xavier_uniform_,
    torch.Tensor.zero_,
    torch.Tensor.fill_,
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
}


def build(
    source: ModuleSource, borrowed: Iterable[torch.Tensor] = (), stored: bool = False
) -> nn.Module:
    """The module of ``source`` in eval mode; what lies in the storage of a ``borrowed`` tensor is
    copied, as is every numpy array. Where it is ``stored``, parameters are loaded when they are
    used."""
    theirs = {t.untyped_storage().data_ptr() for t in borrowed if not isinstance(t, StoredTensor)}

    def owned(weight: Tensor) -> torch.Tensor:
        if stored and weight.learned:
            return StoredTensor(partial(plain, weight.load), weight.shape, weight.dtype)
        loaded = weight.load()
        loaded = read(loaded) if isinstance(loaded, torch.Tensor) else loaded
        array = as_tensor(loaded)
        own = isinstance(loaded, torch.Tensor) and array.untyped_storage().data_ptr() not in theirs
        return array.contiguous() if own else array.clone(memory_format=torch.contiguous_format)

    with torch.inference_mode(False):  # the mode is the caller's alone, not that of its threads
        held = dict(zip(source.tensors, concurrently(owned, source.tensors.values()), strict=True))
    return module_from_source(source.text, held, source.classes)


def module_from_source(
    text: str, tensors: Mapping[str, torch.Tensor], classes: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module of an emitted source, holding ``tensors`` themselves; ``classes`` are the user's
    classes that the text names."""
    space = _namespace(text)
    space.update(classes or {})
    with _Unfilled():
        module: nn.Module = space["Model"]()
    space["fill"](module, tensors)
    return module.eval()


def plain(load: Callable[[], Any]) -> torch.Tensor:
    """What ``load`` gives, as a tensor in memory."""
    loaded = load()
    return as_tensor(read(loaded) if isinstance(loaded, torch.Tensor) else loaded)


def emit_module(graph: Graph, stored: bool = False) -> nn.Module:
    """An ``nn.Module`` that computes ``graph``, with the captured model's call signature and state
    names.

    Its tensors share no memory with the captured model; those of a ``stored`` one are loaded when
    they are used. Raises IrpruneError for an operator that has no spelling in torch."""
    source = find_torch_source(graph)
    borrowed = [e.tensor for e in source.state.values()] if source is not None else []
    constants = [w.load() for w in graph.weights.values() if w.kind == "constant"]
    theirs = [*borrowed, *(c for c in constants if isinstance(c, torch.Tensor))]
    made = build(write(graph), theirs, stored)
    described = vars(source.module) if source is not None and source.module is not None else {}
    for name in _DESCRIBING:
        if name in described:
            setattr(made, name, copy.deepcopy(described[name]))
    return made


# Attributes by which libraries are told how to call a model (timm: size, mean and spread of images)
_DESCRIBING = ("pretrained_cfg", "default_cfg")
