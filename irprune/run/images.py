"""Pictures as model inputs: how they are resized, cut out, scaled and normalised.

A model takes pixels as they were prepared when it was trained. Nothing but the user, the library
that a model comes from, or the model's own first layers can say how that was."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from irprune.base.near import meant
from irprune.errors import IrpruneError, gist

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGES", "Folder", "Preprocess", "combined", "prepared", "read_preprocess"]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
KEPT = 1 << 29  # bytes of prepared pictures that are kept for the next who reads them
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocess:
    """From a picture to [channels, height, width].

    Args:
        mean: subtracted, per channel, of pixels in their range.
        std: then divided by.
        resize: the shorter side, or height and width, before the crop; None for the size that the
            model takes.
        crop: the share of that which the model sees, where ``resize`` is None and it is below 1:
            0.875 resizes to 256 and cuts out 224.
        pixels: what black and white become before mean and deviation.
        function: does all of it in place of the rest: from a picture to a tensor or an array.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    crop: float = 1.0
    pixels: tuple[float, float] = (0.0, 1.0)
    function: Callable[[Image], Any] | None = field(default=None, compare=False)

    def __call__(self, picture: Image, size: tuple[int, int, int]) -> NDArray[np.float32]:
        """The picture as channels, height and width of ``size``. Raises IrpruneError where that
        does not come out."""
        channels, height, width = size
        if self.function is not None:
            made = np.asarray(self.function(picture.convert(_MODES.get(channels, "RGB"))))
            made = made[0] if made.ndim == 4 and len(made) == 1 else made
            if made.shape != size:
                raise IrpruneError(
                    f"the preprocessing gives {list(made.shape)}, the model takes {list(size)}",
                    "preprocess",
                    "give the preprocessing of this model",
                )
            return made.astype(np.float32)
        if channels not in _MODES:
            raise IrpruneError(f"a picture for {channels} channels", "", "save the inputs as .npz")
        picture = self._cut(picture.convert(_MODES[channels]), height, width)
        array: Any = (
            np.asarray(picture, np.float32).reshape(height, width, channels).transpose(2, 0, 1)
        )
        low, high = self.pixels
        array = array / 255 * (high - low) + low
        if self.mean is not None:
            array = array - np.reshape(np.asarray(self.mean, np.float32), (-1, 1, 1))
        if self.std is not None:
            array = array / np.reshape(np.asarray(self.std, np.float32), (-1, 1, 1))
        return np.ascontiguousarray(array, np.float32)

    def _cut(self, picture: Image, height: int, width: int) -> Image:
        """Resized, and cut out of the middle."""
        if self.resize is None and self.crop >= 1:
            return picture.resize((width, height))
        if isinstance(self.resize, tuple):
            picture = picture.resize(self.resize[::-1])
        else:
            side = self.resize or round(min(height, width) / self.crop)
            share = side / min(picture.size)
            wide, high = (max(side, round(n * share)) for n in picture.size)
            picture = picture.resize((wide, high))
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))


class Folder:
    """A folder of ``.npy``, ``.npz`` and image files or of texts, or one such file; pictures and
    texts are prepared once.

    Args:
        path: where they lie.
        preprocess: what becomes of pictures; None where nobody said it.

    Raises IrpruneError where there is nothing of the kind, when it is read.
    """

    def __init__(self, path: str | Path, preprocess: Preprocess | None = None) -> None:
        self.path, self.preprocess = Path(path), preprocess
        self.tokens: dict[int, list[dict[str, Any]]] = {}  # of texts, by graph
        self._made: dict[tuple[Path, Preprocess, tuple[int, int, int]], NDArray[np.float32]] = {}

    @functools.cached_property
    def files(self) -> list[Path]:
        """In the order in which they are read."""
        if not self.path.exists():
            raise IrpruneError(
                "no such calibration folder",
                str(self.path),
                "give a folder of .npy, .npz or image files, or of texts",
            )
        if self.path.is_file():
            return [self.path]
        kinds = (".npy", ".npz", *IMAGES)
        found = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in kinds)
        if not found:
            raise IrpruneError(
                "a calibration folder without .npy, .npz or image files, and without texts",
                str(self.path),
                "put inputs there, one or many samples per file",
            )
        return found

    def picture(
        self, file: Path, preprocess: Preprocess, size: tuple[int, int, int]
    ) -> NDArray[np.float32]:
        """One picture as [1, channels, height, width] of ``size``. Raises IrpruneError for a file
        that is no picture and where Pillow is missing."""
        key = (file, preprocess, size)
        if key in self._made:
            return self._made[key]
        made = prepared(file, preprocess, size)[None]
        if sum(a.nbytes for a in self._made.values()) + made.nbytes <= KEPT:
            self._made[key] = made
        return made


