"""What a graph keeps of the file that it was read from: the message itself, and where its nodes and
weights stand in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph, TensorType

if TYPE_CHECKING:
    import onnx

    from irprune.frontend.onnx.file import Files
    from irprune.frontend.onnx.functions import ExpandedCalls
    from irprune.frontend.onnx.opened_branches import OpenedBranches

__all__ = ["FileTensor", "NodePlace", "OnnxSource", "onnx_source"]

Array = NDArray[Any]


@dataclass(frozen=True)
class NodePlace:
    """Where a node of the graph stands in the file: node ``index``, step ``step`` of ``steps``, the
    ONNX input of each operand (None where it is another step's result), and the attributes as they
    were read."""

    index: int
    operands: tuple[int | None, ...]
    attrs: dict[str, Any]
    step: int = 0
    steps: int = 1


@dataclass(frozen=True)
class FileTensor:
    """Where a weight's array stands in the file.

    ``kind`` is ``initializer``, ``constant`` (a Constant node), ``filled`` (a ConstantOfShape node)
    or ``folded`` (a value that shape arithmetic computes); ``name`` is the name of the tensor
    there."""

    kind: str
    name: str
    load: Callable[[], Array]


@dataclass
class OnnxSource:
    """The file behind a graph, and what reading it found. ``model`` is never changed; calls of
    local functions are opened in it, and then Ifs. ``renewed`` names tensors that hold something
    else than those of this name in the file."""

    dialect: ClassVar[str] = "onnx"

    model: onnx.ModelProto
    files: Files
    calls: ExpandedCalls | None = None
    branches: OpenedBranches | None = None
    stored: dict[str, FileTensor] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    known: dict[str, Array] = field(default_factory=dict)
    # Known values that derive from the shape of a tensor
    computed: dict[str, None] = field(default_factory=dict)
    module_types: dict[str, type] = field(default_factory=dict)
    renewed: frozenset[str] = frozenset()

    @property
    def given(self) -> onnx.ModelProto:
        """The message that came in, with its calls and its Ifs."""
        if self.calls is not None:
            return self.calls.given
        return self.model if self.branches is None else self.branches.given

    def example_shapes(self) -> list[tuple[int, ...]] | None:
        """None: a file holds no example call."""
        return None

    def folder(self) -> str:
        """The folder of the file; "" for a model that was given as an object."""
        return "" if self.files.path is None else str(self.files.path.parent)

    def bind_args(self, args: tuple[Any, ...]) -> tuple[list[Any], tuple[Any, ...]] | None:
        """None: a file takes its inputs one by one, in their order."""
        return None

    def bind_names(
        self, given: Mapping[str, Any], where: str
    ) -> tuple[list[Any], Sequence[str]] | None:
        """None: a file knows no names beside those of its inputs."""
        return None

    def opset(self, domain: str) -> int:
        return next(
            (
                o.version
                for o in self.model.opset_import
                if (o.domain or "ai.onnx") == (domain or "ai.onnx")
            ),
            1,
        )


def onnx_source(graph: Graph) -> OnnxSource:
    """The source of a graph that was read from a file. Raises IrpruneError for any other."""
    if not isinstance(graph.source, OnnxSource):
        raise IrpruneError(
            "this graph did not come from ONNX", graph.name, "export its module instead"
        )
    return graph.source
