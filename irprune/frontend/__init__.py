"""Models come in: PyTorch modules and programs, ONNX files."""
