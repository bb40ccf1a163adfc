"""The forms in which a function of a model may ask for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from irprune.errors import IrpruneError

__all__ = ["FORMS", "form_of"]

FORMS = ("module", "session", "path", "message")
_FORM_OF = {
    "Module": "module",
    "InferenceSession": "session",
    "str": "path",
    "Path": "path",
    "ModelProto": "message",
}


def form_of(function: Callable[..., Any], name: str) -> str:
    """The form in which ``function`` wants its model, by the annotation of its first parameter; ""
    where it has none. Raises IrpruneError for a function that does not take one argument, and for
    an annotation that is no form."""
    try:
        signature = inspect.signature(function)
        signature.bind(None)
    except TypeError as refused:
        raise IrpruneError(
            f"{name} cannot be called with a model: {refused}", "", "it takes the model alone"
        ) from None
    except ValueError:  # a callable that says nothing of its parameters
        return ""
    hint = next(iter(signature.parameters.values())).annotation
    if hint is inspect.Parameter.empty or hint is Any:
        return ""
    kinds = [c.__name__ for c in hint.__mro__] if isinstance(hint, type) else [str(hint)]
    for kind in kinds:
        last = kind.rpartition(".")[2].strip("'\" ")
        if last in _FORM_OF:
            return _FORM_OF[last]
    if "Any" in kinds[0] or "object" in kinds:
        return ""
    raise IrpruneError(
        f"{name} wants a model as {kinds[0]}",
        "",
        "annotate it with onnxruntime.InferenceSession, torch.nn.Module, onnx.ModelProto or Path",
    )
