"""Graphs that came from ONNX as ONNX: the file that came in, edited."""
