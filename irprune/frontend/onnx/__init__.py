"""Reading ONNX files into graphs."""
