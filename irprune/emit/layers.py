"""Which nodes are calls of a standard ``nn`` layer, and how that layer is written."""

from __future__ import annotations

from dataclasses import dataclass

from irprune.ir.graph import Graph, Node, Weight

__all__ = ["Layer", "layer_for"]


@dataclass(frozen=True)
class Layer:
    """A layer ``owner`` made by ``code``; ``state`` maps its state names to weights of the graph."""

    owner: str
    code: str
    names: tuple[tuple[str, str], ...]

    @property
    def state(self) -> dict[str, str]:
        return dict(self.names)

    def whole(self, graph: Graph, name: str) -> bool:
        """Whether the weight keeps its own name here and is a parameter or buffer of the model."""
        return graph.weights[name].kind != "constant"


_STATE = {
    "linear": ("weight", "bias"), "conv": ("weight", "bias"), "conv_transpose": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_var"), "layer_norm": ("weight", "bias"),
    "group_norm": ("weight", "bias"), "rms_norm": ("weight",), "embedding": ("weight",),
}


def layer_for(node: Node, graph: Graph) -> Layer | None:
    """The layer that ``node`` is a call of, or None."""
    names = _STATE.get(node.op)
    kinds = graph.structure.module_types if graph.structure is not None else {}
    if names is None:
        return None
    table = node.op == "embedding"
    held = [node.inputs[0]] if table else node.inputs[1:]
    found: dict[str, Weight] = {}
    owner = None
    for name, value in zip(names, held, strict=False):
        if value is None:
            continue
        if not isinstance(value, Weight) or "." not in value.name or value.aliases:
            return None
        place, own = value.name.rsplit(".", 1)
        if own != name or (owner is not None and place != owner):
            return None
        owner = place
        found[name] = value
    if owner is None or "weight" not in found:
        return None
    code = _code(node, found, kinds.get(owner))
    return None if code is None else Layer(owner, code, tuple((k, v.name) for k, v in found.items()))


def _code(node: Node, found: dict[str, Weight], kind: type | None) -> str | None:
    from torch import nn

    w, a = found["weight"], node.attrs
    bias = "bias" in found
    n = w.rank - 2
    if kind is not None and not kind.__module__.startswith("torch.nn"):
        return None
    if node.op == "linear" and (kind is None or kind in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)):
        return f"nn.Linear({w.shape[1]}, {w.shape[0]}, bias={bias})"
    if node.op == "conv" and (kind is None or kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        groups = a["groups"]
        extra = f", stride={_tuple(a['stride'], n)}, padding={_pad(a['padding'], n)}, dilation={_tuple(a['dilation'], n)}, groups={groups}, bias={bias}"
        return f"nn.Conv{n}d({w.shape[1] * groups}, {w.shape[0]}, {tuple(w.shape[2:])}{extra})"
    if node.op == "conv_transpose" and (kind is None or kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        groups = a["groups"]
        extra = (f", stride={_tuple(a['stride'], n)}, padding={_tuple(a['padding'], n)}, output_padding={_tuple(a['output_padding'], n)}, "
                 f"groups={groups}, bias={bias}, dilation={_tuple(a['dilation'], n)}")
        return f"nn.ConvTranspose{n}d({w.shape[0]}, {w.shape[1] * groups}, {tuple(w.shape[2:])}{extra})"
    if node.op == "batch_norm" and kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and len(found) == 4 and not a["training"]:
        return f"nn.{kind.__name__}({w.shape[0]}, eps={a['eps']}, momentum={a['momentum']})"
    if node.op == "layer_norm" and (kind is None or kind is nn.LayerNorm):
        return f"nn.LayerNorm({list(w.shape)}, eps={a['eps']}, bias={bias})"
    if node.op == "group_norm" and (kind is None or kind is nn.GroupNorm) and bias:
        return f"nn.GroupNorm({a['num_groups']}, {w.shape[0]}, eps={a['eps']})"
    if node.op == "rms_norm" and kind is nn.RMSNorm:
        return f"nn.RMSNorm({list(w.shape)}, eps={a['eps']})"
    if node.op == "embedding" and (kind is None or kind is nn.Embedding):
        pad = a.get("padding_idx", -1)
        return f"nn.Embedding({w.shape[0]}, {w.shape[1]}{'' if pad is None or pad < 0 else f', padding_idx={pad}'})"
    return None


def _tuple(x: object, n: int) -> tuple[object, ...]:
    many = tuple(x) if isinstance(x, (list, tuple)) else (x,)
    return many * n if len(many) == 1 else many


def _pad(x: object, n: int) -> str:
    return repr(x) if isinstance(x, str) else repr(_tuple(x, n))
