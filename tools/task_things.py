"""Three more tasks: what kind of file some bytes are, what is seen in a picture, how near
sentences are.

Files are those that lie about: packages to calibrate on, the system's folders to test on. Pictures
are photographs that packages bring (people, a cat, things), cut and laid out anew, and drawings;
photographs of the test are others."""

from __future__ import annotations

import functools
import itertools
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shipped import module_folder, shipped
from task import Run, Task, boxes_agree

__all__ = ["FILES", "SEEN"]

Array = NDArray[Any]
BYTES, BLOCK, PADDING = 1024, 4096, 256
SURE = 0.5  # the likelihood that magika asks for where a kind has no bound of its own
FOLDERS = (
    (sysconfig.get_path("purelib"), "/usr/lib", "/usr/include", "/usr/local"),
    ("/usr/share", "/etc"),
)


def features(path: Path) -> Array | None:
    """The first and last bytes of a file without white space about them, as magika takes them; None
    of files that are too short."""
    raw = path.read_bytes()
    first, last = raw[:BLOCK].lstrip()[:BYTES], raw[-BLOCK:].rstrip()[-BYTES:]
    if len(first) < 8:
        return None
    out = np.full(2 * BYTES, PADDING, np.int32)
    out[: len(first)] = np.frombuffer(first, np.uint8)
    if last:
        out[2 * BYTES - len(last) :] = np.frombuffer(last, np.uint8)
    return out


def _files(part: int) -> Iterator[Path]:
    for folder in FOLDERS[part]:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and 16 < path.stat().st_size < 1 << 20:
                yield path


def _sample(part: int, seed: int, count: int) -> Array:
    """Files of as many kinds as there are: in turn one of each suffix."""
    random = np.random.default_rng([6 + part, seed])
    kinds: dict[str, list[Path]] = {}
    for path in _files(part):
        kinds.setdefault(path.suffix.lower(), []).append(path)
    for some in kinds.values():
        random.shuffle(some)  # type: ignore[arg-type]
    made: list[Array] = []
    while len(made) < count and any(kinds.values()):
        for some in kinds.values():
            if some and len(made) < count and (row := features(some.pop())) is not None:
                made.append(row)
    return np.stack(made)


@functools.cache
def _file_test() -> Array:
    """Files of the other folders as they come, which are of fewer kinds."""
    random = np.random.default_rng(1000)
    every = list(_files(1))
    random.shuffle(every)  # type: ignore[arg-type]
    found = (row for path in every if (row := features(path)) is not None)
    return np.stack(list(itertools.islice(found, 1000)))


def _kinds(run: Run) -> Array:
    """The kind of each file and how likely it is [files, 2]."""
    rows = _file_test()
    made = [run({"bytes": rows[at : at + 50]})[0] for at in range(0, len(rows), 50)]
    return np.concatenate([np.stack([m.argmax(-1), m.max(-1)], -1) for m in made])


def same_where_sure(ours: Array, theirs: Array) -> float:
    """The share of files of the same kind among those that the original is as sure of as magika
    asks for; of others magika says no more than that they are text, or are not."""
    sure = theirs[:, 1] >= SURE
    return float((ours[sure, 0] == theirs[sure, 0]).mean())


FILES = Task(
    "file types",
    lambda: shipped("file types"),
    lambda seed: [{"bytes": _sample(0, seed, 2048)}],
    lambda: {"bytes": _sample(0, 0, 1)},
    _kinds,
    same_where_sure,
    "files of the same kind",
    {0.7: 0.98},
    note=lambda kinds: (
        f"{len(np.unique(kinds[:, 0]))} kinds; the original is sure of {(kinds[:, 1] >= SURE).sum()} "
        f"of {len(kinds)} files"
    ),
)

# -- pictures --------------------------------------------------------------------------------------

