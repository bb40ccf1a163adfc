"""Capture of PyTorch modules: a recorded call, or a program of ``torch.export``."""
