"""What a model of transformers is called with: inputs by its main input and its configuration, and
which of its outputs are its answer."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["WIDTH", "call_of"]

WIDTH = 64  # of every hidden state

_ANSWERS = (
    "logits",
    "pred_boxes",
    "pred_masks",
    "class_queries_logits",
    "masks_queries_logits",
    "predicted_depth",
    "reconstruction",
    "logits_per_image",
    "logits_per_text",
    "prediction_logits",
    "start_logits",
    "end_logits",
    "prediction_outputs",
    "waveform",
    "spectrogram",
    "audio_values",
    "seq_relationship_logits",
    "keypoints",
    "scores",
    "iou_scores",
    "mean_predictions",
)
_STATES = ("pooler_output", "last_hidden_state")
_NO_TOKEN = "no image token"


def call_of(model: Any, config: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...], int]:
    """Keyword arguments that the model runs on, the fields of its output that are its answer, and
    the width of a head that it lacks."""
    errors = []
    for make in (
        _image_in_text,
        _by_main_input,
        _text,
        _image,
        _audio_values,
        _audio_features,
        _text_and_image,
        _video,
        _boxes,
        _wave,
        _pair,
        _series,
        _required,
    ):
        try:
            kwargs = make(model, config)
            with torch.no_grad():
                out = model(**kwargs)
        except Exception as error:  # each way of calling is tried; all refusals are reported
            if str(error) != _NO_TOKEN:
                errors.append(f"{make.__name__[1:]}: {type(error).__name__}: {str(error)[:80]}")
            continue
        has = [k for k in out if isinstance(out[k], torch.Tensor)] if hasattr(out, "keys") else []
        answers = tuple(k for k in _ANSWERS if k in has)
        if answers and all(out[k].numel() == 1 for k in answers) and "pixel_values" in kwargs:
            # One number compares nothing
            kwargs["pixel_values"] = torch.cat(
                [kwargs["pixel_values"], kwargs["pixel_values"].flip(-1)]
            )
        if answers:
            return kwargs, answers, 0
        state = next((k for k in _STATES if k in has and out[k].ndim in (2, 3)), "")
        return kwargs, (state,) if state else (), out[state].shape[-1] if state else 0
    raise RuntimeError("; ".join(errors))


def _ids(n: int = 12) -> torch.Tensor:
    return torch.randint(5, 100, (1, n), generator=torch.Generator().manual_seed(0))


def _text(model: Any, config: Any) -> dict[str, torch.Tensor]:
    kwargs = {"input_ids": _ids()}
    if getattr(config, "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = _ids(7)
    return kwargs


def _image_of(config: Any) -> torch.Tensor:
    own = getattr(config, "vision_config", None) or config
    size = getattr(own, "image_size", None) or 64
    h, w = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(
        1, getattr(own, "num_channels", None) or 3, h, w, generator=torch.Generator().manual_seed(0)
    )


def _image(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": _image_of(config)}


def _text_and_image(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {**_text(model, config), **_image(model, config)}


def _image_in_text(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """As many image tokens in the text as the image gives; the model's refusal of one token says
    how many."""
    token = next(
        (
            v
            for n in ("image_token_id", "image_token_index")
            if (v := getattr(config, n, None)) is not None
        ),
        None,
    )
    if token is None:
        raise ValueError(_NO_TOKEN)
    pixels = _image(model, config)["pixel_values"]
    try:
        made = {"input_ids": _with(token, 1), "pixel_values": pixels}
        with torch.no_grad():
            model(**made)
    except ValueError as refused:
        counts = [int(n) for n in re.findall(r"\d+", str(refused)) if int(n) > 1]
        # Tokens, or tokens times their width
        for n in dict.fromkeys((*counts, *(n // WIDTH for n in counts if n >= WIDTH))):
            made = {"input_ids": _with(token, n), "pixel_values": pixels}
            with contextlib.suppress(ValueError), torch.no_grad():
                model(**made)
                break
    return made


def _with(token: int, count: int) -> torch.Tensor:
    return torch.cat([_ids(4), torch.full((1, count), token), _ids(4)], 1)


def _video(model: Any, config: Any) -> dict[str, torch.Tensor]:
    image = _image_of(config)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None) or 4
    name = (
        "pixel_values_videos" if model.main_input_name == "pixel_values_videos" else "pixel_values"
    )
    return {name: image.unsqueeze(1).repeat(1, frames, 1, 1, 1)}


def _boxes(model: Any, config: Any) -> dict[str, torch.Tensor]:
    ids = _ids()
    wide = 4 if config.model_type != "bros" else 8
    box = torch.rand(*ids.shape, wide, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "bbox": box if wide == 8 else (box * 100).long().sort(-1).values}


def _wave(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))}


def _pair(model: Any, config: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": _image_of(config).unsqueeze(1).repeat(1, 2, 1, 1, 1)}


def _series(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """The past of a time series, and what is known of its future."""
    draw = torch.Generator().manual_seed(0)
    past = config.context_length + max(config.lags_sequence)
    features = config.num_time_features
    return {
        "past_values": torch.rand(1, past, generator=draw),
        "past_time_features": torch.rand(1, past, features, generator=draw),
        "past_observed_mask": torch.ones(1, past),
        "future_values": torch.rand(1, config.prediction_length, generator=draw),
        "future_time_features": torch.rand(1, config.prediction_length, features, generator=draw),
    }


def _required(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """A value for each argument without a default, and for the decoder's text where there is
    one."""
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "input_ids": _ids,
        "qformer_input_ids": lambda: _ids(6),
        "pixel_values": lambda: _image_of(config),
        "input_values": lambda: torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)),
        "input_features": lambda: _audio_features(model, config)["input_features"],
        "states": lambda: torch.randn(1, 4, config.state_dim),
        "actions": lambda: torch.randn(1, 4, config.act_dim),
    }
    wanted = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return {name: makers[name]() for name in wanted}


def _audio_values(model: Any, config: Any) -> dict[str, torch.Tensor]:
    # A spectrogram
    if getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None):
        return {
            "input_values": torch.randn(
                1,
                config.max_length,
                config.num_mel_bins,
                generator=torch.Generator().manual_seed(0),
            )
        }
    kwargs = {"input_values": torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))}
    return (
        {**kwargs, "decoder_input_ids": _ids(7)}
        if getattr(config, "is_encoder_decoder", False)
        else kwargs
    )


def _audio_features(model: Any, config: Any) -> dict[str, torch.Tensor]:
    own = next(
        (
            c
            for n in ("encoder_config", "audio_config")
            if (c := getattr(config, n, None)) is not None
        ),
        config,
    )
    bins = next(
        (
            v
            for n in ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim")
            if (v := getattr(own, n, None))
        ),
        80,
    )
    length = 2 * (getattr(own, "max_source_positions", None) or 64)
    shape = (1, bins, length) if model.config.model_type in ("whisper",) else (1, length, bins)
    kwargs = {"input_features": torch.randn(*shape, generator=torch.Generator().manual_seed(0))}
    if getattr(config, "is_encoder_decoder", False):
        kwargs["decoder_input_ids"] = _ids(7)
    return kwargs


def _by_main_input(model: Any, config: Any) -> dict[str, torch.Tensor]:
    makers: dict[str, Callable[[Any, Any], dict[str, torch.Tensor]]] = {
        "input_ids": _text,
        "pixel_values": _image,
        "input_values": _audio_values,
        "input_features": _audio_features,
    }
    return makers[model.main_input_name](model, config)
