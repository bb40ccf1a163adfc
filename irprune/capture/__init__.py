"""Capture: a model comes in and becomes a graph."""
