"""EleutherAI's lm-evaluation-harness takes a folder of a pruned language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import irprune

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)

from lm_eval.api.instance import Instance  # noqa: E402 - skipped where it is not installed
from lm_eval.models.huggingface import HFLM  # noqa: E402


def test_it_says_what_the_pruned_model_says(tmp_path: Path) -> None:
    letters = {chr(n): n - 30 for n in range(32, 94)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, **letters}, unk_token="?"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "whole")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="?", eos_token="?", pad_token="?"
    ).save_pretrained(tmp_path / "whole")
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
