"""The recipe that trains a pruned language model on its original: it learns, goes on where it was
ended, and writes a folder that loads."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import letters, llama, save

import irprune

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("tokenizers")

RECIPE = Path(__file__).resolve().parents[2] / "models" / "recipes" / "language_distillation.py"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A small LLaMA with its tokenizer, pruned, and a text."""
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    save(tmp_path / "whole", model, letters())
    ids = {"input_ids": torch.randint(3, 64, (1, 8))}
    pruned = irprune.prune(model, (), ids, ratio=0.5, uniform=True, keep=["*embed*"], proof=False)
    pruned.save(tmp_path / "small", "hf")
    (tmp_path / "text.txt").write_text("THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. " * 60)
    return tmp_path


def _run(folders: Path, output: str, *more: str) -> dict[str, torch.Tensor]:
    main = runpy.run_path(str(RECIPE))["main"]
    words = [str(folders / "small"), str(folders / "whole"), "--text", str(folders / "text.txt")]
    words += ["-o", str(folders / output), "--length", "32", "--steps", "8", "--save-every", "4"]
    main([*words, "--rate", "0.01", *more])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folders / output)
    state: dict[str, torch.Tensor] = loaded.state_dict()
    return state


def test_it_learns_and_goes_on_where_it_was_ended(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = _run(folders, "once", "--checkpointing")
    small, trained = (
        transformers.AutoModelForCausalLM.from_pretrained(folders / name)
        for name in ("small", "once")
    )
    whole = transformers.AutoModelForCausalLM.from_pretrained(folders / "whole")
    apart = [
        irprune.evaluate(
            net, folders / "text.txt", against=whole, tokenizer=folders / "whole", length=32
        )
        .texts[0]
        .divergence
        for net in (small, trained)
    ]
    assert apart[1] < 0.9 * apart[0]

    step = transformers.Trainer.training_step
    calls = []

    def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(transformers.Trainer, "training_step", ended)
        with pytest.raises(KeyboardInterrupt):
            _run(folders, "twice", "--checkpointing")
    assert not (folders / "twice" / "config.json").exists()
    twice = _run(folders, "twice", "--checkpointing")
    assert all(torch.equal(t, once[name]) for name, t in twice.items())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("more", [("--lora", "4"), ("--bf16",)], ids=["adapters", "bf16"])
def test_tied_embeddings_and_half_a_checkpoint_are_no_hindrance(
    folders: Path, more: tuple[str, ...]
) -> None:
    """As those of most small models; and as a run leaves one that is killed while it writes."""
    if "--lora" in more:
        pytest.importorskip("peft")
    for name in ("whole", "small"):
        net = transformers.AutoModelForCausalLM.from_pretrained(folders / name)
        net.config.tie_word_embeddings = True
        net.tie_weights()
        net.save_pretrained(folders / name)
    once = _run(folders, "once", *more)
    assert torch.equal(once["lm_head.weight"], once["model.embed_tokens.weight"])
    kept = folders / "once" / "checkpoints"
    assert [p.name for p in kept.iterdir()] == ["checkpoint-8"]
    (kept / "checkpoint-9").mkdir()
    (kept / "checkpoint-10").mkdir()
    (kept / "checkpoint-10" / "trainer_state.json").write_text('{"epoch": 1.')
    again = _run(folders, "once", *more)
    assert all(torch.equal(t, once[name]) for name, t in again.items())
