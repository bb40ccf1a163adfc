"""ONNX's numbers for element types, which attributes such as ``to`` and ``dtype`` hold."""

from __future__ import annotations

__all__ = ["NUMBERED"]

NUMBERED: dict[int, str] = {
    1: "f32",
    2: "u8",
    3: "i8",
    4: "u16",
    5: "i16",
    6: "i32",
    7: "i64",
    8: "str",
    9: "bool",
    10: "f16",
    11: "f64",
    12: "u32",
    13: "u64",
    14: "c64",
    15: "c128",
    16: "bf16",
    17: "f8e4m3fn",
    19: "f8e5m2",
}
