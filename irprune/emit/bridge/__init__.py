"""From one world to the other: modules as ONNX files, graphs of ONNX files as modules."""
