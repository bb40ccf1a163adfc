"""How good pruned language models are, beside dropping blocks, on texts of your own.

    python tools/language.py FOLDER --text brown=DIR --text debian=DIR -o docs/results/language.md

FOLDER is a decoder with blocks ``model.layers`` in the form of transformers (LLaMA, SmolLM, Qwen2,
Mistral); a text is a folder of documents (.txt, .html, or the tagged files of the Brown corpus). Of
each text half of the documents are for calibration, the others for the test. Perplexity is on rows
of ``--length`` tokens; nothing is trained. Shares are of the parameters of the decoder's blocks.

Dropping blocks is a few lines of our own: those whose output is most like their input go, as in Men
et al., "ShortGPT", 2024."""

from __future__ import annotations

import argparse
import copy
import datetime
import hashlib
import html
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
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


def size(model: nn.Module) -> int:
    """Parameters of the blocks."""
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith("model.layers"))


def by_irprune(model: Any, rows: Rows, share: float, **options: Any) -> tuple[nn.Module, float]:
    """The pruned module, by the defaults, and the share that it has."""
    texts = [(some,) for some in rows.split(4)]
    pruned = irprune.prune(
        model,
        (rows[:2, :32],),
        budget={"params": {PART: share}},
        calibration=texts,
        proof=False,
        **options,
    )
    return pruned.module, size(pruned.module) / size(model)


@torch.no_grad()
def by_blocks(model: Any, rows: Rows, share: float) -> tuple[nn.Module, float]:
    """Without the blocks that change the direction of their input least."""
    likeness = [0.0] * len(model.model.layers)

    def hook(number: int) -> Any:
        def seen(module: nn.Module, given: Any, result: Any) -> None:
            out = result[0] if isinstance(result, tuple) else result
            likeness[number] += float(nn.functional.cosine_similarity(given[0], out, dim=-1).mean())

        return seen

    hooks = [b.register_forward_hook(hook(i)) for i, b in enumerate(model.model.layers)]
    for some in rows.split(4):
        model(some, use_cache=False)
    for h in hooks:
        h.remove()
    count = math.ceil(len(likeness) * (1 - share) - 1e-9)
    gone = sorted(range(len(likeness)), key=lambda i: -likeness[i])[:count]
    made = copy.deepcopy(model)
    made.model.layers = nn.ModuleList(
        b for i, b in enumerate(made.model.layers) if i not in set(gone)
    )
    made.config.num_hidden_layers = len(made.model.layers)
    return made, size(made) / size(model)


METHODS: dict[str, Callable[[Any, Rows, float], tuple[nn.Module, float]]] = {
    "irprune": by_irprune,
    "irprune, uniform": lambda model, rows, share: by_irprune(model, rows, share, uniform=True),
    "blocks dropped": by_blocks,
}


# -- the table -------------------------------------------------------------------------------------


def measured(
    args: argparse.Namespace,
) -> Iterator[tuple[str, float, list[float], list[float], float]]:
    """Method, share that was asked for, shares that came out, times the dense perplexity for each
    text and seed, and seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    texts = {
        name: halves(Path(folder)) for name, _, folder in (t.partition("=") for t in args.text)
    }
    tests = {n: rows_of(t, tokenizer, args.test, args.length) for n, (_, t) in texts.items()}
    dense = {n: perplexity(model, rows) for n, rows in tests.items()}
    yield "dense", 1.0, [1.0], list(dense.values()), 0.0
    for share in args.share:
        for method in args.method:
            ratios: list[float] = []
            shares: list[float] = []
            began = time.perf_counter()
            for seed in range(args.seeds):
                parts = [
                    rows_of(shuffled(c, str(seed)), tokenizer, args.rows // len(texts), args.span)
                    for c, _ in texts.values()
                ]
                mixed = torch.stack(parts, 1).flatten(0, 1)
                net, left = METHODS[method](model, mixed, share)
                shares.append(left)
                ratios += [perplexity(net, rows) / dense[n] for n, rows in tests.items()]
            yield method, share, shares, ratios, time.perf_counter() - began


def main() -> None:
    """Measure, print as it goes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--share", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rows", type=int, default=64, help="for calibration, of all texts")
    parser.add_argument("--span", type=int, default=256, help="tokens of each of them")
    parser.add_argument("--test", type=int, default=40, help="rows of each text")
    parser.add_argument("--length", type=int, default=512, help="tokens of each of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    names = [t.partition("=")[0] for t in args.text]
    lines = [
        f"| method | of the decoder | {' | '.join(names)} | minutes |",
        f"| --- | --- | {' | '.join('---' for _ in names)} | --- |",
    ]
    for method, share, shares, ratios, seconds in measured(args):
        cells = []
        for k in range(len(names)):
            own = ratios[k :: len(names)]
            spread = f" ± {statistics.stdev(own):.3f}" if len(own) > 1 else ""
            cells.append(f"{statistics.mean(own):.3f}{spread}")
        left = statistics.mean(shares)
        line = f"| {method} | {left:.3f} | {' | '.join(cells)} | {seconds / 60:.1f} |"
        print(share, line, flush=True)
        lines.append(line)
    if args.output is not None:
        said = (
            f"{Path(args.model).name}, {datetime.date.today().isoformat()}, torch {torch.__version__}, "
            f"{args.test} rows of {args.length} tokens of each text, calibrated on {args.rows} rows of "
            f"{args.span} tokens of other documents, {args.seeds} seeds. The first row is perplexity, the others are "
            "times that."
        )
        args.output.write_text("\n".join(["# Language models", "", said, "", *lines, ""]))


if __name__ == "__main__":
    main()
