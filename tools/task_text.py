"""Two tasks on text in pictures: lines to be read, pages on which lines are to be found.

Lines are Latin (sentences of Python's reference, numbers, prices) and Chinese (common characters at
random); fonts are those of matplotlib and Debian's WenQuanYi, and those of the test are others."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shipped import module_folder, shipped
from task import Run, Task, boxes_agree, pool_of

import irprune

__all__ = ["LINES", "PAGES"]

Array = NDArray[Any]
HEIGHT, WIDTH = 48, 320
LATIN = (
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "cmr10.ttf", "STIXGeneral.ttf"),
    ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "cmss10.ttf", "STIXGeneralBol.ttf"),
)
CHINESE = ("wqy-zenhei.ttc", "wqy-microhei.ttc")
LENGTHS = ((8, 13), (4, 11))  # of Chinese lines: those to calibrate on show more characters


def _font(part: int, chinese: bool, size: int, random: np.random.Generator) -> Any:
    from PIL import ImageFont

    if chinese:
        folder = Path("/usr/share/fonts/truetype/wqy")
        path = folder / CHINESE[part]
        if not path.exists():
            raise irprune.IrpruneError(
                "a Chinese font is missing",
                str(path),
                "apt-get install fonts-wqy-microhei fonts-wqy-zenhei",
            )
    else:
        folder = module_folder("matplotlib") / "mpl-data/fonts/ttf"
        path = folder / LATIN[part][random.integers(len(LATIN[part]))]
    return ImageFont.truetype(str(path), size)


def text_of(part: int, chinese: bool, random: np.random.Generator) -> str:
    """A line's text."""
    if chinese:  # the common characters of GB 2312
        rows, columns = random.integers(0xB0, 0xD7, 30), random.integers(0xA1, 0xFE, 30)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        text = b"".join(map(bytes, pairs)).decode("gb2312")
        return text[: int(random.integers(*LENGTHS[part]))]
    kind = random.random()
    if kind < 0.15:
        return f"{random.integers(1, 29)}.{random.integers(1, 13)}.{random.integers(1990, 2030)}"
    if kind < 0.3:
        return f"Total {random.uniform(1, 9999):,.2f} EUR"
    texts = pool_of(part, 40)
    words = texts[random.integers(len(texts))].encode("ascii", "ignore").decode().split()
    at = int(random.integers(max(1, len(words) - 4)))
    return " ".join(words[at : at + int(random.integers(1, 5))])[:28]


def _colours(random: np.random.Generator) -> tuple[Any, Any]:
    """Of paper and ink, well apart."""
    light = random.integers(170, 256, 3)
    dark = random.integers(0, 90, 3)
    paper, ink = (light, dark) if random.random() < 0.8 else (dark, light)
    return tuple(paper.tolist()), tuple(ink.tolist())


def line(part: int, random: np.random.Generator) -> tuple[Array, str]:
    """A picture [height, width, 3] of one line, and its text."""
    from PIL import Image, ImageDraw, ImageFilter

    chinese = random.random() < 0.5
    text = text_of(part, chinese, random)
    font = _font(part, chinese, int(random.integers(22, 48)), random)
    left, top, right, bottom = font.getbbox(text)
    border = random.integers(2, 9, 4)
    size = (int(right - left + border[:2].sum()), int(bottom - top + border[2:].sum()))
    paper, ink = _colours(random)
    picture = Image.new("RGB", size, paper)
    ImageDraw.Draw(picture).text((border[0] - left, border[2] - top), text, font=font, fill=ink)
    if random.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 1.0)))
    noise = random.standard_normal((*picture.size[::-1], 3)) * random.uniform(0, 12)
    return np.clip(np.asarray(picture, float) + noise, 0, 255).astype(np.uint8), text


