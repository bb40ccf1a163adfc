"""The report's page in light, dark and print, with the times of layers, and for a model of seven
thousand million parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chromium import CHROMIUM, drive
from torch import nn
from torch.nn import functional as F

import irprune
from irprune.run.layer_times import layer_times
from irprune.run.session import session

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a net whose file was quantised and timed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    x = torch.randn(16, 3, 12, 12)
    made = irprune.prune(model, (x[:2],), calibration=x, bench=True, quantize="int8")
    made.onnx(tmp_path_factory.mktemp("timed") / "small.onnx")
    return made.report.to_html()


def test_the_page_tells_of_times_and_of_narrower_numbers(page: str) -> None:
    assert "Time by layer" in page and "<caption>Microseconds of each operator" in page
    assert "Quantised, after the proof:" in page and "int8" in page and "Latency:" in page
    rows = page.split('<table id="times"')[1].split("</table>")[0].split("<tr>")[2:]
    assert any("Conv" in row for row in rows)


def test_a_page_without_times_has_no_table_of_them() -> None:
    made = irprune.prune(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), (torch.randn(2, 8),))
    assert "Time by layer" not in made.report.to_html()
    assert "Quantised" not in made.report.to_html()


def test_a_saved_report_keeps_its_times(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    made = irprune.prune(model, (torch.randn(2, 3, 12, 12),), bench=True)
    made.save(tmp_path / "folder")
    from irprune.cli import run

    (tmp_path / "folder" / "report.html").unlink()
    assert run(["report", str(tmp_path / "folder")]) == 0
    assert "Time by layer" in (tmp_path / "folder" / "report.html").read_text()


def test_times_of_layers_are_those_of_the_profile(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Linear(1024, 2048), nn.Linear(2048, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.small(torch.relu(self.large(x)))

    x = torch.randn(32, 1024)
    file = irprune.prune(Net().eval(), (x,), ratio=0).onnx(tmp_path / "net.onnx")
    (name,) = [v.name for v in session(str(file)).get_inputs()]
    found = layer_times(file, {name: x.numpy()}, "cpu", 1, 5)
    products = [seconds for op, seconds in found.values() if "Gemm" in op or "MatMul" in op]
    assert len(products) == 2 and products[0] > 5 * products[1] > 0


# -- in a browser ----------------------------------------------------------------------------------

# The share of light of two colours, as WCAG 2 reckons it, for every element with text of its own
CONTRAST = """
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const part = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (rgb) => { const [r, g, b] = rgb.map((v) => part(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (e) => {
  for (let x = e; x; x = x.parentElement) {
    const c = parse(getComputedStyle(x).backgroundColor);
    if (c[3] > 0) return c.slice(0, 3);
  }
  return [255, 255, 255];
};
const faint = () => { const out = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg, script, style, [hidden]")) continue;
    const a = light(parse(getComputedStyle(e).color).slice(0, 3)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push([e.tagName, e.textContent.trim().slice(0, 30), ratio]);
  } return out; };
const media = (text) => { for (const rule of document.styleSheets[0].cssRules)
  if (rule.media && rule.media.mediaText.includes(text)) rule.media.mediaText = "all"; };
"""


@browser
def test_texts_are_seen_in_the_light_and_in_the_dark(page: str, tmp_path: Path) -> None:
    made, met = drive(
        page,
        CONTRAST
        + """const paper = ground(document.body), day = faint();
        media("prefers-color-scheme: dark");
        return [paper, day, ground(document.body), faint()];""",
        tmp_path,
    )
    assert met == []
    paper, day, night_paper, night = made
    assert day == [] and night == []
    assert sum(paper) > 3 * 240 and sum(night_paper) < 3 * 40  # white, and all but black


@browser
def test_a_faint_text_would_be_seen(page: str, tmp_path: Path) -> None:
    spoilt = page.replace("--mute:#59636e", "--mute:#c9d3de")
    made, _ = drive(spoilt, CONTRAST + "return faint();", tmp_path)
    assert made


@browser
def test_in_print_all_rows_are_there_and_no_buttons(page: str, tmp_path: Path) -> None:
    made, met = drive(
        page,
        CONTRAST
        + """const gone = (e) => getComputedStyle(e).display === "none";
        const shown = (what) => [...document.querySelectorAll(what)].filter((e) => !gone(e)).length;
        const tools = [shown(".tools"), shown("#search"), shown(".skip")];
        media("print");
        const rows = [...document.querySelectorAll("tr.more")].filter(gone).length;
        const fits = document.documentElement.scrollWidth <= window.innerWidth;
        return [tools, [shown(".tools"), shown("#search"), shown(".skip")], rows, fits];""",
        tmp_path,
    )
    assert met == []
    before, after, hidden, fits = made
    assert all(before) and after == [0, 0, 0] and hidden == 0 and fits


# -- a large model ---------------------------------------------------------------------------------

BLOCKS, WIDTH, HEADS, INNER, WORDS = 32, 4096, 32, 11008, 32000


class Decoder(nn.Module):
    """The shape of a decoder of seven thousand million parameters, without their numbers."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
            self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
            self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
            self.down = nn.Linear(INNER, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            b, n, _ = y.shape
            q, k, v = (
                f(y).reshape(b, n, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x = x + self.o(y.reshape(b, n, -1))
            y = self.norm2(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(self.Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def test_the_page_of_a_large_model_is_small_and_folded(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Decoder().eval()
        ids = torch.zeros(1, 64, dtype=torch.int64)
    made = irprune.prune(model, (ids,), ratio=0.25, importance="random", device="cpu")
    assert made.report.params.before > 6.5e9
    page = made.report.to_html()
    assert len(page.encode()) < 3_000_000
    assert f"+ {BLOCKS - 1} alike" in page  # one line for what repeats, the others folded
    assert "×32" in page
    if CHROMIUM is not None:
        seen, met = drive(
            page,
            """return [...document.querySelectorAll("#grouptable tr.group")].filter((r) => !r.hidden).length;""",
            tmp_path,
        )
        assert met == [] and seen < 12
