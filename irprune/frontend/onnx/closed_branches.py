"""A model whose Ifs were opened as one that runs: what only one branch needs goes back into it.

It goes by who reads what, and knows nothing of how the branches stood in the file, which the
emitter goes by: where one of them is wrong, the proof sees it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from irprune.frontend.onnx.order import reads, target_of
from irprune.ops.choice import OPENED, shared_start

__all__ = ["close_branches", "is_opened"]

Path = tuple[tuple[int, bool], ...]  # of choices by their index, and the side of each


def is_opened(node: onnx.NodeProto) -> bool:
    """Whether ``node`` chooses between the results of branches that stand in its graph."""
    return target_of(node) == OPENED


def close_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with an If for each one that was opened; ``model`` itself where there is
    none. Nodes that no output needs are left out."""
    if not any(map(is_opened, model.graph.node)):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = max(made.ir_version, 4)  # before, every initializer had to be an input
    nodes = list(model.graph.node)
    del made.graph.node[:]
    paths = _paths(nodes, [v.name for v in model.graph.output])
    made.graph.node.extend(_Closing(nodes, paths).nodes(()))
    return made


def _paths(nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> dict[int, Path]:
    """For each node that ``wanted`` names need, the branches through which alone it leads there."""
    of_name: dict[str, Path] = dict.fromkeys(wanted, ())
    found: dict[int, Path] = {}

    def use(name: str, path: Path) -> None:
        of_name[name] = shared_start(of_name.get(name, path), path)

    for i in range(len(nodes) - 1, -1, -1):
        node = nodes[i]
        read = [of_name[name] for name in node.output if name in of_name]
        if not read:
            continue
        path = read[0]
        for other in read[1:]:
            path = shared_start(path, other)
        found[i] = path
        if not is_opened(node):
            for name in reads(node):
                use(name, path)
            continue
        use(node.input[0], path)
        half = len(node.input) // 2
        for k, name in enumerate(node.input[1:]):
            use(name, (*path, (i, k < half)))
    return found


class _Closing:
    def __init__(self, nodes: Sequence[onnx.NodeProto], paths: dict[int, Path]) -> None:
        self.all = nodes
        self.at: dict[Path, list[int]] = {}
        for i in sorted(paths):
            self.at.setdefault(paths[i], []).append(i)

    def nodes(self, path: Path) -> list[onnx.NodeProto]:
        """The nodes that stand right in the branch ``path``."""
        return [
            self._closed(i, path) if is_opened(self.all[i]) else self.all[i]
            for i in self.at.get(path, ())
        ]

    def _closed(self, index: int, path: Path) -> onnx.NodeProto:
        node = self.all[index]
        half = len(node.input) // 2
        results = {True: node.input[1 : 1 + half], False: node.input[1 + half :]}
        bodies = {
            truth: self._body(index, (*path, (index, truth)), names)
            for truth, names in results.items()
        }
        return onnx.helper.make_node(
            OPENED.split("::")[1],
            [node.input[0]],
            list(node.output),
            node.name,
            then_branch=bodies[True],
            else_branch=bodies[False],
        )

    def _body(self, index: int, path: Path, results: Sequence[str]) -> onnx.GraphProto:
        body = onnx.GraphProto(name=f"branch{index}{path[-1][1]}")
        body.node.extend(self.nodes(path))
        for k, name in enumerate(results):
            own = f"{body.name}.{k}"  # a branch gives what it makes itself, and each but once
            body.node.append(onnx.helper.make_node("Identity", [name], [own]))
            body.output.append(onnx.ValueInfoProto(name=own))
        return body
