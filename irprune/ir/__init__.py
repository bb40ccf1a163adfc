"""The graph, its types and the axis algebra; imports neither torch nor onnx."""

from irprune.ir.graph import Graph
from irprune.ir.text import to_text

Graph.printer = staticmethod(to_text)
