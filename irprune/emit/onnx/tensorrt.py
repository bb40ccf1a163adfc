"""The script that builds a TensorRT engine of an ONNX file, with the profile of its open sizes.

``trtexec`` comes with TensorRT (https://docs.nvidia.com/deeplearning/tensorrt); nothing of it is
needed to write the script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

__all__ = ["build_script", "read_script"]

Shapes = Mapping[str, Sequence[int]]
_SHAPES = ("minShapes", "optShapes", "maxShapes")


def build_script(file: str, profile: tuple[Shapes, Shapes, Shapes], flags: Sequence[str]) -> str:
    """The text of a shell script that builds ``model.engine`` of ``file`` beside it.

    Args:
        file: The name of the ONNX file.
        profile: The shapes of inputs with open sizes: at least, usually, at most.
        flags: What else trtexec is told: ``--fp16``, ``--int8``.
    """
    said = ["--onnx=" + file, "--saveEngine=model.engine"]
    if any(profile[1].values()):
        said += [
            f"--{name}={_spelled(shapes)}" for name, shapes in zip(_SHAPES, profile, strict=True)
        ]
    lines = [shlex.quote(flag) for flag in (*said, *flags)]
    return (
        "#!/bin/sh\n"
        "# Builds model.engine for the GPU of this machine, and times it. Needs trtexec of TensorRT.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        'exec "${TRTEXEC:-trtexec}" \\\n    ' + " \\\n    ".join([*lines, '"$@"']) + "\n"
    )


def read_script(text: str) -> tuple[str, tuple[dict[str, tuple[int, ...]], ...], list[str]]:
    """What ``build_script`` was given, read off its text as a shell reads it."""
    words = [w for w in shlex.split(text, comments=True) if w.startswith("--")]
    given = dict(w.removeprefix("--").partition("=")[::2] for w in words)
    shapes = tuple(_read(given.get(name, "")) for name in _SHAPES)
    rest = [
        w
        for w in words
        if w.removeprefix("--").partition("=")[0] not in (*_SHAPES, "onnx", "saveEngine")
    ]
    return given["onnx"], shapes, rest


def _spelled(shapes: Shapes) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _read(text: str) -> dict[str, tuple[int, ...]]:
    # Names of inputs may have colons of their own: the shape stands behind the last
    parts = [part.rpartition(":") for part in text.split(",") if part]
    return {name: tuple(map(int, shape.split("x"))) for name, _, shape in parts}
