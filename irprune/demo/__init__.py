"""The demonstration: a small net on digits, trained, pruned, proven and exported."""

from irprune.base.moved import names_of

__getattr__ = names_of(__name__, "irprune.demo.run", ("Demo", "run_demo"))
