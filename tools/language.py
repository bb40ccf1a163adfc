"""How good pruned language models are, beside dropping blocks, on texts of your own.

    python tools/language.py FOLDER --text brown=DIR --text debian=DIR -o docs/results/language.md

FOLDER is a decoder with blocks ``model.layers`` in the form of transformers (LLaMA, SmolLM, Qwen2,
Mistral); a text is a folder of documents (.txt, .html, or the tagged files of the Brown corpus). Of
each text half of the documents are for calibration, the others for the test. Perplexity is on rows
of ``--length`` tokens; nothing is trained. Shares are of the parameters of the decoder's blocks.
With ``--record FILE`` a run that was stopped goes on where it was. Other methods are those of
``tools/language_peers.py``."""

from __future__ import annotations

import argparse
import copy
import datetime
import hashlib
import html
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_rows import add_row, kept_rows
from language_peers import blocks, flap, magnitude, size, slicegpt
from torch import nn

import irprune

Rows = torch.Tensor  # [rows, length] of token numbers
PART = "model.layers*"


# -- texts -----------------------------------------------------------------------------------------


def document(path: Path) -> str:
    """The plain text of a file."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    if path.suffix == ".html":
        text = re.sub(r"(?s)<(script|style|head).*?</\1>", " ", text)
        text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    elif path.suffix == "" and re.search(r"\w/[a-z]{2}", text[:200]):  # Brown: word/tag
        text = " ".join(word.rsplit("/", 1)[0] for word in text.split())
        text = re.sub(r" ([.,;:?!)])", r"\1", text.replace("``", '"').replace("''", '"'))
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def shuffled(files: Sequence[Path], seed: str) -> list[Path]:
    """The files in an order that depends on their names and ``seed`` alone."""
    return sorted(files, key=lambda f: hashlib.sha256(f"{seed}/{f.name}".encode()).hexdigest())


def rows_of(files: Sequence[Path], tokenizer: Any, count: int, length: int) -> Rows:
    """``count`` rows of ``length`` tokens, at most two of each document."""
    rows: list[list[int]] = []
    for file in files:
        ids = tokenizer(document(file)).input_ids
        starts = range(0, len(ids) - length + 1, length)
        rows += [ids[at : at + length] for at in list(starts)[:2]]
        if len(rows) >= count:
            break
    return torch.tensor(rows[:count])


def halves(folder: Path) -> tuple[list[Path], list[Path]]:
    """The documents for calibration and those for the test."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.stat().st_size > 4000]
    mixed = shuffled(files, "split")
    return mixed[len(mixed) // 2 :], mixed[: len(mixed) // 2]


@torch.no_grad()
def perplexity(net: nn.Module, rows: Rows) -> float:
    """Of the next token, over all rows."""
    lost = 0.0
    for some in rows.split(2):
        logits = net(some, use_cache=False).logits[:, :-1]
        lost += float(
            nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), some[:, 1:].flatten(), reduction="sum"
            )
        )
    return math.exp(lost / rows[:, 1:].numel())


# -- methods ---------------------------------------------------------------------------------------


def by_irprune(
    model: Any, rows: Rows, share: float, known: Path | None = None, **options: Any
) -> tuple[nn.Module, float]:
    """The pruned module, by the defaults, and the share that it has. ``known`` is where what was
    measured on these rows is kept, which does not depend on the share."""
    pruned = irprune.prune(
        model,
        (rows[:2, :32],),
        budget={"params": {PART: share}},
        calibration=[(some,) for some in rows.split(4)],
        proof=False,
        resume=known,
        **options,
    )
    print(pruned.report.repair, *pruned.report.repair.notes, sep="\n  ", flush=True)
    made = pruned.apply_to(copy.deepcopy(model))  # which runs in other types too
    return made, size(pruned.module) / size(model)


def method_of(name: str, known: Path | None) -> Callable[[Any, Rows, float], Any]:
    """The method that is called ``name``."""
    if name in PEERS:
        return PEERS[name]
    options: dict[str, Any] = {"uniform": True} if name == "irprune, uniform" else {}
    return partial(by_irprune, known=known, **options)


PEERS: dict[str, Callable[[Any, Rows, float], tuple[nn.Module, float]]] = {
    "blocks dropped": blocks,
    "FLAP": flap,
    "SliceGPT": slicegpt,
    "magnitude": magnitude,
}
METHODS = ("irprune", "irprune, uniform", *PEERS)


