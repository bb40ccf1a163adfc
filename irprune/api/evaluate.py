"""How good a language model is, beside the one that it was made from: perplexity on texts, how
often both would say the same next token, how far their distributions are apart, and what each goes
on to say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irprune.api.options import device_of
from irprune.errors import IrpruneError, gist, option, users_line
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.run.inputs import flat_tensors
from irprune.run.logits import divergence, same_choice, surprise

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Continuation", "Evaluation", "TextFigures", "evaluate"]

LENGTH = 512  # tokens of a row
TOGETHER = 2  # rows at a time: their logits are large


@dataclass(frozen=True)
class TextFigures:
    """What was measured on one text.

    Attributes:
        text: Its file or folder.
        rows: How many rows.
        tokens: How many next tokens were asked for.
        perplexity: Of the model.
        before: Of the model that it is compared with; None where there is none.
        agreement: The share of positions where both find the same token the likeliest.
        divergence: The mean Kullback-Leibler divergence of the model's distribution of the next
            token from the other's, in nats.
    """

    text: str
    rows: int
    tokens: int
    perplexity: float
    before: float | None = None
    agreement: float | None = None
    divergence: float | None = None

    def __str__(self) -> str:
        found = f"{self.text}: perplexity {self.perplexity:.2f}"
        if self.before is not None:
            found += (
                f", before {self.before:.2f} ({self.perplexity / self.before:.3f} times); next token "
                f"the same {self.agreement:.1%}, divergence {self.divergence:.3f} nats"
            )
        return f"{found}; {self.rows} rows, {self.tokens} tokens"


@dataclass(frozen=True)
class Continuation:
    """What each of two models says after ``prompt``, the likeliest token each time."""

    prompt: str
    after: str
    before: str | None = None

    def __str__(self) -> str:
        lines = [f"prompt  {self.prompt}"]
        if self.before is not None:
            lines.append(f"before  {self.before}")
        return "\n".join([*lines, f"after   {self.after}"])


@dataclass(frozen=True)
class Evaluation:
    """What ``irprune.evaluate`` measures.

    Attributes:
        texts: The figures of each text.
        continuations: What is said after each prompt.
    """

    texts: tuple[TextFigures, ...]
    continuations: tuple[Continuation, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Returns:
            Dictionaries and lists of text and numbers.
        """
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.texts, *self.continuations)))


def evaluate(
    model: nn.Module,
    texts: str | Path | Mapping[str, Any] | Sequence[str | Path],
    *,
    against: nn.Module | None = None,
    tokenizer: Any = None,
    length: int = LENGTH,
    rows: int | None = None,
    prompts: Sequence[str] = (),
    tokens: int = 32,
    device: str = "auto",
) -> Evaluation:
    """Measure a language model on texts.

    Args:
        model: What gives logits [batch, length, vocabulary] for token numbers [batch, length]: a
            model of transformers, or any module, such as ``pruned.module``.
        texts: A file of text (``.txt``, ``.md``, ``.jsonl``) or a folder of them, or several, or by
            name tensors of token numbers [rows, length].
        against: The model that it was made from.
        tokenizer: As transformers has them, or the folder of one; None takes the one beside the
            model.
        length: Tokens of a row; what is left over at the end of a document is not counted.
        rows: How many rows of each text; None for all.
        prompts: Texts for both models to go on from.
        tokens: How many tokens they add.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Returns:
        The figures.

    Raises:
        IrpruneError: For texts, tokenizers and models that there are not, or that do not fit.
    """
    import torch

    from irprune.frontend.torch.restore_state import evaluating
    from irprune.run.stored_tensor import module_device

    if length < 2:
        raise IrpruneError(f"rows of {length} tokens", "", "the next token needs one before it")
    if isinstance(tokenizer, (str, Path)):
        from irprune.run.texts import tokenizer_in

        tokenizer = tokenizer_in(str(tokenizer))
    found = _rows(texts, tokenizer, (model, against), length, rows)
    if prompts and tokenizer is None:
        tokenizer = _tokenizer(model, against)
    here = device_of(device)
    places = [(m, module_device(m)) for m in (model, against) if m is not None]
    try:
        for m, _ in places:
            m.to(here)
        with torch.no_grad(), evaluating(model):
            if against is None:
                figures = tuple(_measured(n, r, model, None, here) for n, r in found.items())
                said = [_goes_on(model, tokenizer, p, tokens, here) for p in prompts]
                pairs = [Continuation(p, s) for p, s in zip(prompts, said, strict=True)]
                return Evaluation(figures, tuple(pairs))
            with evaluating(against):
                figures = tuple(_measured(n, r, model, against, here) for n, r in found.items())
                both = [
                    Continuation(
                        p,
                        _goes_on(model, tokenizer, p, tokens, here),
                        _goes_on(against, tokenizer, p, tokens, here),
                    )
                    for p in prompts
                ]
            return Evaluation(figures, tuple(both))
    finally:
        for m, place in places:
            m.to(place)


