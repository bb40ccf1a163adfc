"""What an operator computes on those present, written as ONNX nodes.

An entry's ``silence`` says it once, in torch's terms. ``Recorder`` stands in the place of torch
there: its tensors record ONNX nodes instead of computing, so that the same declaration makes the
subgraph that onnxruntime runs. What depends on constants alone is computed at once. A function that
has no ONNX form here raises Untraced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.ir.dtype import TO_ONNX, is_float, numpy_dtype

if TYPE_CHECKING:
    import onnx

__all__ = ["DType", "Recorder", "Tensor", "Untraced"]

_ORDER = ("bool", "u8", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64")


class Untraced(Exception):
    """Raised for what cannot be recorded."""


@dataclass(frozen=True)
class DType:
    """An element type as torch shows it."""

    name: str

    @property
    def is_floating_point(self) -> bool:
        return is_float(self.name)


class Tensor:
    """A tensor of the model (``name``) or a constant (``array``) of a known shape."""

    def __init__(
        self,
        recorder: Recorder,
        shape: Sequence[int],
        dtype: str,
        name: str = "",
        array: NDArray[Any] | None = None,
    ) -> None:
        self.recorder, self.shape, self.dtype = recorder, tuple(shape), DType(dtype)
        self.name, self.array = name, array
        self.device = None

    def __getattr__(self, name: str) -> Any:
        raise Untraced(f"tensor.{name}")

    def dim(self) -> int:
        return len(self.shape)

    ndim = property(dim)

    def _with(self, kind: str, other: Any, swap: bool = False) -> Tensor:
        return (
            self.recorder.binary(kind, other, self)
            if swap
            else self.recorder.binary(kind, self, other)
        )

    def __add__(self, other: Any) -> Tensor:
        return self._with("Add", other)

    def __radd__(self, other: Any) -> Tensor:
        return self._with("Add", other, True)

    def __sub__(self, other: Any) -> Tensor:
        return self._with("Sub", other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._with("Sub", other, True)

    def __mul__(self, other: Any) -> Tensor:
        return self._with("Mul", other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._with("Mul", other, True)

    def __truediv__(self, other: Any) -> Tensor:
        return self._with("Div", other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._with("Div", other, True)

    def __pow__(self, other: Any) -> Tensor:
        return self._with("Pow", other)

    def __and__(self, other: Any) -> Tensor:
        return self._with("And", other)

    def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self.recorder.reduce("ReduceSum", self, dim, keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor:
        return self.recorder.reduce("ReduceMean", self, dim, keepdim)

    def sqrt(self) -> Tensor:
        return self.recorder.unary("Sqrt", self)

    def clamp(self, min: float | None = None, max: float | None = None) -> Tensor:
        out = self if min is None else self.recorder.binary("Max", self, min)
        return out if max is None else self.recorder.binary("Min", out, max)

    def reshape(self, *shape: Any) -> Tensor:
        sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        if -1 in sizes:
            rest = int(np.prod([s for s in sizes if s != -1], dtype=np.int64))
            sizes[sizes.index(-1)] = int(np.prod(self.shape, dtype=np.int64)) // max(rest, 1)
        return self.recorder.shaped("Reshape", self, sizes)

    def expand(self, *shape: Any) -> Tensor:
        sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        shift = len(sizes) - len(self.shape)
        return self.recorder.shaped(
            "Expand", self, [self.shape[k - shift] if s == -1 else s for k, s in enumerate(sizes)]
        )

    def squeeze(self, dims: Any) -> Tensor:
        gone = {d % len(self.shape) for d in ([dims] if isinstance(dims, int) else dims)}
        return self.reshape([s for k, s in enumerate(self.shape) if not (k in gone and s == 1)])

    def unsqueeze(self, dim: int) -> Tensor:
        sizes = list(self.shape)
        sizes.insert(dim % (len(sizes) + 1), 1)
        return self.reshape(sizes)

    def contiguous(self) -> Tensor:
        return self

    def flatten(self) -> Tensor:
        return self.reshape([-1])

    def to(self, dtype: DType) -> Tensor:
        return self.recorder.cast(self, dtype.name)


class Recorder:
    """Stands for the module ``torch``; ``nodes`` and ``constants`` are what it recorded."""

    def __init__(self, prefix: str, opset: int) -> None:
        self.prefix, self.opset = prefix, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        if name == "bool":
            return DType("bool")
        raise Untraced(f"torch.{name}")

    # -- making ------------------------------------------------------------------------------------

    def fresh(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"

    def constant(self, array: NDArray[Any], dtype: str) -> Tensor:
        return Tensor(self, array.shape, dtype, array=array.astype(numpy_dtype(dtype)))

    def named(self, x: Tensor) -> str:
        """The name of ``x`` in the model; a constant is stored now."""
        if not x.name:
            assert x.array is not None
            x.name = self.fresh()
            self.constants[x.name] = x.array
        return x.name

    def node(
        self, kind: str, inputs: Sequence[str], shape: Sequence[int], dtype: str, **attrs: Any
    ) -> Tensor:
        from onnx import helper

        out = Tensor(self, shape, dtype, self.fresh())
        self.nodes.append(helper.make_node(kind, list(inputs), [out.name], **attrs))
        return out

    # -- computing ---------------------------------------------------------------------------------

    def binary(self, kind: str, a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        a, b = (x if isinstance(x, Tensor) else self.scalar(x, like) for x in (a, b))
        dtype = max(a.dtype.name, b.dtype.name, key=_ORDER.index)
        if kind == "Div" and not is_float(dtype):
            dtype = "f32"
        x, y = self.cast(a, dtype), self.cast(b, dtype)
        shape = np.broadcast_shapes(x.shape, y.shape)
        if x.array is not None and y.array is not None:
            f = {
                "Add": np.add,
                "Sub": np.subtract,
                "Mul": np.multiply,
                "Div": np.divide,
                "Pow": np.power,
                "Max": np.maximum,
                "Min": np.minimum,
                "And": np.logical_and,
            }[kind]
            return self.constant(f(x.array, y.array), dtype)
        return self.node(kind, [self.named(x), self.named(y)], shape, dtype)

    def scalar(self, value: Any, like: Tensor) -> Tensor:
        floating = isinstance(value, float) and not like.dtype.is_floating_point
        return self.constant(np.asarray(value), "f32" if floating else like.dtype.name)

    def unary(self, kind: str, x: Tensor) -> Tensor:
        if x.array is not None:
            return self.constant(
                {
                    "Sqrt": np.sqrt,
                    "Exp": np.exp,
                    "Log": np.log,
                    "Reciprocal": np.reciprocal,
                    "Not": np.logical_not,
                }[kind](x.array),
                x.dtype.name,
            )
        return self.node(kind, [x.name], x.shape, x.dtype.name)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        if x.dtype.name == dtype:
            return x
        if x.array is not None:
            return self.constant(x.array, dtype)
        return self.node("Cast", [x.name], x.shape, dtype, to=TO_ONNX[dtype])

    def reduce(self, kind: str, x: Tensor, dim: Any, keepdim: bool) -> Tensor:
        dims = (
            list(range(x.dim()))
            if dim is None
            else sorted(d % x.dim() for d in ([dim] if isinstance(dim, int) else dim))
        )
        shape = [1 if k in dims else s for k, s in enumerate(x.shape) if keepdim or k not in dims]
        if x.array is not None:
            made = (np.sum if kind == "ReduceSum" else np.mean)(
                x.array, axis=tuple(dims), keepdims=keepdim
            )
            return self.constant(
                np.asarray(made), "i64" if x.dtype.name == "bool" else x.dtype.name
            )
        since = 13 if kind == "ReduceSum" else 18
        if self.opset >= since:
            axes = self.named(self.constant(np.array(dims, np.int64), "i64"))
            return self.node(kind, [x.name, axes], shape, x.dtype.name, keepdims=int(keepdim))
        return self.node(kind, [x.name], shape, x.dtype.name, axes=dims, keepdims=int(keepdim))

    def shaped(self, kind: str, x: Tensor, sizes: Sequence[int]) -> Tensor:
        if tuple(sizes) == x.shape:
            return x
        if x.array is not None:
            made = x.array.reshape(sizes) if kind == "Reshape" else np.broadcast_to(x.array, sizes)
            return self.constant(made, x.dtype.name)
        return self.node(
            kind,
            [x.name, self.named(self.constant(np.array(sizes, np.int64), "i64"))],
            sizes,
            x.dtype.name,
        )

    # -- the part of torch that declarations use ---------------------------------------------------

    def where(self, mask: Tensor, a: Any, b: Any) -> Tensor:
        """Selection. Before opset 9, which has none, a product with the mask and a sum: the same
        for numbers that are finite."""
        like = a if isinstance(a, Tensor) else b
        a, b = (x if isinstance(x, Tensor) else self.scalar(x, like) for x in (a, b))
        dtype = max(a.dtype.name, b.dtype.name, key=_ORDER.index)
        x, y = self.cast(a, dtype), self.cast(b, dtype)
        shape = np.broadcast_shapes(mask.shape, x.shape, y.shape)
        if all(t.array is not None for t in (mask, x, y)):
            return self.constant(np.where(mask.array, x.array, y.array), dtype)  # type: ignore[arg-type]
        if self.opset < 9:
            return self.binary(
                "Add", self._where_kept(mask, x), self._where_kept(self.unary("Not", mask), y)
            )
        return self.node("Where", [self.named(mask), self.named(x), self.named(y)], shape, dtype)

    def _where_kept(self, mask: Tensor, x: Tensor) -> Tensor:
        """``x`` where ``mask`` is true, zero elsewhere."""
        if x.dtype.name == "bool":
            raise Untraced("a selection of booleans before opset 9")
        if x.array is not None and mask.array is not None:
            return self.constant(np.where(mask.array, x.array, 0), x.dtype.name)
        return self.binary("Mul", x, self.cast(mask, x.dtype.name))

    def zeros(self, shape: Sequence[int], dtype: DType, device: Any = None) -> Tensor:
        return self.constant(np.zeros(tuple(shape)), dtype.name)

    def ones(self, shape: Sequence[int], dtype: DType, device: Any = None) -> Tensor:
        return self.constant(np.ones(tuple(shape)), dtype.name)

    def full(self, shape: Sequence[int], value: float, dtype: DType, device: Any = None) -> Tensor:
        return self.constant(np.full(tuple(shape), value), dtype.name)

    def arange(self, end: int, device: Any = None) -> Tensor:
        return self.constant(np.arange(end), "i64")

    def embedding(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows of ``table``."""
        return self.node(
            "Gather",
            [self.named(table), self.named(index)],
            [*index.shape, *table.shape[1:]],
            table.dtype.name,
        )

    def zeros_like(self, x: Tensor) -> Tensor:
        return self.constant(np.zeros(()), x.dtype.name)

    def sqrt(self, x: Tensor) -> Tensor:
        return self.unary("Sqrt", x)

    def exp(self, x: Tensor) -> Tensor:
        return self.unary("Exp", x)

    def rsqrt(self, x: Tensor) -> Tensor:
        return self.unary("Reciprocal", self.unary("Sqrt", x))

    def finfo(self, dtype: DType) -> Any:
        return np.finfo(numpy_dtype(dtype.name)) if dtype.name != "bf16" else np.finfo(np.float32)

    def iinfo(self, dtype: DType) -> Any:
        return np.iinfo(numpy_dtype(dtype.name))
