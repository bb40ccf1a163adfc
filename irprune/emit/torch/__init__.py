"""Graphs as ``nn.Module``: source text, layers, folders that load without irprune, cuts in a user's
own instance."""