def _rows(
    texts: Any, tokenizer: Any, models: tuple[Any, Any], length: int, count: int | None
) -> dict[str, torch.Tensor]:
    """Rows of token numbers by the name of a text."""
    from irprune.run.texts import documents, rows_of

    if isinstance(texts, Mapping):
        return {str(name): rows if count is None else rows[:count] for name, rows in texts.items()}
    several = [texts] if isinstance(texts, (str, Path)) else list(texts)
    if not several:
        raise IrpruneError("no text to measure on", "", f"give {option('texts')}")
    parts = {str(path): documents(Path(path)) for path in several}
    made = tokenizer if tokenizer is not None else _tokenizer(*models)
    return {name: rows_of(some, made, length, count) for name, some in parts.items()}


def _tokenizer(model: Any, against: Any) -> Any:
    """That beside one of the two models. Raises IrpruneError where there is none."""
    from irprune.run.texts import tokenizer_in

    folders = [str(m.name_or_path or "") for m in (model, against) if is_pretrained(m)]
    if not any(folders):
        raise IrpruneError(
            "nothing says what makes tokens of texts",
            type(model).__name__,
            f"give {option('tokenizer', 'FOLDER')}",
        )
    return tokenizer_in(next(f for f in folders if f))


def _measured(
    name: str, rows: torch.Tensor, model: Any, against: Any, here: torch.device
) -> TextFigures:
    import torch

    lost = before = apart = alike = 0.0
    count = rows[:, 1:].numel()
    for some in torch.split(rows, TOGETHER):
        ids = some.to(here)
        ours = _logits(model, ids)
        lost += surprise(ours, ids)
        if against is None:
            continue
        theirs = _logits(against, ids)
        if ours.shape != theirs.shape:
            raise IrpruneError(
                f"logits {list(ours.shape)} beside {list(theirs.shape)}",
                type(model).__name__,
                "compare models with the same vocabulary",
            )
        before += surprise(theirs, ids)
        apart += divergence(ours[:, :-1], theirs[:, :-1])[0]
        alike += same_choice(ours[:, :-1], theirs[:, :-1])
    own = math.exp(lost / count)
    if against is None:
        return TextFigures(name, len(rows), count, own)
    return TextFigures(
        name, len(rows), count, own, math.exp(before / count), alike / count, apart / count
    )


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What ``model`` says to rows of tokens. Raises IrpruneError where that is no logits."""
    import torch

    names = inspect.signature(model.forward).parameters
    more = {"use_cache": False} if is_pretrained(model) and "use_cache" in names else {}
    try:
        try:
            result = model(ids, **more)
        except (TypeError, ValueError):  # one that was captured with a mask takes no call without
            if "attention_mask" not in names:
                raise
            result = model(ids, attention_mask=torch.ones_like(ids), **more)
    except Exception as failed:  # whatever forward raises is what the user must see
        raise IrpruneError(
            f"forward fails on token numbers {list(ids.shape)}: {gist(failed)}",
            users_line(failed) or type(model).__name__,
            "a language model takes rows of token numbers of any length; a shorter length may do",
        ) from failed
    for made in flat_tensors(result):
        if made.is_floating_point() and made.dim() == 3 and made.shape[:2] == ids.shape:
            return made
    raise IrpruneError(
        "forward gives no logits [batch, length, vocabulary]",
        type(model).__name__,
        "give a language model",
    )


def _goes_on(model: Any, tokenizer: Any, prompt: str, count: int, here: torch.device) -> str:
    """What ``model`` says after ``prompt``: by its own ``generate`` with the cache where it has one
    of transformers."""
    import torch

    ids = torch.tensor([tokenizer(prompt).input_ids], device=here)
    start = ids.shape[1]
    if is_pretrained(model) and model.can_generate():
        ids = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )
    else:
        for _ in range(count):
            ids = torch.cat((ids, _logits(model, ids)[:, -1:].argmax(-1)), 1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                break
    text: str = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    return text
