"""The version of irprune that runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("irprune")
except PackageNotFoundError:  # run from its source without being installed
    __version__ = "unknown"
