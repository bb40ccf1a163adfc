"""The passes, one per file, and the pipelines made of them. Installed as ``irprune.passes``."""

if __name__ != "irprune.passes":
    raise ImportError("this package is imported as irprune.passes: install the project (pip install -e .) and write `from irprune import passes`")
