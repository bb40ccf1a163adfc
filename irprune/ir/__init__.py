"""The graph, its types and the axis algebra; imports neither torch nor onnx."""
