"""EleutherAI's lm-evaluation-harness takes a folder of a pruned language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from language_models import letters, llama, save

import irprune

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)

from lm_eval.api.instance import Instance  # noqa: E402 - skipped where it is not installed
from lm_eval.models.huggingface import HFLM  # noqa: E402


def test_it_says_what_the_pruned_model_says(tmp_path: Path) -> None:
    fresh = llama(num_key_value_heads=4, max_position_embeddings=64)
    save(tmp_path / "whole", fresh, letters(eos_token="?", pad_token="?"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    ids = {"input_ids": torch.randint(3, 64, (1, 8))}
    pruned = irprune.prune(model, (), ids, ratio=0.5, uniform=True, keep=["*embed*"], proof=False)
    pruned.save(tmp_path / "small", "hf")

    harness = HFLM(pretrained=str(tmp_path / "small"), device="cpu", batch_size=2)
    asked = ("THE QUICK", " BROWN FOX")
    call = Instance(request_type="loglikelihood", doc={}, arguments=asked, idx=0)
    ((likelihood, _),) = harness.loglikelihood([call], disable_tqdm=True)

    row = torch.tensor([[letters[c] for c in "".join(asked)]])
    with torch.no_grad():
        said = pruned.module(input_ids=row).logits.log_softmax(-1)[0, len(asked[0]) - 1 : -1]
    meant = said.gather(1, row[0, len(asked[0]) :, None]).sum().item()
    assert likelihood == pytest.approx(meant, abs=1e-3)
