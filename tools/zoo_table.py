"""The table of the public model zoos, written from the records of ``tools/zoo.py``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

__all__ = ["PROVEN", "brief", "elsewhere", "good", "reach", "summary"]

PROVEN = 1e-4  # the relative error up to which a proof counts, as in irprune.base.tolerance
NEAR = 0.95  # the share of the weights that is to be in reach

Record = dict[str, Any]


def summary(records: list[Record]) -> str:
    """Per library how many are pruned with a proof and how much is in reach; per kind in how many;
    and a line for each that falls short."""
    peer = any("peer" in r for r in records)
    rows = [
        "| library | architectures | pruned with proof | worst oracle error | ≥ 95 % of weights in reach | parameters left, median |"
        + (" Torch-Pruning, same call |" if peer else ""),
        "|---|---|---|---|---|---|" + ("---|" if peer else ""),
    ]
    for library in ("timm", "torchvision", "transformers"):
        own = [
            r for r in records if r["name"].startswith(library + ":") and r["stage"] != "not built"
        ]
        if own:
            rows.append(_row(library, own) + (f" {_peer(own)} |" if peer else ""))
    rows += ["", _kinds(records)]
    families = {
        re.split("[-_]", r["name"].split(":")[1])[0]
        for r in records
        if r["name"].startswith("transformers:") and good(r)
    }
    rows += (
        ["", f"Families of transformers pruned with proof: {len(families)}."] if families else []
    )
    rows += _onnx([r for r in records if "onnx" in r])
    rows += _table(
        "not pruned with proof",
        [r for r in records if r["stage"] != "not built" and not good(r)],
        _failure,
    )
    low = [r for r in records if good(r) and reach(r) < NEAR]
    rows += _table("less than 95 % in reach", low, lambda r: f"{reach(r):.0%}: {_widest(r)}")
    missing = [r for r in records if r["stage"] == "not built"]
    names = ", ".join(sorted(r["name"].split(":")[1] for r in missing))
    if missing:
        rows += [
            "",
            f"Not run, as no small random configuration was found that their library itself runs ({len(missing)}): {names}.",
        ]
    return "\n".join(rows) + "\n"


_READ = (  # by ``summary``
    "name ratio stage error oracle reach_possible params kinds kinds_frozen onnx onnx_error peer"
).split()


def brief(record: Record) -> Record:
    """What the table needs of ``record``, and no more: a whole record lists every frozen axis."""
    out = {k: record[k] for k in _READ if k in record and (record[k] or k != "kinds_frozen")}
    out |= {k: float(f"{out[k]:.2g}") for k in ("oracle", "onnx") if out.get(k) is not None}
    if record["stage"] == "done":
        out["reach_possible"] = reach(record)
        if good(record) and reach(record) < NEAR:
            out["out_of_reach"] = record.get("out_of_reach")
            out["frozen"] = dict(list((record.get("frozen") or {}).items())[:2])
    return out


def good(record: Record) -> bool:
    """Whether it was pruned and the proof passed."""
    return record["stage"] == "done" and record["oracle"] is not None and record["oracle"] <= PROVEN


def reach(record: Record) -> float:
    """The share of the weights within reach of a free axis, of those that need not face an input or
    output on every side."""
    return float(record["reach_possible"] if "reach_possible" in record else record["reach"])


def elsewhere(text: str) -> str:
    """``text`` with paths into installed libraries as they are on any machine."""
    return re.sub(r"/[^\s\"']*/site-packages/", "", text)


def _row(library: str, own: list[Record]) -> str:
    proven = [r for r in own if good(r)]
    left = sorted(r["params"][1] / r["params"][0] for r in proven)
    worst = max((r["oracle"] for r in proven), default=0)
    near = sum(reach(r) >= NEAR for r in proven)
    return (
        f"| {library} | {len(own)} | {len(proven)} ({len(proven) / len(own):.1%}) | {worst:.1e} | "
        f"{near} ({near / max(1, len(proven)):.0%}) | {left[len(left) // 2] if left else 1:.0%} |"
    )


def _peer(own: list[Record]) -> str:
    """How many of those tried the peer cut such that the model still runs and answers in the same
    shapes."""
    tried = [r for r in own if "peer" in r]
    works = [r for r in tried if r["peer"].get("works")]
    if not tried:
        return "not tried"
    left = sorted(r["peer"]["params"] for r in works)
    return f"{len(works)} of {len(tried)} run" + (
        f", {left[len(left) // 2]:.0%} left" if left else ""
    )


def _kinds(records: list[Record]) -> str:
    """In how many architectures a kind is prunable, of how many that have it."""
    done = [r for r in records if r["stage"] == "done"]
    free = Counter(k for r in done for k in r["kinds"])
    has = Counter(k for r in done for k in {**r["kinds"], **r.get("kinds_frozen", {})})
    return (
        "Prunable, in so many architectures of those that have it: "
        + ", ".join(
            f"{k} {n}" + (f" of {has[k]}" if has[k] > n else "") for k, n in free.most_common()
        )
        + "."
    )


def _onnx(asked: list[Record]) -> list[str]:
    """The parity of the ONNX files, and a line for each that is missing or differs."""
    made = [r for r in asked if r["onnx"] is not None]
    if not asked:
        return []
    worst = max((r["onnx"] for r in made), default=0)
    own = [r for r in asked if r["onnx"] is None]
    lines = [
        "",
        f"ONNX files compared on onnxruntime: {len(made)} of {len(asked)} agree, worst relative error {worst:.1e}.",
    ]
    return lines + _table("no ONNX file that agrees", own, lambda r: r.get("onnx_error", ""))


def _failure(record: Record) -> str:
    return str(record.get("error") or f"the proof fails: relative error {record.get('oracle')}")


def _widest(record: Record) -> str:
    """The reasons that hold the most weights, with one weight for each."""
    found: dict[str, str] = {}
    for name, _, reasons in record.get("out_of_reach") or []:
        found.setdefault("; ".join(dict.fromkeys(reasons)) or "all sizes are 1", name)
    if found:
        return "; ".join(f"{why} ({name})" for why, name in list(found.items())[:2])
    return "; ".join(list(record.get("frozen") or {"run it again for the reason": 0})[:2])


def _table(title: str, records: list[Record], reason: Callable[[Record], str]) -> list[str]:
    """A line for each reason, with the architectures that have it."""
    if not records:
        return []
    alike: dict[str, list[str]] = {}
    for r in sorted(records, key=lambda r: str(r["name"])):
        alike.setdefault(_cell(reason(r)), []).append(r["name"])
    return [
        "",
        f"| {title} ({len(records)}) | reason |",
        "|---|---|",
        *(f"| {', '.join(names)} | {why} |" for why, names in alike.items()),
    ]


# What the messages of torch and transformers mean, in plain words.
_PLAIN = (
    (
        r"GuardOnDataDependent.*|DataDependent.*|cannot be captured: aten\S+ depends on",
        "branches on the values of its input",
    ),
    (r"Cannot view a tensor.*", "torch.onnx refuses to view what was transposed"),
    (
        r"name 'u0' is not defined|'u0' where it is not",
        "has shapes that depend on the values of its input",
    ),
    (r".*can't allocate memory.*", "does not fit into the memory of one process"),
    (r"captured graph differs from forward", "computes otherwise under export than in forward"),
    (
        r"No ONNX function found for <OpOverload\(op='([^']*)'.*",
        r"torch.onnx has no translation of \1",
    ),
)


def _cell(text: str) -> str:
    line = elsewhere(text.splitlines()[0] if text else "")
    line = re.sub(r" ?\(/tmp/[^)\]]*(\)|$)", "", line)
    line = re.sub(
        r"(; )?(the module itself is sound|take out of forward|keep the module)[^\[]*", " ", line
    )
    line = re.sub(r"_\w+: ValueError: no image token; ", "", line)
    place = re.findall(r"\((\S+\.py:\d+)\)", line)
    for pattern, plain in _PLAIN:
        if re.search(pattern, line):
            line = re.search(pattern, line).expand(plain) + (f" at {place[-1]}" if place else "")  # type: ignore[union-attr]
    line = line.replace("|", "/")
    return line if len(line) <= 200 else line[:197] + "..."
