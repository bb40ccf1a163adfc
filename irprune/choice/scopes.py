"""Over which groups importance is compared: see the pass ``choose``."""

from __future__ import annotations

__all__ = ["SCOPES"]

SCOPES = ("local", "global", "isomorphic", "knapsack")
