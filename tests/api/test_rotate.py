"""Residual streams in the basis of their principal components: exact before anything is cut, in
modules and files, with what is refused by name."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import irprune
from irprune.analysis import turned_arrays
from irprune.analysis.rotatable import normalised_widths, rotatable
from irprune.api import rotate
from irprune.errors import CheckFailed, IrpruneError
from irprune.ir.graph import Rotated
from irprune.run.basis import Spread, principal_basis
from irprune.run.stored_tensor import StoredTensor

WORDS, WIDTH, LENGTH = 50, 16, 6


class Block(nn.Module):
    """Attention of one head and an MLP, each behind a norm."""

    def __init__(self, norm: Callable[[int], nn.Module], bias: bool) -> None:
        super().__init__()
        self.n1, self.n2 = norm(WIDTH), norm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(4))
        self.up, self.down = (
            nn.Linear(WIDTH, 2 * WIDTH, bias=bias),
            nn.Linear(2 * WIDTH, WIDTH, bias=bias),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.n1(x)
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / 4, -1)
        x = x + self.o(weights @ self.v(h))
        return x + self.down(torch.relu(self.up(self.n2(x))))


class Written(nn.Module):
    """A root mean square norm in its parts, as transformers writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class WrittenLayer(nn.Module):
    """A layer norm in its parts, as files of early opsets have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class Decoder(nn.Module):
    """A small decoder, whose stream lies in ``rank`` of its directions where that is given."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] = nn.RMSNorm,
        bias: bool = False,
        tied: bool = False,
        rank: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.blocks = nn.ModuleList([Block(norm, bias) for _ in range(2)])
        self.norm = norm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight
        for p in self.parameters():
            if p.dim() == 1:
                nn.init.normal_(p, 1.0, 0.3)
        if rank:
            with torch.no_grad():
                side = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0][:, :rank]
                onto = side @ side.T
                for table in (self.words.weight, self.places):
                    table.copy_(table @ onto)
                for block in self.blocks:
                    for layer in (block.o, block.down):
                        layer.weight.copy_(onto @ layer.weight)
                        if layer.bias is not None:
                            layer.bias.copy_(onto @ layer.bias)
        self.eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


_DRAW = torch.Generator().manual_seed(1)
IDS = torch.randint(WORDS, (2, LENGTH), generator=_DRAW)
DATA = torch.randint(WORDS, (64, LENGTH), generator=_DRAW)
STREAM = "places:2"
NORMS = {"rms": nn.RMSNorm, "written": Written, "layer": nn.LayerNorm}


