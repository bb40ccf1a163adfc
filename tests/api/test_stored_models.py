"""Folders of transformers that are read weight by weight: the same bytes as of a model in memory,
no more than a few tensors at a time, and a run that was killed goes on where it was.

Needs transformers (extra ``zoo``): without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import irprune
from irprune.base.memory import memory_budget, within_memory
from irprune.cli import run
from irprune.emit.torch import safetensors_file
from irprune.errors import IrpruneError
from irprune.frontend.torch import stored_model as stored
from irprune.run.stored_tensor import StoredTensor, is_stored, moved, read_whole

# Where torchvision needs its operators declared, see tools/zoo.py
if importlib.util.find_spec("tvshim") is not None:
    importlib.import_module("tvshim")
transformers = pytest.importorskip("transformers")

MAKE = Path(__file__).parents[2] / "tools" / "make_folder.py"
SMALL = ("--memory", "1MB")


def folder_of(path: Path, *arguments: str) -> Path:
    """A folder with a random LLaMA."""
    subprocess.run(
        [sys.executable, str(MAKE), str(path), *arguments], check=True, capture_output=True
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("model") / "llama", "--layers", "3")


def loaded(folder: Path):
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.LlamaForCausalLM
    return stored.stored_model(kind, config, folder).eval(), kind.from_pretrained(folder).eval()


def test_no_bar_of_another_library_is_drawn(folder: Path, capfd) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    for spec in (SMALL, ()):
        assert run(["inspect", f"hf:{folder}"]) == 0
        assert run(["prune", f"hf:{folder}", "--no-proof", *spec]) == 0
    assert logging.is_progress_bar_enabled()
    said = capfd.readouterr()
    assert "Loading weights" not in said.out + said.err


def pruned(folder: Path, out: Path, *arguments: str) -> Path:
    assert run(["prune", f"hf:{folder}", "-o", str(out), "--format", "hf", *arguments]) == 0
    return out


def same_folders(a: Path, b: Path) -> None:
    names = {p.name for p in a.iterdir()}
    assert names == {p.name for p in b.iterdir()}
    for name in names - {"report.json", "report.html"}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = (json.loads((x / "report.json").read_text()) for x in (a, b))
    for report in (first, second):
        del report["command"]
        report["options"].pop("memory", None)
    assert first == second


def test_a_model_that_is_read_computes_what_one_in_memory_does(folder: Path) -> None:
    lazy, whole = loaded(folder)
    assert is_stored(lazy) and not is_stored(whole)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = whole(ids).logits
        assert torch.equal(lazy(ids).logits, expected)
        wide = moved(lazy, torch.device("cpu"), torch.float64)
        assert is_stored(wide) and wide(ids).logits.dtype == torch.float64
        assert torch.equal(
            wide(ids).logits, moved(whole, torch.device("cpu"), torch.float64)(ids).logits
        )
    state, own = whole.state_dict(), lazy.state_dict()
    assert all(torch.equal(own[n].read(), state[n]) for n in state)
    assert not is_stored(read_whole(lazy))
    assert lazy.generation_config == whole.generation_config


def test_a_handle_is_not_written_to_in_silence() -> None:
    handle = StoredTensor(lambda: torch.zeros(3), [3], torch.float32)
    with pytest.raises(RuntimeError, match="cannot be written"):
        handle.add_(1)
    module = torch.nn.Linear(3, 3, bias=False)
    module.weight = torch.nn.Parameter(StoredTensor(lambda: torch.eye(3), [3, 3], torch.float32))
    with pytest.raises(RuntimeError, match="cannot be written"):
        module.double()
    assert torch.equal(module(torch.ones(3)), torch.ones(3))


@pytest.mark.parametrize(
    "made",
    [
        (),
        ("--dtype", "bfloat16"),
        ("--tied",),
        ("--kv-heads", "2", "--shards", "1"),
    ],
    ids=["float32", "bfloat16", "tied", "one file"],
)
def test_the_bytes_are_those_of_a_model_in_memory(made, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "llama", *made)
    whole = pruned(source, tmp_path / "whole")
    lazy = pruned(source, tmp_path / "lazy", *SMALL)
    same_folders(whole, lazy)
    again = transformers.AutoModelForCausalLM.from_pretrained(lazy)
    assert sum(p.numel() for p in again.parameters()) < 0.7 * sum(
        p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(source).parameters()
    )


def test_sizes_of_each_layer_are_the_same_too(folder: Path, tmp_path: Path) -> None:
    options = ("--per-layer", "--scope", "global", "--params", "0.7")
    whole = pruned(folder, tmp_path / "whole", *options)
    lazy = pruned(folder, tmp_path / "lazy", *options, *SMALL)
    assert (whole / "modeling_irprune.py").exists()
    same_folders(whole, lazy)


def test_few_tensors_are_read_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is read the most bytes at once, however many layers there are."""
    read = stored._read

    def most(source: Path, out: Path) -> int:
        alive: dict[int, int] = {}
        highest = 0

        def watched(file: Path, name: str) -> torch.Tensor:
            nonlocal highest
            made = read(file, name)
            alive[id(made)] = made.numel() * made.element_size()
            weakref.finalize(made, alive.pop, id(made))
            highest = max(highest, sum(alive.values()))
            return made

        monkeypatch.setattr(stored, "_read", watched)
        pruned(source, out, *SMALL)
        return highest

    largest = 4 * 176 * 64
    twice = folder_of(tmp_path / "twice", "--layers", "6")
    for given, out in ((folder, "few"), (twice, "many")):  # transformers reads by several threads
        assert most(given, tmp_path / out) <= 3 * largest, (
            "the peak depends on the number of layers"
        )


