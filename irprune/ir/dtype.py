"""Element types: the one table of what they are called, how large they are and which numbers they
hold.

The graph writes an element type by its short name (``f32``). Everything else that a file, torch,
numpy or safetensors calls it stands in the table; whoever needs one of these names asks here, and
``irprune.ops.dtypes`` derives torch's own objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

__all__ = [
    "ELEMENT_TYPES",
    "FROM_NUMPY",
    "FROM_ONNX",
    "TO_ONNX",
    "ElementType",
    "computed_type",
    "element_type",
    "is_borrowed",
    "is_float",
    "is_half",
    "is_integer",
    "is_real",
    "item_bytes",
    "numpy_dtype",
]


@dataclass(frozen=True, slots=True)
class ElementType:
    """An element type.

    Args:
        name: the short name that the graph writes.
        kind: ``float``, ``int`` (signed), ``uint``, ``bool``, ``complex`` or ``string``.
        bits: the width of one element; 0 for strings.
        onnx: the number in ``onnx.TensorProto.DataType``.
        array: the name in numpy, or in ``ml_dtypes`` where numpy has no such type.
        torch: the name of the attribute of ``torch``; empty where torch cannot compute with it.
        safetensors: the name in the header of a safetensors file; empty where there is none.
    """

    name: str
    kind: str
    bits: int
    onnx: int
    array: str
    torch: str = ""
    safetensors: str = ""

    @property
    def item_bytes(self) -> int:
        """Bytes of one element in memory, where the narrowest types take a byte each."""
        return -(-self.bits // 8)

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers with an exponent."""
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers, with or without a sign; booleans are none."""
        return self.kind in ("int", "uint")

    @property
    def is_half(self) -> bool:
        """Whether it is one of the two 16-bit floating-point types."""
        return self.kind == "float" and self.bits == 16

    @property
    def is_real(self) -> bool:
        """Whether it is a floating-point type that is computed in: of 16 bits or more, since
        narrower ones only store."""
        return self.kind == "float" and self.bits >= 16

    @property
    def is_complex(self) -> bool:
        """Whether it holds complex numbers."""
        return self.kind == "complex"

    @property
    def is_borrowed(self) -> bool:
        """Whether its array type comes from ``ml_dtypes``: bfloat16 and all that is narrower than
        numpy's own."""
        return self.name == "bf16" or 0 < self.bits < (16 if self.is_float else 8)

    def numpy(self) -> np.dtype[Any]:
        """The array type; ``ml_dtypes``' where numpy has none."""
        if self.kind == "string":
            return np.dtype(object)
        if not self.is_borrowed:
            return np.dtype(self.array)
        made: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.array))
        return made


ELEMENT_TYPES: dict[str, ElementType] = {
    t.name: t
    for t in (
        ElementType("f64", "float", 64, 11, "float64", "float64", "F64"),
        ElementType("f32", "float", 32, 1, "float32", "float32", "F32"),
        ElementType("f16", "float", 16, 10, "float16", "float16", "F16"),
        ElementType("bf16", "float", 16, 16, "bfloat16", "bfloat16", "BF16"),
        ElementType("f8e4m3fn", "float", 8, 17, "float8_e4m3fn", "float8_e4m3fn", "F8_E4M3"),
        ElementType("f8e5m2", "float", 8, 19, "float8_e5m2", "float8_e5m2", "F8_E5M2"),
        ElementType("f8e4m3fnuz", "float", 8, 18, "float8_e4m3fnuz"),
        ElementType("f8e5m2fnuz", "float", 8, 20, "float8_e5m2fnuz"),
        ElementType("f4e2m1", "float", 4, 23, "float4_e2m1fn"),
        ElementType("i64", "int", 64, 7, "int64", "int64", "I64"),
        ElementType("i32", "int", 32, 6, "int32", "int32", "I32"),
        ElementType("i16", "int", 16, 5, "int16", "int16", "I16"),
        ElementType("i8", "int", 8, 3, "int8", "int8", "I8"),
        ElementType("i4", "int", 4, 22, "int4"),
        ElementType("u64", "uint", 64, 13, "uint64", "uint64", "U64"),
        ElementType("u32", "uint", 32, 12, "uint32", "uint32", "U32"),
        ElementType("u16", "uint", 16, 4, "uint16", "uint16", "U16"),
        ElementType("u8", "uint", 8, 2, "uint8", "uint8", "U8"),
        ElementType("u4", "uint", 4, 21, "uint4"),
        ElementType("bool", "bool", 8, 9, "bool", "bool", "BOOL"),
        ElementType("c64", "complex", 64, 14, "complex64", "complex64", "C64"),
        ElementType("c128", "complex", 128, 15, "complex128", "complex128"),
        ElementType("str", "string", 0, 8, "object"),
    )
}
"""Every element type by its short name."""

FROM_ONNX: dict[int, str] = {t.onnx: t.name for t in ELEMENT_TYPES.values()}
"""The short name of each number that ONNX gives a type."""

TO_ONNX: dict[str, int] = {t.name: t.onnx for t in ELEMENT_TYPES.values()}
"""ONNX's number of each short name."""

FROM_NUMPY: dict[str, str] = {t.array: t.name for t in ELEMENT_TYPES.values()}
"""The short name of each type's name in numpy or ``ml_dtypes``."""

_UNKNOWN = ElementType("", "unknown", 32, 0, "")


def element_type(name: str) -> ElementType:
    """The entry of ``name``. What a value is called that is no tensor (``sequence_type``), and a
    type of which only the number is known (``onnx99``), have an entry that is of no kind and takes
    four bytes."""
    return ELEMENT_TYPES.get(name, _UNKNOWN)


def is_float(name: str) -> bool:
    """Whether ``name`` is a floating-point type."""
    return element_type(name).is_float


def is_real(name: str) -> bool:
    """Whether ``name`` is a floating-point type that is computed in, of 16 bits or more; narrower
    ones only store."""
    return element_type(name).is_real


def is_half(name: str) -> bool:
    """Whether ``name`` is one of the two 16-bit floating-point types."""
    return element_type(name).is_half


def is_integer(name: str) -> bool:
    """Whether ``name`` is a type of whole numbers; booleans are none."""
    return element_type(name).is_integer


def item_bytes(name: str) -> int:
    """Bytes of one element of ``name`` in memory; 4 where the type is not known."""
    return element_type(name).item_bytes


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The array type of a short name. Raises KeyError for a name that is no element type."""
    return ELEMENT_TYPES[name].numpy()


def is_borrowed(kind: np.dtype[Any]) -> bool:
    """Whether an array type is one of ``ml_dtypes``, which numpy has not itself."""
    return element_type(FROM_NUMPY.get(kind.name, "")).is_borrowed


def computed_type(number: int) -> str:
    """The short name of the type that ONNX gives ``number``; empty for one that torch does not
    compute with."""
    found = element_type(FROM_ONNX.get(number, ""))
    return found.name if found.torch else ""
