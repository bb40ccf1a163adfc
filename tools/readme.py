"""Write the headline table of README.md and docs/results/index.md from the pages of docs/results/.

python tools/readme.py             write both
python tools/readme.py --check     only say whether they are current, and what is not
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from tables import RESULTS, cells, table_of

__all__ = ["filled", "headline"]

ROOT = RESULTS.parents[1]
PAGES = {ROOT / "README.md": "docs/results/", RESULTS / "index.md": ""}  # -> prefix of its links
_TABLE = re.compile(r"(<!-- table: headline -->\n).*?(<!-- end -->)", re.S)
Line = tuple[str, str, str]  # what was measured, the result, the page that has all of it


def _zoo() -> Line:
    rows = [r for r in cells("zoo") if "pruned with proof" in r and r.get("architectures")]
    done = sum(int(r["pruned with proof"].split()[0]) for r in rows)
    tried = [re.findall(r"\d+", r["Torch-Pruning, same call"])[:2] for r in rows]
    rival, of = (sum(int(pair[i]) for pair in tried) for i in (0, 1))
    return (
        "Architectures of timm, torchvision and transformers with random weights, half of every "
        "width, no hints",
        f"{done} of {sum(int(r['architectures']) for r in rows)} pruned with a proof that passes; "
        f"of a sample of {of}, {rival} still run after Torch-Pruning",
        "zoo",
    )


def _speed() -> Line:
    rows = cells("torch-pruning")
    models = " and ".join(r["model"] for r in rows)
    found = " and ".join(r["ratio"] for r in rows)
    return (
        f"Time to prune {models} from PyTorch, processor time",
        f"{found} of Torch-Pruning's",
        "torch-pruning",
    )


def _onnx() -> Line:
    row = _only("onnxsim", file="vit_b16")
    left, theirs = row["left"], row["left by onnxsim"]
    return (
        "ViT-B/16 as an ONNX file at ratio 0.5: parameters left of those that may shrink",
        f"{left}; onnxsim {theirs}",
        "onnxsim",
    )


def _backend() -> Line:
    found = re.match(r"(\d+) cases: (\d+) of (\d+) taken pass", table_of("onnx-backend"))
    assert found is not None
    cases, passing, taken = map(int, found.groups())
    return (
        "Backend tests of the onnx package",
        f"{passing} of {taken} pass; {cases - taken} left out",
        "onnx-backend",
    )


def _latency() -> Line:
    row = _only("latency", model="resnet50")
    asked = "asked 0.5 of the time: measured, predicted"
    return (
        "ResNet-50, a budget of half its time on onnxruntime (CPU, one thread)",
        f"{row[asked].split()[0]} of its time, measured",
        "latency",
    )


def _quality() -> Line:
    net = "residual CNN"
    without = cells("quality")[: _count("After three epochs")]
    ours = next(r for r in without if r["criterion"].startswith("**default**"))
    rivals = [r for r in without if r["criterion"].startswith("Torch-Pruning")]
    mine = ours[f"{net}, repaired"].split(" / ")[1].split("±")[0]
    best = max(float(r[f"{net}, sliced"].split(" / ")[1].split("±")[0]) for r in rivals)
    dense = re.search(rf"dense: {net} ([\d.]+)", table_of("quality"))
    assert dense is not None
    return (
        "Accuracy of a residual CNN on digits at half of its MACs, repaired with 180 images "
        "without labels, not trained",
        f"{mine} % (before: {dense[1]} %); Torch-Pruning, which repairs nothing, {best:.1f} %",
        "quality",
    )


def _count(heading: str) -> int:
    """How many rows of the page on quality stand before ``heading``."""
    lines = table_of("quality").split(heading)[0].splitlines()
    return sum(line.startswith("|") for line in lines) - 2


def _only(name: str, **where: str) -> dict[str, str]:
    """The one row of the page ``name`` whose cells are those of ``where``."""
    (row,) = [r for r in cells(name) if all(r.get(k) == v for k, v in where.items())]
    return row


LINES: tuple[Callable[[], Line], ...] = (_zoo, _speed, _onnx, _backend, _latency, _quality)


def headline(prefix: str) -> str:
    """The headline table, its links beginning with ``prefix``."""
    rows = [
        (what, result, f"[{page}]({prefix}{page}.md)")
        for what, result, page in (f() for f in LINES)
    ]
    head = ("what was measured", "result", "page")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 3, *rows))


def filled(text: str, prefix: str) -> str:
    """``text`` with the headline table between its markers."""
    table = headline(prefix)
    return _TABLE.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def main() -> int:
    """Write or check; 1 where a page is not current."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path, prefix in PAGES.items():
        old = path.read_text()
        new = filled(old, prefix)
        if old != new:
            stale.append(path.relative_to(ROOT))
        if not check:
            path.write_text(new)
    for path in stale if check else ():
        print(f"{path} is not current: run python tools/readme.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
