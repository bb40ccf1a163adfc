"""Language models measured on texts, texts as calibration data, and the figures in the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_models import VOCABULARY, letters, llama, save, token_ids
from torch import nn

import irprune
from irprune.cli import run
from irprune.criteria.readings import Readings
from irprune.criteria.refit import RIDGES
from irprune.driver.pipelines import analyse
from irprune.errors import IrpruneError
from irprune.run.calibration import Calibration
from irprune.run.held_out import divided
from irprune.run.texts import documents, rows_of


class _Net(nn.Module):
    """A decoder of one block whose attention is a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x)


@pytest.fixture
def model() -> _Net:
    torch.manual_seed(0)
    return _Net().eval()


class _Letters:
    """A tokenizer of letters."""

    eos_token_id = pad_token_id = None

    def __call__(self, text: str, truncation: bool = True) -> Any:
        return SimpleNamespace(input_ids=[ord(c) % VOCABULARY for c in text])

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool = True) -> str:
        return " ".join(str(int(i)) for i in ids)


# -- evaluate --------------------------------------------------------------------------------------


def test_the_figures_are_those_of_torch(model: _Net) -> None:
    rows = token_ids(3, 9)
    other = _Net().eval()
    found = irprune.evaluate(model, {"x": rows}, against=other, device="cpu").texts[0]
    with torch.no_grad():
        ours, theirs = model(rows)[:, :-1], other(rows)[:, :-1]
    asked = rows[:, 1:]
    loss = nn.functional.cross_entropy(ours.flatten(0, 1), asked.flatten())
    apart = nn.functional.kl_div(
        ours.log_softmax(-1).flatten(0, 1),
        theirs.log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    assert found.rows == 3 and found.tokens == 24
    assert found.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert found.divergence == pytest.approx(float(apart), rel=1e-4)
    assert found.agreement == pytest.approx(
        float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    )
    alone = irprune.evaluate(model, {"x": rows}, device="cpu").texts[0]
    assert alone.before is None and alone.perplexity == pytest.approx(found.perplexity)


def test_both_go_on_from_a_prompt(model: _Net) -> None:
    found = irprune.evaluate(
        model,
        {"x": token_ids(1, 5)},
        against=model,
        tokenizer=_Letters(),
        prompts=["abc"],
        tokens=4,
        device="cpu",
    )
    (said,) = found.continuations
    assert said.before == said.after and len(said.after.split()) == 4
    expected = torch.tensor([[ord(c) % VOCABULARY for c in "abc"]])
    for _ in range(4):
        expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), 1)
    assert said.after == " ".join(str(int(i)) for i in expected[0, 3:])


def test_what_cannot_be_measured_is_one_line(model: _Net, tmp_path: Path) -> None:
    with pytest.raises(IrpruneError, match="no such text"):
        irprune.evaluate(model, tmp_path / "none.txt", tokenizer=_Letters())
    (tmp_path / "short.txt").write_text("few")
    with pytest.raises(IrpruneError, match="no document has 512 tokens"):
        irprune.evaluate(model, tmp_path / "short.txt", tokenizer=_Letters())
    with pytest.raises(IrpruneError, match="what makes tokens of texts"):
        irprune.evaluate(model, tmp_path / "short.txt")
    with pytest.raises(IrpruneError, match="gives no logits"):
        irprune.evaluate(_Flat(), {"x": token_ids(1, 4)})


class _Flat(nn.Module):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.float()


# -- texts -----------------------------------------------------------------------------------------


def test_documents_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 50 + "\n<|endoftext|>\n" + "b" * 30)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "c" * 25}) + "\n\n")
    (tmp_path / "c.csv").write_text("not a text")
    found = documents(tmp_path)
    assert [len(d.text.strip()) for d in found] == [50, 30, 25]
    assert len(rows_of(found, _Letters(), 10)) == 5 + 3 + 2
    three = rows_of(found, _Letters(), 10, 3)  # one of each document
    assert len({int(row[5]) for row in three}) == 3
    assert torch.equal(three, rows_of(found[::-1], _Letters(), 10, 3))
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(IrpruneError, match=r'no "text" in it .*b.jsonl:1'):
        documents(tmp_path)


# -- samples that are held out ---------------------------------------------------------------------


def test_a_quarter_is_held_out(model: _Net) -> None:
    graph = analyse(irprune.capture(model, (token_ids(2, 6),)))
    data = Calibration([(token_ids(4, 6, n),) for n in range(8)], graph)
    fit, judged = divided(data)
    assert (fit.count(), judged.count()) == (24, 8)
    rows = torch.cat([b.inputs[0] for part in (fit, judged) for b in part])
    every = torch.cat([b.inputs[0] for b in data])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, every.tolist()))
    again = divided(Calibration([(token_ids(4, 6, n),) for n in range(8)], graph))
    for one, two in zip((fit, judged), again, strict=True):
        assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(one, two, strict=True))
    few = Calibration([(token_ids(4, 6),)], graph)
    assert divided(few) == (few, few)


