"""Nested inputs and outputs: a dict and a dataclass come in, by position and by keyword; a dict
with a named tuple goes out.

The emitted module must keep this signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import _register_namedtuple

from models import Case, Inputs
from models._weights import randomize


@dataclass
class Context:
    """What is known beside the features."""

    mask: Tensor
    scale: Tensor


class Prediction(NamedTuple):
    logits: Tensor
    confidence: Tensor


# With these names the exported program can also be saved and loaded.
torch.export.register_dataclass(Context, serialized_type_name="models.dict_io.Context")
_register_namedtuple(Prediction, serialized_type_name="models.dict_io.Prediction")
torch.serialization.add_safe_globals([Context])


class NestedIO(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.image = nn.Linear(12, width)
        self.text = nn.Linear(8, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(
        self, features: dict[str, Tensor], *, context: Context, offset: Tensor
    ) -> dict[str, Any]:
        x = self.image(features["image"]) * context.scale + self.text(features["text"]) + offset
        hidden = F.relu(self.mix(F.relu(x))) * context.mask.unsqueeze(-1)
        logits = self.head(hidden)
        prediction = Prediction(logits, logits.softmax(-1).amax(-1))
        return {"prediction": prediction, "hidden": [hidden.mean(-1), hidden.amax(-1)]}


def build(small: bool = False, width: int = 24, classes: int = 5) -> nn.Module:
    return randomize(NestedIO(width, classes))


def example_inputs(small: bool = False) -> Inputs:
    features = {"image": torch.randn(2, 12), "text": torch.randn(2, 8)}
    context = Context(mask=torch.tensor([1.0, 0.5]), scale=torch.tensor(0.7))
    return (features,), {"context": context, "offset": torch.tensor(0.1)}


CASE = Case(
    "dict_io", ("small", "several_inputs", "several_outputs"), build, example_inputs, left=0.387
)
