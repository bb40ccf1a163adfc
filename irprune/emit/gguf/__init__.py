"""Pruned language models as GGUF files."""
