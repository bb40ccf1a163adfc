"""ONNX spellings of the operator table, one file per family; ``irprune.ops.onnx.importer`` says
what a spelling is."""
