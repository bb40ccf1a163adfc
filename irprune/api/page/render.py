"""The page of a report from plain data: what ``report.as_dict`` and ``collect`` give. The same data
give the same page, but for the date."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from irprune.analysis.outline import fold_names
from irprune.base.format import finite, human
from irprune.errors import printable

__all__ = ["render", "render_diff"]

_LONGEST = 4000  # characters of one text: names in a file have no end
_LOCAL = re.compile(r"(?<![\w.~:/-])/(?:[^/\s:,;()'\"]+/)+([^/\s:,;()'\"]+)")
_COUNTS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "bytes": "bytes of weights",
    "activation": "peak activation bytes",
}

_AMOUNTS = {"memory": "bytes of memory", "communication": "bytes sent in a step"}


def render(report: Mapping[str, Any], details: Mapping[str, Any] | None = None) -> str:
    """The page.

    Args:
        report: What ``Report.as_dict`` gives.
        details: What ``collect`` gives; without it the page has no drawing, layers and curves.
    """
    shown: dict[str, Any] = _public({k: v for k, v in report.items() if k != "details"})
    more: dict[str, Any] = _public(details or {})
    page = {
        "name": shown["name"] or "model",
        "version": shown.get("version", ""),
        "sizes": shown["sizes"],
        "verdict": _verdict(shown),
        "facts": list(_facts(shown, more)),
        "cards": [
            _card(title, shown[key], _batch(more) if key == "macs" else 1)
            for key, title in _COUNTS.items()
        ],
        "amounts": [
            {
                "what": f"{title}: {name}",
                "before": c["before"],
                "after": c["after"],
                "left": _left(c),
            }
            for key, title in _AMOUNTS.items()
            for name, c in (shown.get(key) or {}).items()
        ],
        "checks": list(_checks(shown)),
        "notes": [
            *shown["notes"],
            *(f"no rule for {op}: {at}" for op, at in shown["unruled"].items()),
        ],
        "trials": _trials(shown.get("trials")),
        **_groups(shown, more),
        "frozen": _frozen(shown["frozen"]),
        "layers": more.get("layers", []),
        "times": _times(shown.get("speed")),
        "drawing": _drawing(more.get("boxes", [])),
        "omitted": more.get("omitted", 0),
        "editable": bool(more.get("orders")),
        "plan": _embedded(more.get("plan")),
        "orders": _embedded(more.get("orders")),
    }
    return _filled("report.html.j2", page=page)


def render_diff(
    a: str, b: str, costs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> str:
    """The page that compares two cuts: their costs and the width of each group, as ``irprune
    diff`` collects them."""
    told = [{**r, "differs": r["a"] != r["b"]} for r in rows]
    return _filled(
        "diff.html.j2", a=_public(a), b=_public(b), costs=_public(costs), rows=_public(told)
    )


def _filled(name: str, **values: Any) -> str:
    here = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["human"] = human
    template = environment.from_string((here / name).read_text("utf-8"))
    return template.render(
        style=Markup((here / "style.css").read_text("utf-8")),
        script=Markup((here / "script.js").read_text("utf-8")),
        **values,
    )


def _public(x: Any) -> Any:
    """``x`` with texts that can be shown: of paths the last part, no control characters."""
    if isinstance(x, Mapping):
        return {_public(k): _public(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_public(v) for v in x]
    return _LOCAL.sub(r"\1", printable(x, _LONGEST)) if isinstance(x, str) else x


def _embedded(data: Any) -> Markup:
    """Data as JSON that no script element ends in."""
    text = json.dumps(finite(data), separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _date() -> str:
    """The day, or that of SOURCE_DATE_EPOCH, by which builds are reproduced."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.datetime.now(datetime.UTC)
    if epoch.isdigit():
        now = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    return f"{now:%Y-%m-%d}"


def _verdict(shown: Mapping[str, Any]) -> dict[str, str]:
    proof, left = shown["proof"], _left(shown["macs"])
    size = f"{left:.1%} of the multiply-accumulates and {_left(shown['params']):.1%} of the parameters are left."
    if proof is None:
        return {"kind": "", "word": "Not proven.", "text": size}
    if proof["passed"]:
        return {"kind": "good", "word": "Proven.", "text": size}
    return {"kind": "bad", "word": "The proof fails.", "text": size}


def _shape(name: str, shape: Sequence[int]) -> str:
    return f"{name}: {'x'.join(map(str, shape)) or 'scalar'}"


