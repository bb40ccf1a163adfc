"""``python -m irprune``."""

from irprune.cli import main

main()
