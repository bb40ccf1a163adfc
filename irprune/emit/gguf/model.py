"""A pruned language model of transformers as llama.cpp, and the programs on top of it, have it in
one GGUF file.

How tensors are named and laid out there is known to transformers, which reads such files: its
names are used as they are, and its rearrangements are undone. A model whose config says the new
sizes is written as its own architecture; one of the LLaMA family with sizes by layer as ``deci``,
the architecture of llama.cpp in which each layer has its own number of heads and its own width."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from irprune.base.quiet import quiet
from irprune.emit.gguf.arrangement import arranged, arrangement
from irprune.emit.torch.hugging_face import pretrained
from irprune.emit.torch.instance import apply_to
from irprune.errors import IrpruneError
from irprune.frontend.torch.source import torch_source
from irprune.ir.graph import Graph
from irprune.run.stored_tensor import read

__all__ = ["GgufModel", "gguf_model", "rotary_of"]

_ARCHITECTURES = {  # model_type of a config: the architecture of llama.cpp
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gpt2": "gpt2",
    "starcoder2": "starcoder2",
}
_BY_LAYER = "deci"
_LIKE_LLAMA = ("llama", "qwen2", _BY_LAYER)  # one set of layers, under several names
_FREE_ROTARY = ("llama", _BY_LAYER)  # these read a divisor for each frequency
_WIDE_AS_HIDDEN = ("qwen2", "gpt2", "starcoder2")  # all heads together, in llama.cpp
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass
class GgufModel:
    """What goes into the file.

    Attributes:
        architecture: That of llama.cpp.
        config: The config of transformers that says what is the same for all layers.
        original: Tensors of the module, which may be handles, by their names in the file.
        added: What the module does not hold as such, by its name in the file.
        heads: Query heads and key-value heads of each layer; 0 and 0 without an attention.
        widths: Of each layer's feed-forward part.
        head_size: Of keys and values.
        notes: What the user is to be told.
    """

    architecture: str
    config: Any
    original: dict[str, torch.Tensor]
    heads: list[tuple[int, int]]
    widths: list[int]
    head_size: int
    added: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return self.original["token_embd.weight"].shape[0]

    @property
    def hidden(self) -> int:
        """The width of the hidden state."""
        return self.original["token_embd.weight"].shape[1]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and values of each tensor in the file, arranged as it has them; read one by one."""
        for name, value in self.original.items():
            yield name, arranged(self.reader(name), name, read(value))
        yield from self.added.items()

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and element type of each tensor in the file, without reading any."""
        for name, value in self.original.items():
            shape = tuple(value.shape)
            flipped = arrangement(self.reader(name), name, shape).flipped
            yield name, shape[::-1] if flipped else shape, value.dtype
        for name, value in self.added.items():
            yield name, tuple(value.shape), value.dtype

    def reader(self, name: str) -> Any:
        """What rearranges the tensor ``name`` in transformers when it reads the file."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        found = _BLOCK.match(name)
        queries, keys = self.heads[int(found[1]) if found else 0]
        about = {"num_attention_heads": queries, "num_key_value_heads": keys}
        made: Any = TENSOR_PROCESSORS.get(_named_as(self.architecture), TensorProcessor)
        return made(about)


def rotary_of(config: Any) -> dict[str, Any]:
    """The parameters of the rotary embedding; empty without one."""
    held = getattr(config, "rope_parameters", None) or {}
    if held and "rope_theta" not in held:
        raise IrpruneError(
            "the layers of this model have rotary embeddings of several kinds, which no GGUF file says",
            config.model_type,
            "write a folder: --format hf",
        )
    return dict(held)


# -- the model that is written ---------------------------------------------------------------------