@pytest.mark.parametrize("tensors", [1, 7, 20])
def test_a_killed_run_goes_on_where_it_was(tensors: int, folder: Path, tmp_path: Path) -> None:
    whole = pruned(folder, tmp_path / "whole", *SMALL)
    killed = f"""
import os
from irprune.emit.torch import safetensors_file as file
note, count = file._Journal.note, []
def noted(self, *told):
    note(self, *told)
    count.append(1)
    if len(count) == {tensors}:
        os._exit(9)
file._Journal.note = noted
from irprune.cli import run
run(["prune", "hf:{folder}", "-o", "{tmp_path / "again"}", "--format", "hf", "--memory", "1MB"])
"""
    done = subprocess.run([sys.executable, "-c", killed], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "again").exists()

    written: list[str] = []
    note = safetensors_file._Journal.note

    def noted(self, file, place, crc) -> None:
        written.append(place.name)
        note(self, file, place, crc)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(safetensors_file._Journal, "note", noted)
        again = pruned(folder, tmp_path / "again", *SMALL)
    same_folders(whole, again)
    every = len(transformers.AutoModelForCausalLM.from_pretrained(whole).state_dict())
    assert len(written) == every - tensors, "what was written was not taken over"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "whole"]


def test_what_another_choice_has_written_is_not_taken_over(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.arange(3.0)}
    safetensors_file.write_tensors(tmp_path, tensors, "one")
    first = (tmp_path / "model.safetensors").read_bytes()
    head, places = safetensors_file._header(tensors)
    journal = safetensors_file._Journal(tmp_path / safetensors_file.JOURNAL, "one")
    journal.note("model.safetensors", places[0], 0)  # another sum than that of its bytes
    assert (
        safetensors_file._Journal(journal.path, "one").sound(
            tmp_path / "model.safetensors", len(head), places
        )
        == []
    )
    safetensors_file.write_tensors(tmp_path, {**tensors, "b": torch.ones(3)}, "two")
    assert (tmp_path / "model.safetensors").read_bytes() != first


def test_files_are_those_of_safetensors_and_transformers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)
    tensors = {
        "é.weight": torch.randn(3, 5, generator=draw),
        "b": torch.randn(7, generator=draw).bfloat16(),
        "a": torch.randn(7, generator=draw).half(),
        "n": torch.arange(4),
        "flags": torch.tensor([True, False, True]),
    }
    save_file(tensors, str(tmp_path / "theirs"), metadata={"format": "pt"})
    safetensors_file.write_tensors(tmp_path, tensors, "")
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()

    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "shards", max_shard_size=12_000)
    (tmp_path / "own").mkdir()
    safetensors_file.write_tensors(tmp_path / "own", model.state_dict(), "", limit=12_000)
    names = sorted(p.name for p in (tmp_path / "own").iterdir())
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: next(f.glob("*-00002-*")).unlink(), "shards are missing"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index of the shards"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
            "there are no shards",
        ),
        (lambda f: os.truncate(next(f.glob("*-00003-*")), 100), "shard cannot be read"),
    ],
    ids=["missing", "index", "none", "cut off"],
)
def test_a_folder_whose_shards_are_not_whole_is_refused(
    spoil, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path / "llama")
    spoil(source)
    assert run(["prune", f"hf:{source}", "-o", str(tmp_path / "o"), *SMALL]) == 2
    said = capfd.readouterr().err
    assert told in said and said.count("\n") == 1, said


