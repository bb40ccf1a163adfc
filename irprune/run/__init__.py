"""Running a graph in torch or on onnxruntime: the interpreter, the oracle, inputs, calibration data
and what is measured on them."""