def gguf_model(graph: Graph, cut: Graph, module: nn.Module, repaired: bool) -> GgufModel:
    """What a GGUF file of ``cut`` holds.

    Args:
        graph: The original with its choice.
        cut: What is left of it.
        module: What the file must compute.
        repaired: Whether ``cut`` holds refitted weights.

    Raises:
        IrpruneError: Where no architecture of llama.cpp has such layers or such sizes.
    """
    model: Any = torch_source(graph).module
    kind = model.config.model_type
    architecture = _ARCHITECTURES.get(kind)
    if architecture is None or not model.can_generate():
        raise IrpruneError(
            f"irprune writes no GGUF file of {kind} models",
            type(model).__name__,
            f"write a folder (--format hf); GGUF is for {', '.join(sorted(_ARCHITECTURES))}",
        )
    with quiet():
        made: Any = pretrained(graph, cut, module)
        notes: list[str] = []
        if isinstance(made, str):
            if architecture not in _LIKE_LLAMA:
                raise IrpruneError(
                    f"llama.cpp's {architecture} has no sizes by layer",
                    made,
                    "prune with uniform=True (--uniform)",
                )
            made = apply_to(copy.deepcopy(model), graph, cut, repaired)
            architecture = _BY_LAYER
            notes.append(
                "the layers have sizes of their own: the file's architecture is deci, which llama.cpp "
                "runs and transformers does not load"
            )
        return _described(made, architecture, notes)


def _described(made: Any, architecture: str, notes: list[str]) -> GgufModel:
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    config = made.config
    state: dict[str, torch.Tensor] = made.state_dict()
    naming: Any = TensorProcessor
    names: dict[str, str] = get_gguf_hf_weights_map(made, naming({}), _named_as(architecture))
    if config.tie_word_embeddings:
        names.pop("output.weight", None)
    _all_named(names, state, config)
    size = _head_size(made)
    names, heads, widths = _layers(names, state, config, size)
    hidden = state[names["token_embd.weight"]].shape[1]
    if architecture in _WIDE_AS_HIDDEN and any(many * size != hidden for many, _ in heads):
        if architecture not in _LIKE_LLAMA:
            raise IrpruneError(
                f"in llama.cpp's {architecture} the heads are together as wide as the hidden state",
                f"{heads[0][0]} heads of {size}, a hidden state of {hidden}",
                "cut the feed-forward parts alone (--ratio-of), or write a folder: --format hf",
            )
        architecture = "llama"
    original = {name: state[held] for name, held in names.items()}
    model = GgufModel(architecture, config, original, heads, widths, size, notes=notes)
    for layer, width in enumerate(widths):
        if width == 0:  # the layer's own part was left out
            widths[layer] = _empty_part(model, layer)
    _frequencies(made, model)
    return model


def _named_as(architecture: str) -> str:
    """The architecture whose names and arrangement of tensors this one has."""
    return "llama" if architecture == _BY_LAYER else architecture


def layer_config(model: GgufModel, name: str) -> dict[str, int]:
    """The numbers of heads in the layer of the tensor ``name``."""
    found = _BLOCK.match(name)
    queries, keys = model.heads[int(found[1]) if found else 0]
    return {"num_attention_heads": queries, "num_key_value_heads": keys}


