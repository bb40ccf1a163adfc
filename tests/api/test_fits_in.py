"""What comes out goes through the libraries that people train and deploy with: both the emitted
module and the user's own instance after ``apply_to``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import irprune

pytestmark = pytest.mark.filterwarnings("default")  # of libraries, about themselves


class Net(nn.Module):
    """A residual network for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 32, 3, padding=1)
        self.back = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(pixels)))
        x = x + self.back(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


def emitted() -> nn.Module:
    torch.manual_seed(0)
    return irprune.prune(Net(), (torch.randn(2, 3, 16, 16),), ratio=0.5).module


def instance() -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    irprune.prune(net, (torch.randn(2, 3, 16, 16),), ratio=0.5).apply_to(net)
    return net


BOTH = pytest.mark.parametrize("made", [emitted, instance])
Made = Callable[[], nn.Module]


def batch(count: int = 4, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 3, size, size), torch.randint(0, 4, (count,))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def all_moved(module: nn.Module, before: list[torch.Tensor]) -> bool:
    return all(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


# -- torch -----------------------------------------------------------------------------------------


@BOTH
def test_torch_compile_with_dynamic_sizes(made: Made) -> None:
    module = made().eval()
    torch._dynamo.reset()
    compiled = torch.compile(module, dynamic=True, backend="aot_eager", fullgraph=True)
    for count, size in ((2, 16), (3, 12), (5, 20)):
        x, _ = batch(count, size)
        torch.testing.assert_close(compiled(x), module(x))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(made: Made, dtype: torch.dtype) -> None:
    module = made().train()
    x, y = batch()
    before = weights(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with torch.autocast("cpu", dtype):
        logits = module(x)
        loss = F.cross_entropy(logits.float(), y)
    assert logits.dtype == dtype
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all_moved(module, before)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@BOTH
@pytest.mark.usefixtures("group")
def test_distributed_data_parallel(made: Made) -> None:
    module = made().train()
    plain = copy.deepcopy(module)
    x, y = batch()
    F.cross_entropy(nn.parallel.DistributedDataParallel(module)(x), y).backward()
    F.cross_entropy(plain(x), y).backward()
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# -- files -----------------------------------------------------------------------------------------


@BOTH
def test_safetensors(made: Made, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module, other = made().eval(), made().eval()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    safetensors.save_model(module, str(tmp_path / "w.safetensors"))
    safetensors.load_model(other, str(tmp_path / "w.safetensors"))
    x, _ = batch()
    assert torch.equal(module(x), other(x))


# -- trainers --------------------------------------------------------------------------------------


@BOTH
def test_accelerate(made: Made) -> None:
    accelerate = pytest.importorskip("accelerate")
    module = made().train()
    before = weights(module)
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch(8)), batch_size=4)
    helper = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    module, optimizer, loader = helper.prepare(module, optimizer, loader)
    for x, y in loader:
        with helper.accumulate(module):
            helper.backward(F.cross_entropy(module(x), y))
            optimizer.step()
            optimizer.zero_grad()
    assert all_moved(helper.unwrap_model(module), before)


@BOTH
def test_lightning(made: Made, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, both: Any, _: int) -> torch.Tensor:
            return F.cross_entropy(self.net(both[0]), both[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    task = Task(made())
    before = weights(task)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch(8)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, loader)
    assert all_moved(task, before)


@pytest.mark.parametrize("way", ["emitted", "instance"])
def test_transformers_trainer(way: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    example = {
        "input_ids": torch.randint(0, 50, (2, 8)),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "labels": torch.tensor([0, 1]),
    }
    pruned = irprune.prune(model, kwargs=example, ratio=0.5)
    module = pruned.module if way == "emitted" else pruned.apply_to(model)
    module = model if module is None else module
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    rows = [
        {"input_ids": torch.randint(0, 50, (6,)), "attention_mask": torch.ones(6), "labels": i % 2}
        for i in range(4)
    ]
    for row in rows:
        row["attention_mask"] = row["attention_mask"].long()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=0.1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.Trainer(module, arguments, train_dataset=rows).train()
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert "bert.encoder.layer.0.intermediate.dense.weight" in moved
    assert module.get_parameter("bert.encoder.layer.0.intermediate.dense.weight").shape[0] == 32


# -- quantisation ----------------------------------------------------------------------------------


@BOTH
def test_torchao_weight_only(made: Made) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    module = made().eval()
    x, _ = batch()
    wanted = module(x)
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    assert type(module.get_submodule("head").weight) is not nn.Parameter
    torch.testing.assert_close(module(x), wanted, atol=0.05, rtol=0.05)