# -- the table -------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each run that ``args.record`` does not hold yet: method, share, seed, what came
    out, perplexities by text, and the minutes that the method took."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    texts = {
        name: halves(Path(folder)) for name, _, folder in (t.partition("=") for t in args.text)
    }
    tests = {n: rows_of(t, tokenizer, args.test, args.length) for n, (_, t) in texts.items()}
    dtype = getattr(torch, args.dtype)
    done = {(r["method"], r["share"], r["seed"]) for r in kept_rows(args.record)}
    runs = [("dense", 1.0, 0)]
    runs += [(m, s, k) for k in args.seed for s in args.share for m in args.method]
    for method, share, seed in runs:
        if (method, share, seed) in done:
            continue
        parts = [
            rows_of(shuffled(c, str(seed)), tokenizer, args.rows // len(texts), args.span)
            for c, _ in texts.values()
        ]
        mixed = torch.stack(parts, 1).flatten(0, 1)
        known = None if args.record is None else args.record.with_suffix(f".{seed}.losses")
        began = time.perf_counter()
        net, left = model, 1.0
        if method != "dense":
            net, left = method_of(method, known)(model, mixed, share)
        minutes = (time.perf_counter() - began) / 60
        net = copy.deepcopy(net).to(dtype)
        found = {n: perplexity(net, rows) for n, rows in tests.items()}
        yield {
            "method": method,
            "share": share,
            "seed": seed,
            "left": round(left, 4),
            "perplexity": {n: round(p, 3) for n, p in found.items()},
            "minutes": round(minutes, 2),
        }


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each method and share: means over seeds of the times that the dense perplexity is
    exceeded, with their standard deviation."""
    dense = next(r for r in records if r["method"] == "dense")["perplexity"]
    lines = [
        f"| method | of the decoder | {' | '.join(dense)} | seeds | minutes |",
        f"| --- | --- | {' | '.join('---' for _ in dense)} | --- | --- |",
        f"| dense | 1 | {' | '.join(f'{p:.2f}' for p in dense.values())} | | |",
    ]
    keys = dict.fromkeys((-r["share"], r["method"]) for r in records if r["method"] != "dense")
    for share, method in sorted(keys, key=lambda k: (k[0], METHODS.index(k[1]))):
        own = [r for r in records if (r["method"], r["share"]) == (method, -share)]
        cells = []
        for name in dense:
            times = [r["perplexity"][name] / dense[name] for r in own]
            spread = f" ± {statistics.stdev(times):.3f}" if len(times) > 1 else ""
            cells.append(f"{statistics.mean(times):.3f}{spread}")
        left = statistics.mean(r["left"] for r in own)
        took = max(r["minutes"] for r in own)
        lines.append(f"| {method} | {left:.3f} | {' | '.join(cells)} | {len(own)} | {took:.1f} |")
    return lines


def main() -> None:
    """Measure, keep each result as it comes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--share", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rows", type=int, default=64, help="for calibration, of all texts")
    parser.add_argument("--span", type=int, default=256, help="tokens of each of them")
    parser.add_argument("--test", type=int, default=40, help="rows of each text")
    parser.add_argument("--length", type=int, default=256, help="tokens of each of them")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", default="float32", help="that perplexities are worked out in")
    parser.add_argument("--record", type=Path, help="lines of JSON; what is there is not run again")
    parser.add_argument("-o", "--output", type=Path, help="the table")
    args = parser.parse_args()
    records = kept_rows(args.record)
    for record in measure(args):
        records.append(record)
        print(json.dumps(record), flush=True)
        add_row(args.record, record)
    lines = table(records)
    print(*lines, sep="\n")
    if args.output is not None:
        said = (
            f"{Path(args.model).name}, {datetime.date.today().isoformat()}, torch {torch.__version__}, "
            f"{args.test} rows of {args.length} tokens of each text ({args.dtype}), calibrated on "
            f"{args.rows} rows of {args.span} tokens of other documents. The first row is perplexity, "
            "the others are times that."
        )
        args.output.write_text("\n".join(["# Language models", "", said, "", *lines, ""]))


if __name__ == "__main__":
    main()