def _all_named(names: Mapping[str, str], state: Mapping[str, Any], config: Any) -> None:
    """Raise IrpruneError where the file has no name for a tensor."""
    named = {*names.values()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    held = {n for n in state if n.endswith((".weight", ".bias"))}
    lacking = sorted(held - named - tied)
    if lacking:
        raise IrpruneError(
            f"a GGUF file has no place for {lacking[0]}",
            config.model_type,
            "write a folder: --format hf",
        )


def _head_size(made: Any) -> int:
    """The size of heads, the same in all layers."""
    config = made.config
    found = {
        int(m.head_dim) for m in made.modules() if isinstance(vars(m).get("head_dim"), int)
    } or {config.hidden_size // config.num_attention_heads}
    scales = {
        float(m.scaling) for m in made.modules() if isinstance(vars(m).get("scaling"), (int, float))
    }
    size = found.pop()
    if found or any(abs(scale * size**0.5 - 1) > 1e-6 for scale in scales):
        raise IrpruneError(
            "the heads of this model have sizes or scales that no GGUF file says",
            config.model_type,
            "write a folder: --format hf",
        )
    return size


def _layers(
    names: dict[str, str], state: Mapping[str, torch.Tensor], config: Any, size: int
) -> tuple[dict[str, str], list[tuple[int, int]], list[int]]:
    """Names with the blocks counted anew, without those of which nothing is left; heads and widths
    of each."""
    shapes = {name: tuple(state[held].shape) for name, held in names.items()}
    hidden = shapes["token_embd.weight"][1]
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        found = _BLOCK.match(name)
        if found:
            blocks.setdefault(int(found[1]), {})[name[found.end() :]] = shape
    heads: list[tuple[int, int]] = []
    widths: list[int] = []
    numbers: dict[int, int] = {}
    for number, held in sorted(blocks.items()):
        attends, feeds = "attn_output.weight" in held, "ffn_down.weight" in held
        if not attends and not feeds:
            continue
        numbers[number] = len(numbers)
        if "attn_q.weight" in held:
            heads.append((held["attn_q.weight"][0] // size, held["attn_k.weight"][0] // size))
        elif attends:  # one product for queries, keys and values
            heads.append((config.num_attention_heads, config.num_attention_heads))
        else:
            heads.append((0, 0))
        widths.append(_width(held["ffn_down.weight"], hidden) if feeds else 0)
    fresh = {}
    for name, held_name in names.items():
        found = _BLOCK.match(name)
        if not found:
            fresh[name] = held_name
        elif int(found[1]) in numbers:
            rest = name[found.end() :]
            there = blocks[int(found[1])]
            if "attn_output.weight" in there or not rest.startswith("attn_"):
                fresh[f"blk.{numbers[int(found[1])]}.{rest}"] = held_name
    return fresh, heads, widths


def _width(shape: tuple[int, ...], hidden: int) -> int:
    """The width of the part whose last matrix has this shape, whichever way round it lies."""
    return shape[0] if shape[1] == hidden and shape[0] != hidden else shape[1]


def _empty_part(model: GgufModel, layer: int, width: int = 32) -> int:
    """Give the layer a feed-forward part of zeros: llama.cpp skips the attention of a layer that
    has none."""
    kind = model.original["token_embd.weight"].dtype
    for name, shape in (
        ("ffn_gate", (width, model.hidden)),
        ("ffn_up", (width, model.hidden)),
        ("ffn_down", (model.hidden, width)),
    ):
        model.added[f"blk.{layer}.{name}.weight"] = torch.zeros(shape, dtype=kind)
    norm = f"blk.{layer}.ffn_norm.weight"
    if norm not in model.original:
        model.added[norm] = torch.ones(model.hidden, dtype=kind)
    return width


def _frequencies(made: Any, model: GgufModel) -> None:
    """By what llama.cpp divides the frequencies of the rotary embedding, where they are not the
    powers of its base alone. Raises IrpruneError where the architecture reads no divisors."""
    rotary = rotary_of(model.config)
    held = [m for m in made.modules() if "inv_freq" in m._buffers]
    if not rotary or not held:
        return
    found = held[0].inv_freq.detach().double().cpu()
    steps = torch.arange(len(found), dtype=torch.float64)
    factors = float(rotary["rope_theta"]) ** (-2 * steps / model.head_size) / found
    plain = len(found) * 2 == model.head_size and getattr(held[0], "attention_scaling", 1) == 1
    if plain and bool(((factors - 1).abs() < 1e-5).all()):
        return
    if model.architecture not in _FREE_ROTARY or not plain:
        raise IrpruneError(
            f"no GGUF file of {model.architecture} says this rotary embedding",
            str(rotary.get("rope_type", "default")),
            "write a folder: --format hf",
        )
    model.added["rope_freqs.weight"] = factors.float()
