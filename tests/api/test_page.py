"""The page of a report: what it holds, that it stands alone and says nothing of the machine, and
how it behaves in a browser."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from chromium import CHROMIUM, drive, screenshot
from torch import nn

import irprune
from irprune.cli import run

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
VOID = {"meta", "input", "br", "line", "rect", "circle", "path", "polyline"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), *(Block() for _ in range(3)), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def pruned() -> irprune.Pruned:
    return irprune.prune(
        net(),
        (torch.randn(6, 8),),
        evaluate=lambda m: float(sum(p.numel() for p in m.parameters())),
        max_drop=0.3,
        minimise="params",
        points=4,
    )


@pytest.fixture(scope="module")
def page(pruned: irprune.Pruned) -> str:
    return pruned.report.to_html()


class Checker(HTMLParser):
    """Elements that are closed as they were opened, and ids that are used once."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        self.loads += [str(given[k]) for k in ("src", "href") if k in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and len(set(checker.ids)) == len(checker.ids)
    assert all(link.startswith("#") for link in checker.loads)
    assert "@import" not in page and "url(" not in page and "fetch(" not in page


def test_it_says_what_was_done_and_what_was_proven(
    page: str, pruned: irprune.Pruned, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (
        "Proven.",
        "Not proven:",
        "max_drop",
        "0.3",
        "x: 6x8",
        "per sample of a batch of 6",
        "0.1.0",
    ):
        assert text in page or text.replace("x: ", "input: ") in page, text
    assert "graph output" in page and "MLP width" in page and "+ 2 alike" in page
    assert page.count("<circle") == len(pruned.trials or ())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert "1970-01-02" in pruned.report.to_html()
    assert pruned.report.to_html() == pruned.report.to_html()


def test_nothing_of_the_machine_is_in_it(page: str, pruned: irprune.Pruned) -> None:
    chains = [line for g in pruned.report.details()["groups"] for line in g["chain"]]  # type: ignore[misc]
    assert any("test_page.py" in line for line in chains)
    assert str(Path.cwd()) not in page and str(Path(__file__).parent) not in page
    assert not re.search(r'[\s("]/(?:home|root|usr|tmp|work)/', page)


def test_names_of_a_file_cannot_leave_their_places(pruned: irprune.Pruned) -> None:
    bad = '</script><img src=x onerror="alert(1)">\x1b[31m'
    pruned.report.name, name = bad, pruned.report.name
    try:
        page = pruned.report.to_html()
    finally:
        pruned.report.name = name
    assert "<img" not in page and "\x1b" not in page and "&lt;/script&gt;" in page


def test_a_notebook_shows_it(pruned: irprune.Pruned) -> None:
    shown = pruned._repr_html_()
    assert shown.startswith("<iframe") and 'srcdoc="&lt;!DOCTYPE html&gt;' in shown


def test_a_report_of_numbers_alone_has_a_page() -> None:
    from irprune.api.report import Change, Report

    page = Report("bare", *(Change(10, 5) for _ in range(4))).to_html()
    assert "Not proven." in page and "bare" in page and 'id="graph"' not in page


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    return lambda *argv: run([str(a) for a in argv])


def test_the_page_is_made_again_and_two_cuts_are_compared(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    for ratio, folder in ((0.5, "a"), (0.25, "b")):
        irprune.prune(net(), (torch.randn(6, 8),), ratio=ratio).save(folder)
    before = Path("a/report.html").read_text()
    Path("a/report.html").write_text("gone")
    assert call("report", "a") == 0 and Path("a/report.html").read_text() == before
    assert call("report", "a/report.json", "-o", "r.html") == 0 and Path("r.html").exists()
    capsys.readouterr()
    assert call("diff", "a", "b", "-o", "d.html") == 0
    out = capsys.readouterr().out
    assert "0.weight:0" in out and re.search(r"8 +12 +of 16", out) and "4 of 4 widths differ" in out
    assert "4 of 4 differ" in Path("d.html").read_text()
    assert call("diff", "a/plan.json", "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["groups"] == []
    irprune.prune(net(), (torch.randn(6, 8),), ratio=0).onnx("m.onnx")
    irprune.prune("m.onnx", ratio=0.9, min_channels=1).onnx("n.onnx")
    capsys.readouterr()
    assert call("diff", "m.onnx", "n.onnx") == 0
    out = capsys.readouterr().out
    assert "4 of 4 widths differ" in out and "macs" in out
    Path("x.json").write_text("{}")
    for argv in (("report", "x.json"), ("report", "gone"), ("diff", "x.json", "a")):
        assert call(*argv) == 2


# -- in a browser ----------------------------------------------------------------------------------


@browser
def test_a_group_lights_up_and_shows_its_chain(page: str, tmp_path: Path) -> None:
    made, met = drive(
        page,
        """const pick = [...document.querySelectorAll("button.pick")].find((b) => b.textContent === "1.up.weight:0");
        const lit = () => [...document.querySelectorAll("#graph .lit title")].map((t) => t.textContent);
        const before = lit(); pick.click();
        const row = pick.closest("tr");
        const out = [before, lit(), row.nextElementSibling.hidden, row.nextElementSibling.textContent, pick.getAttribute("aria-expanded")];
        pick.click(); return [...out, lit(), row.nextElementSibling.hidden];""",
        tmp_path,
    )
    assert met == []
    before, lit, hidden, chain, expanded, after, again = made
    assert before == after == [] and again and not hidden and expanded == "true"
    assert {"1.up (linear)", "1.down (linear)"} <= set(lit) and "0 (linear)" not in lit
    assert "relu" in chain and "1.down.weight:1" in chain


@browser
def test_tables_are_sorted_searched_and_unfolded(page: str, tmp_path: Path) -> None:
    made, met = drive(
        page,
        """const table = document.querySelector("#grouptable"), head = table.querySelectorAll("th")[2];
        const sizes = () => [...table.tBodies].map((b) => b.rows[0].cells[2].textContent);
        const seen = () => [...table.querySelectorAll("tr.group")].filter((r) => !r.hidden && !r.closest("tbody").hidden).length;
        head.firstChild.click(); const up = [sizes(), head.getAttribute("aria-sort")];
        head.firstChild.click(); const down = [sizes(), head.getAttribute("aria-sort")];
        const folded = seen(); document.querySelector("button.unfold").click(); const unfolded = seen();
        const search = document.querySelector("#search");
        search.value = "2.up"; search.dispatchEvent(new Event("input"));
        return [up, down, folded, unfolded, seen(), document.querySelector("#found").textContent];""",
        tmp_path,
    )
    assert met == []
    (up, rising), (down, falling), folded, unfolded, _, found = made
    assert up == ["16", "24"] and down == ["24", "16"]
    assert (rising, falling) == ("ascending", "descending")
    assert (folded, unfolded) == (
        2,
        4,
    ) and found == "2 found"  # itself, and the width that it reads


@browser
def test_the_drawing_is_zoomed_and_moved_by_keys(page: str, tmp_path: Path) -> None:
    made, met = drive(
        page,
        """const graph = document.querySelector("#graph"), box = () => graph.getAttribute("viewBox").split(" ").map(Number);
        const first = box(); document.querySelector("[data-zoom='1.25']").click(); const near = box();
        graph.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", cancelable: true})); const moved = box();
        document.querySelector("[data-zoom='0']").click();
        return [first, near, moved, box(), graph.dataset.home.split(" ").map(Number)];""",
        tmp_path,
    )
    assert met == []
    first, near, moved, again, home = made
    assert near[2] == pytest.approx(first[2] / 1.25, abs=0.2) and moved[0] > near[0]
    assert again == home


@browser
def test_changed_widths_become_a_plan_that_replays(page: str, tmp_path: Path) -> None:
    made, met = drive(
        page,
        """let text = null; const B = window.Blob;
        window.Blob = function (parts, o) { text = parts.join(""); return new B(parts, o); };
        const input = document.querySelector("input.width[aria-label='width of 1.up.weight:0']");
        input.value = 5; document.querySelector("#download").click(); return text;""",
        tmp_path,
    )
    assert met == []
    again = irprune.apply_plan(net(), made, (torch.randn(6, 8),))
    widths = {g.name: g.kept for g in again.report.groups}
    assert widths["1.up.weight:0"] == 5 and again.report.proof is not None


@browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desktop(page: str, tmp_path: Path, width: int) -> None:
    made, met = drive(
        page, "return [document.documentElement.scrollWidth, window.innerWidth];", tmp_path, width
    )
    assert met == [] and made[0] <= made[1]
    picture = screenshot(page, tmp_path, width)
    assert struct.unpack(">I", picture[16:20]) == (width,) and len(picture) > 20_000


@browser
def test_an_error_in_a_page_is_seen(tmp_path: Path) -> None:
    page = "<html><head></head><body><script>console.error('bad'); nothing.here();</script></body></html>"
    made, met = drive(page, "return 1;", tmp_path)
    assert made == 1 and len(met) == 2 and met[0] == "bad"