SIDE = 320
# Of each part people first, as many as PEOPLE says; a box is (left, top, right, bottom) in pixels
GROUP = ("insightface", "data/images/t1.jpg")
PEOPLE = (9, 2)
PHOTOS: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (
        (*GROUP, (0, 200, 280, 560)),
        (*GROUP, (1010, 210, 1280, 560)),
        (*GROUP, (830, 30, 1100, 380)),
        (*GROUP, (650, 290, 930, 650)),
        (*GROUP, (380, 220, 650, 570)),
        (*GROUP, (190, 90, 470, 440)),
        ("insightface", "data/images/Tom_Hanks_54745.png"),
        ("ultralytics", "assets/bus.jpg"),
        ("ultralytics", "assets/zidane.jpg"),
        GROUP,
        ("skimage", "data/coffee.png"),
        ("skimage", "data/rocket.jpg"),
    ),
    (
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/motorcycle_left.png"),
    ),
)


@functools.cache
def _photos(part: int) -> list[Any]:
    from PIL import Image

    made = []
    for module, place, *box in PHOTOS[part]:
        photo = Image.open(module_folder(module) / place).convert("RGB")
        made.append(photo.crop(box[0]) if box else photo)
    return made


def scene(part: int, random: np.random.Generator) -> Array:
    """A picture [3, 320, 320] in 0..1: a piece of a photograph as the ground, one or two whole ones
    on it, smaller, turned and brighter or darker; drawn shapes."""
    from PIL import Image, ImageDraw, ImageEnhance

    photos = _photos(part)
    ground = photos[random.integers(len(photos))]
    cut = int(random.uniform(0.4, 1) * min(ground.size))
    x, y = (int(random.uniform(0, n - cut + 1)) for n in ground.size)
    out = ground.crop((x, y, x + cut, y + cut)).resize((SIDE, SIDE))
    for _ in range(random.integers(1, 3)):
        photo = photos[random.integers(PEOPLE[part])] if random.random() < 0.7 else photos[-1]
        side = int(random.integers(110, 300))
        wide = max(40, int(side * photo.size[0] / photo.size[1]))
        piece = photo.resize((min(wide, SIDE), side))
        if random.random() < 0.5:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        piece = ImageEnhance.Brightness(piece).enhance(random.uniform(0.6, 1.3))
        out.paste(piece, (int(random.uniform(-40, 220)), int(random.uniform(-40, 200))))
    draw = ImageDraw.Draw(out)
    for _ in range(random.integers(0, 4)):
        x, y = (int(n) for n in random.integers(0, SIDE, 2))
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        draw.ellipse((x, y, x + int(random.integers(5, 60)), y + 30), fill=colour)
    return np.asarray(out, np.float32).transpose(2, 0, 1) / 255


def _scenes(part: int, seed: int, count: int) -> Array:
    random = np.random.default_rng([8 + part, seed])
    return np.stack([scene(part, random) for _ in range(count)])


@functools.cache
def _scene_test() -> Array:
    return _scenes(1, 1000, 150)


def _seen(run: Run) -> list[list[tuple[int, ...]]]:
    """For each picture the boxes over a likelihood of 0.25, the likelier of two that overlap."""
    out = []
    for image in _scene_test():
        rows = run({"images": image[None]})[0][0].T
        likely, kind = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
        boxes: list[tuple[int, ...]] = []
        for k in np.argsort(-likely):
            if likely[k] < 0.25:
                break
            x, y, w, h = rows[k, :4]
            box = (int(kind[k]), x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if all(boxes_agree([[box]], [[other]]) == 0 for other in boxes):
                boxes.append(box)
        out.append(boxes)
    return out


SEEN = Task(
    "detection",
    lambda: shipped("detection"),
    lambda seed: [{"images": _scenes(0, seed, 128)}],
    lambda: {"images": _scenes(0, 0, 1)},
    _seen,
    boxes_agree,
    "boxes that agree",
    {0.7: 0.9},
    note=lambda seen: f"{sum(map(len, seen))} boxes in {len(seen)} pictures",
)
