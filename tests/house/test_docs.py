"""The documentation builds without a warning, its pages run, and its pictures are those of the
code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from pages import blocks

from irprune.api.declarations import OPTIONS
from irprune.base.moved import MOVED

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("tutorials/*.md"), *DOCS.glob("guides/*.md"), ROOT / "CONTRIBUTING.md"])


# -- the pages run ---------------------------------------------------------------------------------


def ran(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "pages.py"), str(page)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    """Where the packages are that it says it needs."""
    needed = re.match(r"<!-- needs: (.*) -->", page.read_text())
    for package in needed[1].split() if needed else ():
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    made = ran(page, tmp_path)
    assert made.returncode == 0, made.stderr[-3000:]
    assert int(made.stdout) > 0, "nothing on the page was run"


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nassert False\n```\n",
        "```console\n$ irprune inspect nothing.onnx\n```\n",
        "```console\n$ irprune --version\nno such line\n```\n",
    ],
)
def test_a_page_that_is_wrong_is_found(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert ran(page, tmp_path).returncode == 1


def test_the_pass_of_the_guide_is_the_one_that_is_tested() -> None:
    (block,) = [b for b in blocks((DOCS / "guides/pass.md").read_text()) if b.title == "my_pass.py"]
    assert block.text == (ROOT / "tests/data/my_pass.py").read_text()


# -- the site builds -------------------------------------------------------------------------------


def built(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    env = {**os.environ, "PYTHONPATH": str(root), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    made = built(ROOT, tmp_path / "site")
    assert made.returncode == 0, made.stderr[-4000:]
    assert not re.search(r"WARNING|ERROR", made.stderr), made.stderr[-4000:]
    reference = (tmp_path / "site/reference/python/index.html").read_text()
    assert 'id="irprune.api.calls.prune"' in reference
    commands = (tmp_path / "site/reference/commands/index.html").read_text()
    assert "--round-to" in commands and "explain" in commands
    operators = (tmp_path / "site/reference/operators/index.html").read_text()
    assert re.search(r"The table has \d{3} entries", operators)


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / "mkdocs.yml").read_text()
    pages = "nav:\n  - Home: index.md\n"
    (tmp_path / "mkdocs.yml").write_text(text[: text.index("nav:")] + pages)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# irprune\n\n[gone](gone.md)\n")
    made = built(tmp_path, tmp_path / "site")
    assert made.returncode == 1
    assert "gone.md" in made.stderr


# -- pictures and lists ----------------------------------------------------------------------------


def layers_of_the_picture(page: str) -> list[str]:
    """The layers from top to bottom, as the architecture page draws them."""
    (picture,) = [b for b in blocks(page) if b.title == "layers"]
    return [re.split(r"\s{2,}", line)[0] for line in picture.text.splitlines()]


def test_the_picture_of_the_layers_is_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    page = (DOCS / "architecture.md").read_text()
    assert layers_of_the_picture(page) == layers
    swapped = page.replace("\ncli ", "\nxli ")
    assert layers_of_the_picture(swapped) != layers, "a fault in the picture is not seen"


def test_the_glossary_has_each_word_once_in_its_section() -> None:
    lines = (DOCS / "glossary.md").read_text().splitlines()
    words = [a for a, b in pairwise(lines) if b.startswith(":   ")]
    found = [w.lower() for line in words for w in re.findall(r"\*\*(.+?)\*\*", line)]
    assert len(found) == len(set(found)) > 40


def test_the_changelog_names_every_module_that_moved() -> None:
    rows = re.findall(
        r"^  \| `(irprune\.\S+)` \| `(\S+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert dict(rows) == MOVED


def options_without_a_word(page: str) -> list[str]:
    """The options of the public calls that ``page`` does not name."""
    return [name for name in OPTIONS if not re.search(rf"`{name}\b", page)]


def test_the_guide_to_the_options_names_them_all() -> None:
    page = (DOCS / "guides/options.md").read_text()
    assert options_without_a_word(page) == []
    assert options_without_a_word(page.replace("`round_to", "`around")) == ["round_to"]