def without_a_weight(folder: Path) -> None:
    """Takes the down projections of the second block out of the files and the index."""
    from safetensors.torch import load_file, save_file

    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    for name in [n for n in said["weight_map"] if "layers.1.mlp.down" in n]:
        file = folder / said["weight_map"].pop(name)
        held = load_file(file)
        del held[name]
        save_file(held, file, metadata={"format": "pt"})
    index.write_text(json.dumps(said))


def without_files(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(without_files, "no weights here"), (without_a_weight, "layers.1.mlp.down_proj.weight")],
    ids=["config alone", "one weight"],
)
@pytest.mark.parametrize("command", ["inspect", "prune", "prune streamed"])
def test_no_weight_is_drawn_in_place_of_one_that_is_missing(
    spoil, told: str, command: str, tmp_path: Path, folder: Path, capfd
) -> None:
    source = tmp_path / "llama"
    shutil.copytree(folder, source)
    spoil(source)
    verb, *streamed = command.split()
    out = ("-o", str(tmp_path / "o"), "--format", "hf") if verb == "prune" else ()
    assert run([verb, f"hf:{source}", *out, *(SMALL if streamed else ())]) == 2
    said = capfd.readouterr()
    assert told in said.err and said.err.count("\n") == 1 and not said.out, said
    assert not (tmp_path / "o").exists()


def test_memory_is_a_number_of_bytes() -> None:
    from irprune.api.options import Options

    told = {"8GB": 8 * 10**9, "1.5 GiB": 3 * 2**29, "512m": 512 * 10**6, 7: 7}
    assert {text: Options(memory=text).memory for text in told} == told
    with pytest.raises(IrpruneError, match=r"memory.*takes a number of bytes"):
        Options(memory="much")
    with within_memory(5):
        assert memory_budget() == 5
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    assert irprune.prune(model, (torch.randn(2, 4),), memory="1GB").report.proof.passed


def test_calibrated_bytes_do_not_depend_on_memory(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        ids = draw.integers(0, 128, (2, 12))
        np.savez(data / f"{number}.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    options = ("--calibration", str(data))
    whole = pruned(folder, tmp_path / "whole", *options)
    lazy = pruned(folder, tmp_path / "lazy", *options, "--memory", "100kB")
    assert "static" in (whole / "report.json").read_text()
    same_folders(whole, lazy)


def test_too_little_memory_is_refused_with_the_least_that_works(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", f"hf:{folder}", "-o", str(tmp_path / "out"), "--format", "hf", "--memory"]
    assert run([*command, "10kB"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("irprune: --memory is 0.01 MB, and the weights of one operator take")
    least = said.partition("give at least --memory ")[2].rstrip(")")
    assert least.endswith("kB") and not (tmp_path / "out").exists()
    assert run([*command, f"{int(least[:-2]) - 1}kB"]) == 2
    assert run([*command, least]) == 0


def test_a_decoder_is_written_with_its_cache(folder: Path, tmp_path: Path) -> None:
    """The exporter wants weights in memory, where a handle failed."""
    whole, lazy = tmp_path / "whole.onnx", tmp_path / "lazy.onnx"
    for path, spec in ((whole, ()), (lazy, SMALL)):
        words = ["prune", f"hf:{folder}", "-o", str(path), "--cache", "--no-proof", "--no-bench"]
        assert run([*words, *spec]) == 0
    first, second = (
        {t.name: t.raw_data for t in onnx.load(path).graph.initializer} for path in (whole, lazy)
    )
    assert len(first) > 20 and first == second
