"""Pruning and training together: steps with training between them, distillation, sparse
training."""
