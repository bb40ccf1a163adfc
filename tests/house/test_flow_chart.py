"""The flow chart of the guide "which option when": every option that it names is one."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from irprune.api import FORMATS
from irprune.api.declarations import OPTIONS

CHART = Path(__file__).parents[2] / "docs" / "images" / "options.svg"
WORDS = "{http://www.w3.org/2000/svg}text"
GUIDE = CHART.parents[1] / "guides" / "options.md"


def named(text: str) -> list[str]:
    """The options and formats that a box of the chart names."""
    return re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text)


def test_the_chart_names_options_that_there_are() -> None:
    root = ElementTree.parse(CHART).getroot()
    boxes = [t.text or "" for t in root.iter(WORDS) if t.get("class") == "o"]
    assert len(boxes) > 15
    known = {*OPTIONS, "apply_to"}
    found = [name for box in boxes for name in named(box)]
    assert {"max_drop", "keep_indices", "round_to", "drop_blocks", "low_rank"} <= set(found)
    assert [name for name in found if name not in known] == []
    first = {box.split()[0].split("=")[0] for box in boxes}
    assert {"ratio", "budget", "calibration", "quantize"} <= first
    formats = [box.removeprefix("--format ").split(", ") for box in boxes if "--format" in box]
    assert {f for many in formats for f in many} == {*FORMATS} - {"irprune"}


def test_the_chart_is_described_and_shown() -> None:
    root = ElementTree.parse(CHART).getroot()
    description = root.findtext("{http://www.w3.org/2000/svg}desc") or ""
    assert "low_rank" in description and "max_drop" in description  # for those who do not see it
    assert "../images/options.svg" in GUIDE.read_text(encoding="utf-8")


def test_an_unknown_option_would_be_seen() -> None:
    assert named("keep_channels, pruned.module") == ["keep_channels"]
    assert "keep_channels" not in OPTIONS
