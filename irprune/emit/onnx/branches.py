"""Ifs that were opened, as they stood in the file: each with what is left of its branches, under
the names that it has there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import onnx
from onnx import TensorProto, helper

from irprune.emit.onnx.edit import tensor_of
from irprune.frontend.onnx.file import Loader
from irprune.frontend.onnx.opened_branches import OpenedBranch, Part, branch_of
from irprune.frontend.onnx.order import reads, renamed

__all__ = ["Edited", "indices_of", "restore_ifs"]


class Edited(Protocol):
    """The model that is being emitted, as far as branches need it."""

    original: onnx.ModelProto
    nodes: list[onnx.NodeProto]
    before: dict[int, list[onnx.NodeProto]]
    replaced: dict[str, TensorProto]
    data: dict[str, Loader]
    outside: set[str]
    reads: dict[str, int]

    def fresh(self, hint: str) -> str:
        """A name that nobody has, made of ``hint``."""

    def resized_info(self, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """``info`` with the sizes that its value has after pruning."""


def indices_of(part: Part) -> Iterator[int]:
    """The nodes of the opened model that ``part`` became."""
    if isinstance(part, int):
        yield part
        return
    for branch in part.branches:
        for inner in branch.parts:
            yield from indices_of(inner)
    yield part.index


def restore_ifs(part: Part, model: Edited, alive: set[int]) -> Iterator[onnx.NodeProto]:
    """The nodes of the file for ``part``: what is left of it, and what was put before."""
    if isinstance(part, int):
        yield from model.before.get(part, ())
        if part in alive:
            yield model.nodes[part]
        return
    yield from model.before.get(part.index, ())
    if part.index not in alive:
        return
    chooser, was = model.nodes[part.index], model.original.graph.node[part.index]
    half = len(chooser.input) // 2
    made = onnx.NodeProto()
    made.CopyFrom(part.node)
    made.input[:], made.output[:] = chooser.input[:1], chooser.output
    for k, branch in enumerate(part.branches):
        results = slice(1 + k * half, 1 + (k + 1) * half)
        nodes = [n for inner in branch.parts for n in restore_ifs(inner, model, alive)]
        names = _results(nodes, was.input[results], chooser.input[results], model)
        _fill(branch_of(made, k == 0), branch, nodes, names, model)
    yield made


def _results(
    nodes: list[onnx.NodeProto], were: Sequence[str], are: Sequence[str], model: Edited
) -> list[str]:
    """The names of the results ``are`` of a branch of ``nodes``, which ``were`` others: a branch
    gives what it makes itself, and each but once; copies join the ``nodes``."""
    own = {name for n in nodes for name in n.output}
    out: list[str] = []
    for old, new in zip(were, are, strict=True):
        name = new
        if new != old and (new not in own or new in out):
            name = model.fresh(old)
            nodes.append(helper.make_node("Identity", [new], [name], name=name))
        out.append(name)
    return out


def _fill(
    body: onnx.GraphProto,
    branch: OpenedBranch,
    nodes: list[onnx.NodeProto],
    results: list[str],
    model: Edited,
) -> None:
    """Let ``body``, a copy of what ``branch`` was, hold what is left of it."""
    own = {new: old for old, new in branch.names.items()}
    weights = {own.get(t.name, t.name): t for t in branch.graph.initializer}
    back = {new: old for new, old in branch.names.items() if new not in model.outside}
    infos = {own.get(v.name, v.name): v for v in branch.graph.value_info}
    outputs = list(branch.graph.output)
    del body.node[:], body.initializer[:], body.output[:], body.value_info[:]
    body.node.extend(renamed(n, back) for n in nodes)
    read = {name for n in nodes for name in reads(n)} | set(results)
    for name, tensor in weights.items():
        if name in model.outside or not (name in read or not model.reads.get(name)):
            continue
        if name in model.replaced:
            tensor = tensor_of(tensor.name, model.data.pop(name)(), tensor)
        body.initializer.append(tensor)
    for name, given in zip(results, outputs, strict=True):
        body.output.append(_info(given, name, back, model))
    made = {name for n in nodes for name in n.output} | {t.name for t in body.initializer}
    for name, given in infos.items():
        if name in made:
            body.value_info.append(_info(given, name, back, model))


def _info(
    given: onnx.ValueInfoProto, name: str, back: Mapping[str, str], model: Edited
) -> onnx.ValueInfoProto:
    """What ``given`` says, of the value that the opened model calls ``name``."""
    made = onnx.ValueInfoProto()
    made.CopyFrom(given)
    made.name = name
    made.CopyFrom(model.resized_info(made))
    made.name = back.get(name, name)
    return made
