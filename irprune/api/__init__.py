"""The public calls and what they give back.

Nothing here imports torch until a torch model comes in, so that ONNX files are pruned without it.
"""

from irprune.api.calls import apply_plan, groups, prune
from irprune.api.options import Options
from irprune.api.pruned import FORMATS, Pruned
from irprune.driver.pipelines import analyse, cut_graph
from irprune.frontend.capture import capture

__all__ = [
    "FORMATS",
    "Options",
    "Pruned",
    "analyse",
    "apply_plan",
    "capture",
    "cut_graph",
    "groups",
    "prune",
]
