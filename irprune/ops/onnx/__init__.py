"""ONNX spellings of the operator table, one file per family; ``irprune.ops.onnx.spell`` says what a spelling is."""
