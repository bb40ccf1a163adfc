"""Choosing what to drop: names, widths and who carries their ratio, counts, ranks, budgets.
``passes/choose.py`` puts them together."""
