"""Operators of onnxruntime's own domain that are kept as they are: their axes freeze, what stands
around them is pruned.

Most have no kernel for the CPU, on which a cut is proven; what is said here is the shape of their
results, which ONNX's inference does not know, so that the analysis goes on behind them. Which
operators of the domain are ruled and which freeze is listed in docs/reference/onnxruntime.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from irprune.ir.graph import TensorType
from irprune.ir.size import Size
from irprune.ops.onnx import opaque  # noqa: F401 - declares the entry
from irprune.ops.onnx.importer import OnnxNode, Step, UnsupportedUse, refused, spell
from irprune.ops.onnx.types import like

__all__ = ["FREEZES"]

Types = Callable[[OnnxNode], list[TensorType]]


def _as_first(node: OnnxNode) -> list[TensorType]:
    """Every result is as the first input."""
    return [like(node)] * len(node.outputs)


def _halved(node: OnnxNode) -> list[TensorType]:
    """Half as wide: one half is the gate of the other."""
    *lead, width = node.shape()
    return [like(node, shape=(*lead, width // 2))]


def _projected(weight: int) -> Types:
    def types(node: OnnxNode) -> list[TensorType]:
        return [like(node, shape=(*node.shape()[:-1], node.shape(weight)[-1]))]

    return types


def _third(node: OnnxNode) -> list[TensorType]:
    """As wide as the values, of a matrix that makes queries, keys and values."""
    sizes = node.attrs.get("qkv_hidden_sizes")
    width = sizes[2] if sizes else node.shape(1)[-1] // 3
    return [like(node, shape=(*node.shape()[:-1], width))]


def _attended(node: OnnxNode) -> list[TensorType]:
    """As the queries where keys and values lie apart; caches are as they came in."""
    if not (node.has(1) and node.has(2)) or node.rank() != 3:
        raise UnsupportedUse(f"a {node.target} with packed operands")
    value = node.shape(2)
    width: Size = value[-1] if len(value) == 3 else value[1] * value[3]
    groups = node.attrs.get("kv_num_heads", 0)
    if groups:
        width = node.shape()[-1]
    return [like(node, shape=(*node.shape()[:-1], width))]


_CUDA = "onnxruntime has no kernel for the CPU, on which the cut could be proven"


def _unknown(node: OnnxNode) -> list[TensorType]:
    raise UnsupportedUse(f"a {node.target} whose results have shapes that are not known")


FREEZES: dict[str, tuple[str, Types]] = {
    "BiasAdd": (_CUDA, _as_first),
    "BiasDropout": (_CUDA, _as_first),
    "BiasSoftmax": (_CUDA, _as_first),
    "BiasSplitGelu": (_CUDA, _halved),
    "BranchwiseRMSNorm": ("branches that are normed apart", _as_first),
    "DecoderMaskedMultiHeadAttention": ("a cache that is written in place", _attended),
    "DecoderMaskedSelfAttention": (_CUDA, _third),
    "DynamicSparseAttention": (_CUDA, _unknown),
    "GatedAdd": ("a gate that onnxruntime fused", _as_first),
    "GatedRMSNorm": ("a gate that onnxruntime fused", _as_first),
    "GatedRelativePositionBias": (_CUDA, _unknown),
    "GemmFastGelu": (_CUDA, _projected(1)),
    "GroupNorm": (_CUDA, _as_first),
    "LongformerAttention": (_CUDA, _as_first),
    "NhwcConv": (_CUDA, _unknown),
    "NhwcFusedConv": (_CUDA, _unknown),
    "PackedAttention": (_CUDA, _third),
    "PackedMultiHeadAttention": (_CUDA, _as_first),
    "PagedAttention": (_CUDA, _as_first),
    "QMoE": ("experts of packed integers", _as_first),
    "RelativePositionBias": (_CUDA, _unknown),
    "ScaledSiLU": ("an activation that onnxruntime fused", _as_first),
    "SkipGroupNorm": (_CUDA, _as_first),
    "SparsePagedAttention": (_CUDA, _unknown),
    "SparseAttention": ("blocks of positions that are left out", _attended),
}
"""Why each freezes, and the types of its results."""


def _reader(name: str) -> Callable[[OnnxNode], Step]:
    why, types = FREEZES[name]
    said = f"com.microsoft::{name} is not cut: {why}"

    def read(node: OnnxNode) -> Step:
        step = refused(node.target, len(node.types), said)
        try:
            made = types(node)
        except UnsupportedUse:
            return step
        known = made[: len(node.outputs)]
        return replace(step, types=known) if len(known) == len(node.outputs) else step

    return read


for _name in FREEZES:
    spell("opaque", f"com.microsoft::{_name}", read=_reader(_name))
