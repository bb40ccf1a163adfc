"""GGUF files of pruned language models: sizes and numbers as the ``gguf`` package reads them, and
logits as llama.cpp computes them where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import irprune
from irprune.cli import cli
from irprune.emit.gguf import file
from irprune.emit.gguf import model as model_file
from irprune.errors import CheckFailed, IrpruneError

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 32}
UNIFORM = {"ratio": 0.4, "uniform": True}
BY_LAYER = {"budget": {"params": 0.6}, "scope": "global"}


def model(kind, **more):
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
        config = transformers.GPT2Config(vocab_size=96, **sizes, bos_token_id=1, eos_token_id=2)
    else:
        config = transformers.AutoConfig.for_model(kind, **{**SIZES, **more})
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(p + 0.1 * torch.randn_like(p) if p.ndim == 1 else 4 * p)
    return made


def pruned(kind, options, **more):
    ids = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(1))
    return irprune.prune(model(kind, **more), (), {"input_ids": ids}, **options)


def widths(pattern):
    return {"ratio": 0.0, "ratios": {pattern: 0.4}, "uniform": True}


CASES = [
    pytest.param("llama", UNIFORM, {}, "llama", id="llama"),
    pytest.param("llama", BY_LAYER, {}, "deci", id="llama by layer"),
    pytest.param("llama", UNIFORM, {"rope_parameters": LLAMA3}, "llama", id="llama 3's rotary"),
    pytest.param("llama", UNIFORM, {"tie_word_embeddings": True}, "llama", id="tied"),
    pytest.param("llama", UNIFORM, {"attention_bias": True}, "llama", id="biases"),
    pytest.param("mistral", UNIFORM, {"sliding_window": None}, "llama", id="mistral"),
    pytest.param("qwen2", UNIFORM, {}, "llama", id="qwen2, narrower heads"),
    pytest.param("qwen2", BY_LAYER, {}, "deci", id="qwen2 by layer"),
    pytest.param("qwen2", widths("*gate_proj.weight:0"), {}, "qwen2", id="qwen2, mlp"),
    pytest.param("qwen3", UNIFORM, {"head_dim": 12}, "qwen3", id="qwen3"),
    pytest.param("gemma2", UNIFORM, GEMMA, "gemma2", id="gemma2"),
    pytest.param("starcoder2", widths("*c_fc.weight:0"), {}, "starcoder2", id="starcoder2, mlp"),
    pytest.param("gpt2", widths("*c_fc*"), {}, "gpt2", id="gpt2, mlp"),
]


@pytest.mark.parametrize(("kind", "options", "more", "architecture"), CASES)
def test_file_holds_the_pruned_model(tmp_path, kind, options, more, architecture):
    small = pruned(kind, options, **more)
    assert small.report.params.left < 0.95
    path = small.gguf(tmp_path / "small.gguf")
    reader = gguf.GGUFReader(path)
    field = reader.fields["general.architecture"]
    assert bytes(field.parts[field.data[0]]).decode() == architecture
    said = {r.by: r for r in small.report.read_back}
    assert said["gguf and transformers"].passed
    total = sum(int(np.prod(t.shape)) for t in reader.tensors if t.name != "rope_freqs.weight")
    assert total == sum(p.numel() for p in small.module.parameters())
    if "llama.cpp" in said:
        assert said["llama.cpp"].error < 1e-3
    else:
        assert any("llama.cpp is not installed" in note for note in small.report.notes)


def test_transformers_loads_what_is_written(tmp_path):
    small = pruned("llama", UNIFORM)
    small.gguf(tmp_path / "small.gguf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="small.gguf", dtype=torch.float32
    ).eval()
    ids = torch.randint(3, 96, (3, 9))
    with torch.no_grad():
        ours = small.module(input_ids=ids)
        theirs = loaded(input_ids=ids).logits
    ours = ours["logits"] if isinstance(ours, dict) else ours.logits
    assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max())


def test_element_types_are_kept_and_vectors_are_in_float32(tmp_path):
    ids = torch.randint(3, 96, (1, 8))
    half = model("llama").bfloat16()
    small = irprune.prune(half, (), {"input_ids": ids}, **UNIFORM)
    reader = gguf.GGUFReader(small.gguf(tmp_path / "small.gguf"))
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == "BF16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_branches_that_were_left_out(tmp_path):
    """A layer without a feed-forward part has one of zeros, one without attention has no heads, and
    of a block of which nothing is left nothing is written."""
    made = model("llama", num_hidden_layers=4)
    ids = torch.randint(3, 96, (1, 8))
    calls = [{"input_ids": torch.randint(3, 96, (1, 8))} for _ in range(4)]
    with torch.no_grad():
        for name in (
            "1.mlp.down_proj",
            "2.self_attn.o_proj",
            "3.mlp.down_proj",
            "3.self_attn.o_proj",
        ):
            made.get_submodule(f"model.layers.{name}").weight.mul_(1e-4)
    small = irprune.prune(
        made,
        (),
        {"input_ids": ids},
        calibration=calls,
        budget={"params": {"model.layers*": 0.55}},
        drop_blocks=True,
        proof=False,
    )
    assert small.plan.dropped
    small.gguf(tmp_path / "small.gguf")
    assert all(r.passed for r in small.report.read_back)


def test_a_wrong_number_is_found(tmp_path, monkeypatch):
    plain = file._stored
    small = pruned("llama", UNIFORM)
    monkeypatch.setattr(file, "_stored", lambda value: plain(value * 1.01))
    with pytest.raises(CheckFailed, match=r"small\.gguf"):
        small.gguf(tmp_path / "small.gguf")
    assert not list(tmp_path.iterdir())


def test_unsorted_queries_are_found_by_llama_cpp(tmp_path, monkeypatch):
    """Rotary embeddings of llama.cpp turn neighbours, those of transformers halves."""
    pytest.importorskip("llama_cpp")
    small = pruned("llama", UNIFORM)
    monkeypatch.setattr(model_file, "arranged", lambda reader, name, value: value)
    monkeypatch.setattr("irprune.validate.gguf_read_back.relative_error", lambda a, b: 0.0)
    with pytest.raises(CheckFailed, match=r"llama\.cpp"):
        small.gguf(tmp_path / "small.gguf")


@pytest.mark.parametrize(
    ("kind", "options", "more", "said"),
    [
        ("opt", {"ratio": 0.3}, {}, "writes no GGUF file of opt"),
        ("starcoder2", UNIFORM, {}, "as wide as the hidden state"),
        ("qwen3", BY_LAYER, {"head_dim": 12}, "no sizes by layer"),
    ],
)
def test_what_no_file_says_is_refused_in_one_line(tmp_path, kind, options, more, said):
    if kind == "opt":
        more = {"ffn_dim": 96, "word_embed_proj_dim": 48}
    with pytest.raises(IrpruneError, match=said):
        pruned(kind, options, **more).gguf(tmp_path / "small.gguf")
    assert not list(tmp_path.iterdir())


def test_module_that_is_none_of_transformers(tmp_path):
    small = irprune.prune(
        torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)),
        torch.randn(2, 8),
        ratio=0.5,
    )
    with pytest.raises(IrpruneError, match="of models of transformers"):
        small.gguf(tmp_path / "small.gguf")


# -- tokenizers ------------------------------------------------------------------------------------


def tokenizer_folder(folder: Path, split):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = split(pre_tokenizers)
    made.decoder = decoders.ByteLevel()
    text = ["the cat sat on 1234 mats, and the dogs barked at 56 of them"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=90,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=[],
        show_progress=False,
    )
    made.train_from_iterator(text, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return fast


def field(reader, name):
    held = reader.fields[name]
    return [bytes(held.parts[i]).decode() for i in held.data]


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (lambda p: p.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            lambda p: p.Sequence(
                [p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (lambda p: p.Whitespace(), "default"),
    ],
)
def test_tokenizer_of_the_folder_goes_along(tmp_path, split, name):
    folder = tmp_path / "model"
    fast = tokenizer_folder(folder, split)
    model("llama").save_pretrained(folder)
    made = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    small = irprune.prune(made, (), {"input_ids": torch.randint(3, 60, (1, 9))}, **UNIFORM)
    path = small.gguf(tmp_path / "small.gguf")
    reader = gguf.GGUFReader(path)
    assert field(reader, "tokenizer.ggml.pre") == [name]
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == 96
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(tokens[number] == text for text, number in vocabulary.items())
    assert any("splits text" in n for n in small.report.notes) == (name == "default")
    if name != "default":
        llama_cpp = pytest.importorskip("llama_cpp")
        llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        text = "the cats sat on 1234"
        assert llama.tokenize(text.encode(), add_bos=False) == fast.encode(text)


def test_command_line_writes_a_gguf_file(tmp_path):
    folder = tmp_path / "model"
    model("llama").save_pretrained(folder)
    out = tmp_path / "small.gguf"
    done = CliRunner().invoke(cli, ["prune", f"hf:{folder}", "--ratio", "0.4", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert gguf.GGUFReader(out).fields["llama.block_count"]