def _batch(more: Mapping[str, Any]) -> int:
    """The batch that costs are counted for: the first dimension that all inputs share, else 1."""
    first = {shape[0] for _, shape in more.get("inputs", []) if shape}
    return int(first.pop()) if len(first) == 1 else 1


def _left(change: Mapping[str, int]) -> float:
    before, after = float(change["before"]), float(change["after"])
    return after / before if before else 1.0


def _facts(shown: Mapping[str, Any], more: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "date", _date()
    yield "irprune", str(shown.get("version", ""))
    if shown.get("command"):
        yield "command", shown["command"]
    for name, value in shown.get("options", {}).items():
        if value not in ([], {}, ()):
            yield name, json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    if more.get("inputs"):
        yield "counted for one call", ", ".join(_shape(*one) for one in more["inputs"])
    elif shown["sizes"]:
        yield "counted for one call", shown["sizes"]
    if more.get("source"):
        yield "structure (digest)", str(more["source"])[:16]


def _card(title: str, change: Mapping[str, int], batch: int) -> dict[str, Any]:
    left = _left(change)
    return {
        "each": f"{human(change['after'] / batch)} per sample of a batch of {batch}"
        if batch > 1
        else "",
        "title": title,
        "left": f"{left:.1%}",
        "width": round(100 * min(left, 1.0), 1),
        "before": human(change["before"]),
        "after": human(change["after"]),
    }


def _checks(shown: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    proof, parity, repair, latency = (shown[k] for k in ("proof", "parity", "repair", "latency"))
    if proof is None:
        yield {"kind": "", "what": "Proof:", "text": "not asked for, or not possible."}
    else:
        at = f" Also at {proof['other_sizes']}." if proof.get("other_sizes") else ""
        yield {
            "kind": "good" if proof["passed"] else "bad",
            "what": "Proof:",
            "text": "the pruned model computes what the original computes with the dropped channels "
            f"silenced: error {_number(proof['max_error'])}, tolerance {_number(proof['tolerance'])}, "
            f"in {proof['dtype']}.{at}",
        }
        for note in proof.get("notes", []):
            yield {"kind": "", "what": "Proof:", "text": note}
    yield {
        "kind": "",
        "what": "Not proven:",
        "text": "that the pruned model is as accurate as the original; measure that on your data.",
    }
    if parity is None:
        yield {
            "kind": "",
            "what": "ONNX parity:",
            "text": "no ONNX file was compared with a module.",
        }
    else:
        ran = ", ".join(f"{n} nodes on {p}" for p, n in parity["nodes"].items())
        yield {
            "kind": "good" if parity["passed"] else "bad",
            "what": "ONNX parity:",
            "text": f"every output of the file against the module: error {_number(parity['max_error'])}, "
            f"tolerance {_number(parity['tolerance'])}{ran and f' ({ran})'}.",
        }
    rotation = shown.get("rotation")
    if rotation is not None:
        told = "; ".join(
            f"{w['name']} {w['kept']} of {w['size']} components, {w['energy']:.1%} of the energy"
            for w in rotation["widths"]
        )
        yield {
            "kind": "good" if rotation["error"] <= rotation["tolerance"] else "bad",
            "what": "Rotation:",
            "text": f"{told}. The proof is of the model in that basis; before anything was cut it "
            f"differs from the original by {_number(rotation['error'])}, tolerance "
            f"{_number(rotation['tolerance'])}.",
        }
    low_rank = shown.get("low_rank")
    if low_rank is not None:
        told = "; ".join(
            f"{x['name']} {x['rank']} of {min(x['inputs'], x['outputs'])}"
            for x in low_rank["layers"][:12]
        )
        more = len(low_rank["layers"]) - 12
        yield {
            "kind": "good" if low_rank["error"] <= low_rank["tolerance"] else "bad",
            "what": "Low rank:",
            "text": f"{len(low_rank['layers'])} layers are two now ({told}"
            f"{f' and {more} more' if more > 0 else ''}). The proof is of the model with the two; "
            "beside the original with their products as weights it has an error of "
            f"{_number(low_rank['error'])}, tolerance {_number(low_rank['tolerance'])}."
            + (
                ""
                if low_rank["output_error"] is None
                else f" On calibration data the outputs are {low_rank['output_error']:.3g} off."
            ),
        }
    if repair is not None:
        yield {
            "kind": "",
            "what": "Repair, after the proof:",
            "text": f"{' + '.join(repair['methods']) or 'none'}; output error "
            f"{_number(repair['before'])} → {_number(repair['after'])} on {repair['samples']} samples.",
        }
    speed = shown.get("speed")
    if speed is not None and latency is None:
        before, after = speed["before"]["median_s"], speed["after"]["median_s"]
        yield {
            "kind": "good" if speed["faster"] else "" if speed["faster"] is None else "bad",
            "what": "Latency:",
            "text": f"{before * 1e3:.3g} ms → {after * 1e3:.3g} ms ({speed['ratio']:.1%}, turn by "
            f"turn) on {speed['provider']}.",
        }
    narrowed = shown.get("narrowed")
    if narrowed is not None:
        on = f"{narrowed['samples']} {'random ' if narrowed['drawn'] else ''}inputs"
        yield {
            "kind": "",
            "what": "Quantised, after the proof:",
            "text": f"{narrowed['kind']}, {human(narrowed['before'])}B → {human(narrowed['after'])}B; "
            f"{narrowed['metric']} {narrowed['agreement']:.4g} with the file before, on {on}.",
        }
    if latency is not None:
        before, after = latency["before"]["median_s"], latency["after"]["median_s"]
        yield {
            "kind": "good" if after <= before else "bad",
            "what": "Latency:",
            "text": f"{before * 1e3:.3g} ms → {after * 1e3:.3g} ms ({after / before:.1%}) on "
            f"{latency['provider']}, onnxruntime {latency['onnxruntime']}.",
        }


_NODES = 40  # of the slowest, one by one


def _times(speed: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The nodes that take the longest before or after, in microseconds, and the others together."""
    layers = (speed or {}).get("layers") or []
    order = sorted(layers, key=lambda x: -max(x["before"], x["after"]))
    rows = [
        {"name": x["name"], "op": x["op"], "before": 1e6 * x["before"], "after": 1e6 * x["after"]}
        for x in order[:_NODES]
    ]
    if rest := order[_NODES:]:
        rows.append(
            {
                "name": f"{len(rest)} others",
                "op": "",
                "before": 1e6 * sum(x["before"] for x in rest),
                "after": 1e6 * sum(x["after"] for x in rest),
            }
        )
    longest = max((x[k] for x in rows[:_NODES] for k in ("before", "after")), default=0.0) or 1.0
    for row in rows:
        row["width"] = round(min(100.0, 100 * row["before"] / longest), 1)
        row["left"] = round(min(100.0, 100 * row["after"] / longest), 1)
    return rows


def _number(x: Any) -> str:
    return f"{x:.1e}" if isinstance(x, (int, float)) else str(x)


# -- groups ----------------------------------------------------------------------------------------


def _groups(shown: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The widths by block, and the groups folded by block."""
    orders = more.get("orders", {})
    listed = [
        {**g, "id": i, "order": str(i) in orders}
        for i, g in enumerate(more.get("groups") or _plain_groups(shown))
        if not g["frozen"]
    ]
    folds: dict[str, list[dict[str, Any]]] = {}
    for g in listed:
        folds.setdefault(g["alike"], []).append(_row(g))
    widest = max((g["size"] for g in listed), default=1)
    blocks = [
        {
            "name": name,
            "count": len(many),
            "size": many[0]["size"],
            "kept": round(sum(g["kept"] for g in many) / len(many)),
            "width": round(100 * sum(g["kept"] / g["size"] for g in many) / len(many), 1),
            "scale": round(max(8.0, 100 * (many[0]["size"] / widest) ** 0.5), 1),
        }
        for name, many in folds.items()
    ]
    return {
        "folds": [{"groups": many} for many in folds.values()],
        "blocks": [b for b in blocks if b["size"] > 1],
    }


def _plain_groups(shown: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of a report alone."""
    return [
        {
            **g,
            "alike": g["name"],
            "kind": "",
            "count": len(g["members"]),
            "curve": [],
            "chain": [],
        }
        for g in shown["groups"]
    ]


def _row(g: Mapping[str, Any]) -> dict[str, Any]:
    curve: Sequence[float] = g["curve"]
    points = " ".join(
        f"{96 * k / max(1, len(curve) - 1):.1f},{22 - 20 * max(0.0, v):.1f}"
        for k, v in enumerate(curve)
    )
    cut = f"{96 * g['kept'] / g['size']:.1f}" if curve and g["kept"] < g["size"] else ""
    find = " ".join([g["name"], g["kind"], *g["members"], g["reason"]])
    return {**g, "points": points, "cut": cut, "find": find}


def _frozen(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each reason, with how many groups it holds for."""
    found: dict[str, list[str]] = {}
    for g in groups:
        found.setdefault(re.sub(r"\d+", "#", g["reason"]), []).append(g["name"])
    reasons = {re.sub(r"\d+", "#", g["reason"]): g["reason"] for g in reversed(groups)}
    lines = []
    for key, names in found.items():
        by_block: dict[str, list[str]] = {}
        for name in names:
            by_block.setdefault(re.sub(r"\d+", "#", name), []).append(name)
        folded = [fold_names(many) for many in by_block.values()]
        text = ", ".join(folded[:6]) + (f", {len(folded) - 6} more" if len(folded) > 6 else "")
        lines.append({"reason": reasons[key], "count": len(names), "names": text})
    return lines


# -- pictures --------------------------------------------------------------------------------------

_WIDE, _HIGH = 170, 52  # from box to box


def _drawing(boxes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not boxes:
        return None
    at = [(b["column"] * _WIDE, b["layer"] * _HIGH) for b in boxes]
    low, high = min(x for x, _ in at) - 20, max(x for x, _ in at) + _WIDE
    lines = []
    for b, (x, y) in zip(boxes, at, strict=True):
        for j in b["reads"]:
            fx, fy = at[j]
            bend = (y - fy - 26) / 2
            lines.append(
                f"M{fx + 75:.0f} {fy + 26:.0f}c0 {bend:.0f} {x - fx:.0f} {bend:.0f} {x - fx:.0f} {y - fy - 26:.0f}"
            )
    wide, deep = high - low, max(y for _, y in at) + 66
    near = min(max(wide, 900.0), 1400.0)  # wide enough to be read: the whole is a button away
    return {
        "box": f"{low:.0f} -20 {wide:.0f} {deep:.0f}",
        "first": f"{(low + high - near) / 2:.0f} -20 {near:.0f} {min(deep, near * 0.5):.0f}",
        "lines": "".join(lines),
        "boxes": [
            {
                "x": f"{x:.0f}",
                "y": f"{y:.0f}",
                "name": b["name"],
                "op": b["op"],
                "short": b["name"] if len(b["name"]) < 25 else "…" + b["name"][-23:],
                "groups": " ".join(map(str, b["groups"])),
            }
            for b, (x, y) in zip(boxes, at, strict=True)
        ],
    }


def _trials(trials: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The trials as a plot of the metric over what is left, and as rows."""
    if trials is None:
        return None
    rows = [t for t in trials["trials"] if isinstance(t["metric"], (int, float))]
    worst = trials["worst"]
    values = [t["metric"] for t in rows] + ([worst] if isinstance(worst, (int, float)) else [])
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * 0.08
    low, high = low - room, high + room

    def x(left: float) -> float:
        return float(round(60 + 560 * left, 1))

    def y(value: float) -> float:
        return float(round(240 - 220 * (value - low) / (high - low), 1))

    front = sorted((t for t in rows if t["pareto"]), key=lambda t: t["left"])
    bound = "at least" if trials["higher"] else "at most"
    return {
        "metric": trials["metric"],
        "measure": trials["measure"],
        "text": f"The smallest model whose {trials['metric']} is {bound} {_short(worst)}; the original's "
        f"is {_short(trials['original'])}, the chosen one's {_short(trials['best'])}.",
        "rows": rows,
        "x": [{"at": x(k / 5), "text": f"{k * 20} %"} for k in range(6)],
        "y": [
            {"at": y(low + (high - low) * k / 4), "text": f"{low + (high - low) * k / 4:.4g}"}
            for k in range(5)
        ],
        "worst": y(worst) if isinstance(worst, (int, float)) else None,
        "front": " ".join(f"{x(t['left'])},{y(t['metric'])}" for t in front),
        "points": [
            {
                "x": x(t["left"]),
                "y": y(t["metric"]),
                "kind": "pass" if t["passed"] else "fail",
                "text": f"{t['left']:.1%} left: {t['metric']:.5g}, {'passes' if t['passed'] else 'fails'}",
            }
            for t in rows
        ],
    }


def _short(x: Any) -> str:
    return f"{x:.5g}" if isinstance(x, (int, float)) else str(x)