def file_of(model: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (IDS,),
            str(path),
            dynamo=True,
            input_names=["ids"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    return path


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_module_computes_the_same_in_the_basis(norm: str, bias: bool, tied: bool) -> None:
    model = Decoder(NORMS[norm], bias, tied)
    made = irprune.prune(model, (IDS,), rotate=True, calibration=DATA, ratio=0, repair=False)
    rotation = made.report.rotation
    assert rotation is not None and rotation.error < 1e-12
    assert [(w.kept, w.energy) for w in rotation.widths] == [(WIDTH, pytest.approx(1.0))]
    assert torch.allclose(made.module(IDS), model(IDS), atol=1e-5)
    held = dict(made.module.named_parameters())["words.weight"]
    assert not torch.allclose(held, model.words.weight)  # it is another basis


@pytest.mark.parametrize("norm", NORMS)
def test_a_stream_of_few_directions_loses_none_of_them(norm: str) -> None:
    model = Decoder(NORMS[norm], rank=8)
    options: dict[str, Any] = {"calibration": DATA, "ratio": 0, "ratios": {STREAM: 0.5}}
    turned = irprune.prune(model, (IDS,), rotate=True, **options)
    plain = irprune.prune(model, (IDS,), **options)
    size = model(IDS).abs().max()
    assert (turned.module(IDS) - model(IDS)).abs().max() < 1e-3 * size
    assert (plain.module(IDS) - model(IDS)).abs().max() > 1e-2 * size
    rotation = turned.report.rotation
    assert rotation is not None and rotation.widths[0].energy > 0.9999
    assert rotation.widths[0].kept == 8 and turned.report.proof is not None
    assert turned.report.proof.passed


@pytest.mark.parametrize("norm", [*NORMS, "written layer"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_is_turned_and_cut(norm: str, tied: bool, tmp_path: Path) -> None:
    model = Decoder({**NORMS, "written layer": WrittenLayer}[norm], True, tied, rank=8)
    path = file_of(model, tmp_path / "plain.onnx")
    made = irprune.prune(path, rotate=True, calibration=DATA, ratio=0.0, repair=False)
    assert made.report.rotation is not None and made.report.rotation.error < 1e-5
    name = made.report.rotation.widths[0].name
    half = irprune.prune(path, rotate=True, calibration=DATA, ratio=0, ratios={name: 0.5})
    out = half.onnx(tmp_path / "small.onnx")
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert half.report.proof is not None and half.report.proof.passed
    assert half.report.params.after < 0.75 * half.report.params.before
    expected = model(IDS)
    assert (half.module(IDS) - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("norm", NORMS)
def test_the_instance_and_the_onnx_file_follow(norm: str, tmp_path: Path) -> None:
    model = Decoder(NORMS[norm], True, tied=True)
    made = irprune.prune(model, (IDS,), rotate=True, calibration=DATA, ratio=0.25)
    own = copy.deepcopy(model)
    assert torch.allclose(made.apply_to(own)(IDS), made.module(IDS), atol=1e-5)
    assert own.head.weight is not own.words.weight and own.words.weight.shape[1] == 12
    made.onnx(tmp_path / "small.onnx")
    assert made.report.parity is not None and made.report.parity.passed
    other = nn.Linear(3, 3)
    before = {n: p.clone() for n, p in other.named_parameters()}
    with pytest.raises(IrpruneError):
        made.apply_to(other)
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())


def test_counts_are_of_the_model_as_it_came_in() -> None:
    model = Decoder(tied=True)
    count = sum(p.numel() for p in model.parameters())
    made = irprune.prune(
        model, (IDS,), rotate=True, calibration=DATA, budget={"params": 0.7}, proof=False
    )
    report = made.report
    assert report.params.before == count and report.params.after <= 0.7 * count
    assert report.options["budget"] == {"params": 0.7}
    assert json.loads(report.to_json())["rotation"]["widths"][0]["size"] == WIDTH
    assert "components" in str(report) and "components" in report.to_html()


def test_norms_over_fewer_components_give_what_they_gave() -> None:
    model = Decoder(Written, rank=8)
    made = irprune.prune(
        model,
        (IDS,),
        rotate=True,
        calibration=DATA,
        ratio=0,
        ratios={STREAM: 0.5},
        repair=False,
    )
    scale = dict(made.module.named_parameters())["norm.weight"]
    assert torch.allclose(scale, torch.full((8,), 2**0.5), atol=1e-3)
    assert Rotated(torch.tensor([0.6, 0.3, 0.1, 0.0]).double().numpy(), ()).factor(
        [0, 1]
    ) == pytest.approx((4 * 0.9 / 2) ** 0.5)


def test_a_forgotten_scale_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = turned_arrays.turned_array

    def forgetful(made: Any, places: Any, basis: Any, load: Any) -> Any:
        plain = [p for p in places if p.kind != "scale"]
        return real(made, plain, basis, load) if plain else load(places[0].weight)

    monkeypatch.setattr(rotate, "turned_array", forgetful)
    with pytest.raises(CheckFailed, match="rotated basis does not compute"):
        irprune.prune(Decoder(), (IDS,), rotate=True, calibration=DATA, ratio=0)


def test_a_mean_that_forward_subtracts_is_named() -> None:
    with pytest.raises(IrpruneError, match="forward subtracts a mean"):
        irprune.prune(Decoder(WrittenLayer), (IDS,), rotate=True, calibration=DATA)


class Odd(nn.Module):
    """A stream through which something stands that no rotation passes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(8, 16), nn.Linear(16, 4)
        self.norm, self.after = nn.RMSNorm(16), nn.RMSNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.kind == "nonlinear":
            y = torch.relu(y)
        if self.kind == "post norm":
            y = y + self.after(y)
        if self.kind == "given out":
            return self.last(self.norm(y)).sum(-1, keepdim=True) + y.abs().sum(-1, keepdim=True)
        return self.last(self.norm(y))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nonlinear", "by 'relu'"),
        ("post norm", "by 'add'"),
        ("given out", "by 'abs'"),
    ],
)
def test_what_lets_no_rotation_pass_is_named(kind: str, said: str) -> None:
    data = torch.randn(16, 8)
    with pytest.raises(IrpruneError, match=r"first\.weight:0 cannot be turned") as refused:
        irprune.prune(Odd(kind).eval(), (data[:2],), rotate=True, calibration=data)
    assert said in str(refused.value)
    fine = irprune.prune(Odd("").eval(), (data[:2],), rotate=True, calibration=data, ratio=0.25)
    assert fine.report.rotation is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration": False}, "needs data"),
        ({"calibration": DATA, "low_rank": {"head": 4}}, "both given"),
        ({"calibration": DATA, "keep_indices": "dead"}, "both given"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(IrpruneError, match=said):
        irprune.prune(Decoder(), (IDS,), rotate=True, **options)
    with pytest.raises(IrpruneError, match="no width can be rotated"):
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        irprune.prune(net, (torch.randn(2, 8),), rotate=True, calibration=torch.randn(16, 8))


def test_weights_that_are_read_from_files_are_refused_with_the_memory_that_would_do() -> None:
    net = Decoder()
    own = net.head.weight.detach()
    net.head.weight = nn.Parameter(StoredTensor(own.clone, own.shape, own.dtype))
    with pytest.raises(IrpruneError, match=r"more than memory allows .*; give memory=1GB"):
        irprune.prune(net, (IDS,), rotate=True, calibration=DATA)


def test_a_plan_says_that_it_is_of_another_basis(tmp_path: Path) -> None:
    made = irprune.prune(Decoder(), (IDS,), rotate=True, calibration=DATA, ratio=0.25)
    assert made.plan.rotated == (STREAM,)
    kept = made.plan.save(tmp_path / "plan.json")
    with pytest.raises(IrpruneError, match="in a basis of calibration data"):
        irprune.apply_plan(Decoder(), kept, (IDS,))


def test_a_matrix_that_comes_through_a_view_is_read_like_a_layer() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(8, 16), Written(16)
            self.matrix = nn.Parameter(torch.randn(4, 16))
            nn.init.normal_(self.norm.weight, 1.0, 0.3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.first(x)) @ self.matrix.T

    data = torch.randn(32, 8)
    model = Viewed().eval()
    graph = irprune.capture(model, (data[:2],))
    irprune.groups(graph)
    made = rotatable(graph, normalised_widths(graph)[0])
    assert [p.weight.name for p in made.places if p.kind == "read"] == ["matrix"]
    pruned = irprune.prune(model, (data[:2],), rotate=True, calibration=data, ratio=0, repair=False)
    assert torch.allclose(pruned.module(data), model(data), atol=1e-5)


def test_directions_come_by_their_energy() -> None:
    torch.manual_seed(0)
    side = torch.linalg.qr(torch.randn(8, 8))[0]
    spread = Spread(8)
    spread.add(torch.randn(500, 8) * torch.arange(8, 0, -1) @ side.T, None, None, 10**6, 0)
    basis, energy = principal_basis(spread)
    assert torch.allclose(basis.T @ basis, torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert (energy[:-1] >= energy[1:]).all() and energy.sum() == pytest.approx(1.0)
    assert abs(float(basis[:, 0] @ side[:, 0].double())) > 0.95


def of_transformers(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    if kind == "GPT2":
        sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    else:
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
    if kind == "Mixtral":
        sizes |= {"num_local_experts": 4}
    if kind == "Llama":
        sizes |= {"tie_word_embeddings": True}
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model: nn.Module = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**sizes))
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1.0, 0.3)
    return model.eval()


@pytest.mark.parametrize("kind", ["Llama", "Mixtral"])
def test_the_config_of_a_decoder_says_the_width(kind: str) -> None:
    model = of_transformers(kind)
    options: dict[str, Any] = {"ratio": 0, "ratios": {"*embed_tokens.weight:1": 0.25}}
    data = torch.randint(64, (16, 8))
    made = irprune.prune(model, (data[:2],), rotate=True, calibration=data, proof=False, **options)
    own: Any = made.apply_to(copy.deepcopy(model))
    config = own.config
    assert (config.hidden_size, config.head_dim, config.tie_word_embeddings) == (24, 8, False)
    loaded = type(own)(config).eval()  # a model of that config has these tensors
    loaded.load_state_dict(own.state_dict())
    expected = made.module(data[:2])[0]
    assert torch.allclose(loaded(data[:2], use_cache=False)[0], expected, atol=1e-5)


def test_no_config_says_that_layer_norms_take_no_mean(tmp_path: Path) -> None:
    model = of_transformers("GPT2")
    data = torch.randint(64, (16, 8))
    made = irprune.prune(model, (data[:2],), rotate=True, calibration=data, ratio=0.25, proof=False)
    for write in (
        lambda: made.save(tmp_path / "hf", "hf"),
        lambda: made.gguf(tmp_path / "a.gguf"),
    ):
        with pytest.raises(IrpruneError, match="layer norms take no mean"):
            write()
    own = made.apply_to(copy.deepcopy(model))
    assert torch.allclose(own(data[:2], use_cache=False)[0], made.module(data[:2])[0], atol=1e-5)
    assert any("take no mean" in note for note in made.report.notes)