def test_complete_readings_read_every_row(model: _Net) -> None:
    from irprune.analysis.layers import layers

    graph = analyse(irprune.capture(model, (token_ids(2, 6),)))
    down = next(x for x in layers(graph) if x.weight.name == "down.weight")
    data = Calibration([(token_ids(16, 200, n),) for n in range(4)], graph)
    reads = [Readings(graph, data, complete=c).of([down], products=True) for c in (False, True)]
    counts = [next(iter(r.values()))._rows.gram.count for r in reads]
    assert counts[0] < counts[1] == 4 * 16 * 200


def test_the_ridge_is_the_best_on_what_was_held_out(model: _Net) -> None:
    pruned = irprune.prune(
        model, (token_ids(2, 6),), ratio=0.5, calibration=[(token_ids(4, 12, n),) for n in range(6)]
    )
    (note,) = [n for n in pruned.report.repair.notes if "a ridge of" in n]
    chosen = float(note.split("a ridge of ")[1].split(",")[0])
    assert chosen in RIDGES
    off = {}
    for ridge in RIDGES:
        data = pruned.graph
        from irprune.api.repair import repair
        from irprune.driver.pipelines import cut_graph

        cut = cut_graph(data)
        fit, judged = divided(Calibration([(token_ids(4, 12, n),) for n in range(6)], data))
        readings = Readings(data, fit, judged=judged, complete=True)
        off[ridge] = repair(data, cut, readings, "static", ridge=ridge).after
    assert min(off, key=lambda r: off[r]) == chosen
    assert pruned.report.repair.after == pytest.approx(off[chosen], rel=1e-6)


# -- the report ------------------------------------------------------------------------------------


def test_the_report_tells_the_figures_before_and_after(model: _Net) -> None:
    pruned = irprune.prune(
        model, (token_ids(2, 6),), ratio=0.5, calibration=[(token_ids(4, 12, n),) for n in range(6)]
    )
    found = pruned.report.quality
    assert found is not None and found.before is not None and found.after is not None
    assert 0 < found.agreement <= 1 and found.divergence > 0
    assert "perplexity" in str(pruned.report)
    assert json.loads(pruned.report.to_json())["quality"]["tokens"] == found.tokens
    _, judged = divided(
        Calibration(
            [(token_ids(4, 12, n),) for n in range(6)],
            analyse(irprune.capture(model, (token_ids(2, 6),))),
        )
    )
    rows = torch.cat([b.inputs[0] for b in judged])
    mine = irprune.evaluate(pruned.module, {"x": rows}, against=model, device="cpu").texts[0]
    assert found.after == pytest.approx(mine.perplexity, rel=1e-4)
    assert found.before == pytest.approx(mine.before, rel=1e-4)


def test_a_model_that_sees_what_comes_next_has_no_perplexity(model: _Net) -> None:
    class Sees(_Net):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            x = x + x.mean(1, keepdim=True)
            return self.head(x + self.down(torch.relu(self.up(x))))

    pruned = irprune.prune(
        Sees().eval(),
        (token_ids(2, 6),),
        ratio=0.5,
        calibration=[(token_ids(4, 12, n),) for n in range(6)],
    )
    assert pruned.report.quality.before is None and pruned.report.quality.agreement > 0


# -- folders of transformers -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small LLaMA with its tokenizer, and texts."""
    save(tmp_path / "llama", llama(), letters())
    (tmp_path / "texts").mkdir()
    for name in ("one", "two"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"{name.upper()} IS A TEXT. " * 400)
    return tmp_path


def test_the_command_line_calibrates_on_texts_and_measures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama, texts, small = f"hf:{folder / 'llama'}", folder / "texts", folder / "small"
    words = ["prune", llama, "-o", small, "--format", "hf", "--per-layer"]
    words += ["--params", "model.layers*=0.7", "--calibration", texts, "--json"]
    assert run([str(w) for w in words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["quality"]["before"] > 1 and not [n for n in report["notes"] if "document" in n]
    measured = ["evaluate", f"hf:{small}", "--against", llama, "--text", texts / "one.txt"]
    measured += ["--length", "64", "--rows", "3", "--prompt", "ONE IS", "--tokens", "3", "--json"]
    assert run([str(w) for w in measured]) == 2  # widths by layer are code in the folder
    assert "auto_map" in capsys.readouterr().err
    assert run([*(str(w) for w in measured), "--trust"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts"][0]["rows"] == 3 and found["passed"]
    assert len(found["continuations"]) == 1
    again = [*(str(w) for w in measured), "--trust", "--max-rise", "1"]
    assert run(again) == (1 if found["texts"][0]["perplexity"] > found["texts"][0]["before"] else 0)


def test_one_document_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", f"hf:{folder / 'llama'}", "--ratio", "0.3", "--json"]
    words += ["--calibration", folder / "texts" / "one.txt", "-o", folder / "plan.json"]
    assert run([str(w) for w in words]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("calibrated on one document" in n for n in notes)


def test_texts_want_a_tokenizer(model: _Net, folder: Path) -> None:
    with pytest.raises(IrpruneError, match="nothing says what makes tokens"):
        irprune.prune(model, (token_ids(2, 6),), ratio=0.5, calibration=folder / "texts")
