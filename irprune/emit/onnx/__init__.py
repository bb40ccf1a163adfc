"""Graphs that came from ONNX as ONNX: the file that came in, edited."""

from irprune.base.moved import names_of

__getattr__ = names_of(
    __name__, "irprune.emit.onnx.emitter", ("Emitter", "emit_onnx", "write_onnx")
)
