"""Emitting: a graph goes out as a module or an ONNX file."""
