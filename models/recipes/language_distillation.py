"""Train a pruned language model on the one that it was made from: its distribution of the next
token, and its hidden states.

    python models/recipes/language_distillation.py small/ FOLDER --text texts/ -o trained/

``small/`` is a folder that ``irprune prune hf:FOLDER --format hf`` wrote. Training is by the
Trainer of transformers (and so by accelerate, on as many devices as it is launched on): a run that
was ended goes on from its last checkpoint. ``--lora RANK`` trains adapters by peft in place of all
weights and merges them at the end. Where the pruned model is narrower, hidden states go through a
linear map that is trained along and thrown away. Sizes by layer are code in the folder: ``--trust``
runs it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from irprune.run.texts import documents, rows_of


class Rows(Dataset[Mapping[str, Tensor]]):
    """Rows of token numbers as the Trainer wants them."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Mapping[str, Tensor]:
        row = self.rows[at]
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}


class Student(nn.Module):
    """The pruned model, and the maps from its hidden states to the original's."""

    def __init__(self, model: Any, wide: int) -> None:
        super().__init__()
        self.model = model
        own = model.config.hidden_size
        self.map = nn.Identity() if own == wide else nn.Linear(own, wide, bias=False)

    def forward(self, **call: Any) -> Any:
        return self.model(**call, output_hidden_states=True, use_cache=False)


class Distiller(Trainer):
    """Learns from ``teacher``: the divergence of the next token's distribution, and ``hidden``
    times the squared difference of the hidden states, relative to their own squares."""

    def __init__(self, teacher: Any, hidden: float, **rest: Any) -> None:
        super().__init__(**rest)
        self.teacher, self.hidden = teacher.eval().requires_grad_(False), hidden

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        ours = model(**inputs)
        self.teacher.to(ours.logits.device)
        with torch.no_grad():
            theirs = self.teacher(**inputs, output_hidden_states=True, use_cache=False)
        loss = F.kl_div(
            ours.logits.float().log_softmax(-1).flatten(0, 1),
            theirs.logits.float().log_softmax(-1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        # Where blocks were left out, the states of the others: the last ones stand side by side
        pairs = list(zip(ours.hidden_states[::-1], theirs.hidden_states[::-1], strict=False))
        to_teacher = self.accelerator.unwrap_model(model).map
        for own, other in pairs[:-1] if self.hidden else ():
            # The first token holds massive activations in trained decoders, which say nothing
            a, b = to_teacher(own)[:, 1:].float(), other[:, 1:].float()
            loss = loss + self.hidden * (a - b).square().mean() / b.square().mean() / len(pairs)
        return (loss, ours) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights that are tied, an embedding and the head, are written once: the Trainer does so
        for models of transformers, which this is around."""
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.accelerator.unwrap_model(self.model), str(folder / "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.accelerator.unwrap_model(model or self.model)
        load_model(model, str(Path(resume_from_checkpoint) / "model.safetensors"))


def last_checkpoint(state: Path) -> str | None:
    """The newest checkpoint that is whole: the Trainer writes its own state last."""
    whole = [f.parent for f in state.glob("checkpoint-*/trainer_state.json") if is_json(f)]
    newest = max(whole, key=lambda f: int(f.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except ValueError:  # cut off
        return False
    return True


def adapted(model: Any, rank: int) -> Any:
    """``model`` with adapters of ``rank`` on every linear layer, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )


def main(argv: list[str] | None = None) -> float:
    """Train, write the folder, and return the last loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("pruned", help="folder of the pruned model")
    parser.add_argument("original", help="folder of the model that it was made from")
    parser.add_argument("--text", type=Path, required=True, help="texts to train on")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step on each device")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--hidden", type=float, default=0.1, help="weight of the hidden states")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="0: all weights")
    parser.add_argument("--optimizer", default="adamw_torch", help="as TrainingArguments has it")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--checkpointing", action="store_true", help="of gradients")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--trust", action="store_true")
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(args.original)
    rows = rows_of(documents(args.text), tokenizer, args.length, args.steps * args.batch)
    teacher = AutoModelForCausalLM.from_pretrained(args.original, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        args.pruned, dtype=torch.float32, trust_remote_code=args.trust
    )
    if args.checkpointing:
        model.activation_checkpointing_enable()
    if args.lora:
        model = adapted(model, args.lora)
    state = args.output / "checkpoints"
    trainer = Distiller(
        teacher,
        args.hidden,
        model=Student(model, teacher.config.hidden_size),
        train_dataset=Rows(rows),
        args=TrainingArguments(
            output_dir=str(state),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, args.steps // 20),
            optim=args.optimizer,
            bf16=args.bf16,
            logging_steps=10,
            save_steps=args.save_every,
            save_total_limit=1,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            seed=0,
        ),
    )
    found = trainer.train(resume_from_checkpoint=last_checkpoint(state))
    if trainer.is_world_process_zero():
        if args.lora:
            model = model.merge_and_unload()
        model.save_pretrained(str(args.output))
        for code in Path(args.pruned).glob("modeling_*.py"):
            shutil.copyfile(code, args.output / code.name)
        tokenizer.save_pretrained(str(args.output))
    return float(found.training_loss)


if __name__ == "__main__":
    main()