def fed(picture: Array) -> Array:
    """A line as the recogniser takes it [3, 48, 320]: scaled to its height, to -1..1, filled up
    with zeros."""
    from PIL import Image

    height, width = picture.shape[:2]
    wide = min(WIDTH, int(np.ceil(HEIGHT * width / height)))
    small = np.asarray(Image.fromarray(picture).resize((wide, HEIGHT), Image.Resampling.BILINEAR))
    out = np.zeros((3, HEIGHT, WIDTH), np.float32)
    out[:, :, :wide] = (small[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return out


def _lines(part: int, seed: int, count: int) -> tuple[Array, list[str]]:
    random = np.random.default_rng([part, seed])
    made = [line(part, random) for _ in range(count)]
    return np.stack([fed(p) for p, _ in made]), [t for _, t in made]


@functools.cache
def _line_test() -> tuple[Array, list[str]]:
    return _lines(1, 1000, 400)


@functools.cache
def _characters() -> list[str]:
    import onnx

    held = {p.key: p.value for p in onnx.load(shipped("text recognition")).metadata_props}
    return ["", *held["character"].splitlines(), " "]


def _read(run: Run) -> list[str]:
    """Each line as text: the likeliest character of each step, repetitions and blanks left out."""
    characters, out = _characters(), []
    images = _line_test()[0]
    for at in range(0, len(images), 8):
        for steps in run({"x": images[at : at + 8]})[0].argmax(-1):
            changed = np.concatenate([[True], steps[1:] != steps[:-1]])
            out.append("".join(characters[k] for k in steps[changed & (steps > 0)]))
    return out


def distance(a: str, b: str) -> int:
    """Insertions, deletions and changes of characters between two texts (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        last, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, last + (x != y))
    return row[-1]


def character_error(read: list[str]) -> float:
    """Wrong characters per hundred, of the test lines; spaces do not count."""
    wanted = [t.replace(" ", "") for t in _line_test()[1]]
    wrong = sum(distance(r.replace(" ", ""), w) for r, w in zip(read, wanted, strict=True))
    return 100 * wrong / sum(map(len, wanted))


LINES = Task(
    "text recognition",
    lambda: shipped("text recognition"),
    lambda seed: [{"x": _lines(0, seed, 192)[0]}],
    lambda: {"x": _lines(0, 0, 1)[0]},
    _read,
    lambda ours, theirs: character_error(ours) - character_error(theirs),
    "points of character error above the original's",
    {0.8: 0.3, 0.7: 0.6, 0.5: 3.0},
    falls=True,
    note=lambda read: f"character error of the original {character_error(read):.1f} %",
)

# -- pages -----------------------------------------------------------------------------------------

PAGE = (480, 640)


def page(part: int, random: np.random.Generator) -> Array:
    """A picture [480, 640, 3] with some lines of text on paper, frames and blots."""
    from PIL import Image, ImageDraw

    paper, ink = _colours(random)
    picture = Image.new("RGB", PAGE[::-1], paper)
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(0, 4)):
        x, y = int(random.integers(0, 500)), int(random.integers(0, 400))
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        draw.rectangle((x, y, x + int(random.integers(20, 160)), y + 60), outline=colour, width=3)
    y = int(random.integers(10, 40))
    while y < 430:
        x = int(random.integers(10, 200))
        while x < 560:
            chinese = random.random() < 0.4
            font = _font(part, chinese, int(random.integers(14, 34)), random)
            text = text_of(part, chinese, random)
            _, _, right, _ = font.getbbox(text)
            if x + right > 630:
                break
            draw.text((x, y), text, font=font, fill=ink)
            x += int(right + random.integers(30, 160))
        y += int(random.integers(38, 80))
    noise = random.standard_normal((*PAGE, 3)) * random.uniform(0, 12)
    return np.clip(np.asarray(picture, float) + noise, 0, 255)


def _pages(part: int, seed: int, count: int) -> Array:
    random = np.random.default_rng([4 + part, seed])
    made = np.stack([page(part, random) for _ in range(count)])
    return ((made[..., ::-1].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).astype(np.float32)


@functools.cache
def _page_test() -> Array:
    return _pages(1, 1000, 40)


def _found(run: Run) -> list[list[tuple[int, ...]]]:
    """For each page the boxes around what is text, as the package finds them: over 0.3 a pixel is
    text, over 0.5 in the mean a box."""
    from scipy import ndimage

    out = []
    for image in _page_test():
        likely = run({"x": image[None]})[0][0, 0]
        marked, _ = ndimage.label(likely > 0.3)
        boxes = []
        for k, at in enumerate(ndimage.find_objects(marked)):
            inside = likely[at][marked[at] == k + 1]
            if inside.size >= 12 and inside.mean() > 0.5:
                boxes.append((0, at[1].start, at[0].start, at[1].stop, at[0].stop))
        out.append(boxes)
    return out


PAGES = Task(
    "text detection",
    lambda: shipped("text detection"),
    lambda seed: [{"x": _pages(0, seed, 16)}],
    lambda: {"x": _pages(0, 0, 1)},
    _found,
    boxes_agree,
    "boxes that agree",
    {0.7: 0.97},
    note=lambda found: f"{sum(map(len, found))} boxes on {len(found)} pages",
)
