"""The passes, one per file, and the pipelines made of them. Installed as ``irprune.passes``.

A pass returns a ``PassResult``. A pipeline is a tuple of names; ``irprune opt -p`` takes its name
in lower case, and joins of them::

    prepare,analyse,score{importance=random},choose{ratio=0.3},cut
"""

from irprune.passes.result import PassResult

if __name__ != "irprune.passes":
    raise ImportError(
        "this folder is the package irprune.passes: `pip install -e .`, then `import irprune.passes`, not `import passes`"
    )

__all__ = ["PassResult"]

PREPARE = ("canonicalize", "dead-code")  # the same model in fewer nodes
ANALYSE = ("infer-axes", "untie")  # what is coupled to what
DECIDE = ("score", "choose")  # which channels stay
CUT = ("slice", "dead-code")  # the smaller model
PRUNE = ("prepare", "analyse", "decide", "cut")