def prepared(file: Path, preprocess: Preprocess, size: tuple[int, int, int]) -> NDArray[np.float32]:
    """A file as [channels, height, width]."""
    try:
        from PIL import Image
    except ImportError:
        raise IrpruneError(
            "an image file, but Pillow is not installed",
            str(file),
            "pip install pillow, or save the inputs as .npy",
        ) from None
    with Image.open(file) as picture:
        return preprocess(picture, size)


def read_preprocess(said: str) -> Preprocess:
    """What a name says: imagenet, timm:NAME or hf:FOLDER. Raises IrpruneError for what cannot be
    found."""
    kind, _, name = said.partition(":")
    if said == "imagenet":
        return Preprocess(*_IMAGENET, crop=0.875)
    if kind == "timm" and name:
        return _of_timm(name)
    if kind == "hf" and name:
        return _of_hugging_face(name)
    raise IrpruneError(
        f"no preprocessing {said!r}",
        "preprocess",
        meant(said, ("imagenet",), "one of imagenet, timm:NAME, hf:FOLDER, file.py:function"),
    )


def _missing(package: str) -> IrpruneError:
    return IrpruneError(f"{package} is not installed", "preprocess", f"pip install {package}")


def _of_timm(name: str) -> Preprocess:
    if importlib.util.find_spec("timm") is None:
        raise _missing("timm")
    data, models = (importlib.import_module(f"timm.{part}") for part in ("data", "models"))
    try:
        found = models.get_pretrained_cfg(name)
        if found is None:
            raise ValueError("no such model")
        made = data.create_transform(**data.resolve_data_config(pretrained_cfg=found.to_dict()))
    except Exception as failed:  # whatever timm raises for a name that it does not know
        raise IrpruneError(
            f"timm has no preprocessing for {name!r}: {gist(failed)}",
            "preprocess",
            "see timm.list_models()",
        ) from failed
    return Preprocess(function=made)


def _of_hugging_face(folder: str) -> Preprocess:
    if importlib.util.find_spec("transformers") is None:
        raise _missing("transformers")
    if not Path(folder).is_dir():
        raise IrpruneError(
            "no such folder", folder, "give the folder of a model with preprocessor_config.json"
        )
    auto: Any = importlib.import_module("transformers").AutoImageProcessor
    try:
        processor = auto.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as failed:
        raise IrpruneError(
            f"no preprocessing there: {gist(failed)}",
            folder,
            "a folder with preprocessor_config.json",
        ) from failed
    return Preprocess(function=lambda p: processor(p, return_tensors="np")["pixel_values"])


def combined(
    base: Preprocess | None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    resize: int | tuple[int, int] | None = None,
    crop: float | None = None,
    pixels: tuple[float, float] | None = None,
) -> Preprocess | None:
    """``base`` with what is said one by one; None where nothing is said."""
    changed = base or Preprocess()
    if mean is not None:
        changed = replace(changed, mean=_several(mean))
    if std is not None:
        changed = replace(changed, std=_several(std))
    if resize is not None:
        changed = replace(changed, resize=resize)
    if crop is not None:
        changed = replace(changed, crop=crop)
    if pixels is not None:
        changed = replace(changed, pixels=(pixels[0], pixels[1]))
    if base is not None and base.function is not None and changed is not base:
        raise IrpruneError(
            "a preprocessing that does all, and something beside it",
            "preprocess",
            "leave one of them out",
        )
    if base is None and changed == Preprocess() and crop is None and pixels is None:
        return None
    return changed


def _several(numbers: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(numbers) if isinstance(numbers, Sequence) else (float(numbers),)
