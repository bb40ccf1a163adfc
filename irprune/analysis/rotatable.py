"""Widths that an orthogonal basis may turn without changing what the model computes: residual
streams that are read through norms.

Whether an operation lets a rotation pass is tried, not looked up. The graph is run once on random
inputs, and beside every value its image is worked out: what would stand there if all that writes
into the width wrote in a rotated basis, and all that reads it turned back. A value is *turned*
where its image is the rotated value. Sums, views, casts, means over tokens and products with what
does not have the width keep values turned; a mean of squares over the width is the same in any
basis, so that root mean square norms do too; a nonlinearity within the width does not, and what
reads such a value is named.

The scale of a norm is in no basis but the model's own: it goes into the layers that read the norm,
as its shift goes into their biases. A layer norm is a root mean square norm of what has no mean
over the width, and the mean goes out of all that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from irprune.analysis.layers import Layer, layers
from irprune.analysis.rotation_places import (
    STREAM,
    Centring,
    Frame,
    Norm,
    Place,
    Reader,
    Rotatable,
)
from irprune.analysis.sizes import example_symbols
from irprune.errors import IrpruneError
from irprune.ir.axis import Axis, find, leaves
from irprune.ir.dtype import is_real
from irprune.ir.graph import Graph, Node, Value, Weight
from irprune.ir.group import Group, groups_of
from irprune.ops.arrays import as_tensor
from irprune.ops.registry import role_of
from irprune.run.inputs import random_inputs
from irprune.run.interpret import evaluate

__all__ = ["normalised_widths", "rotatable"]

LEAST = 8  # channels that a width must have to be worth another basis
_ALIKE = 1e-6  # relative: above what float64 rounds, below what another basis gives
_LAYER_NORM_EPS = 1e-5


def normalised_widths(graph: Graph) -> list[Group]:
    """The free groups of an analysed ``graph`` that a norm normalises over: the widest stream, that
    which stands in most places, first."""
    found: dict[Axis, None] = {}
    linear = {layer.node for layer in layers(graph)}
    for node in graph.nodes:
        if node in linear:
            continue
        made = {x for v in node.outputs for a in v.axes or () for x in leaves(a)}
        scales = any(role_of(node, i) == "scale" for i in range(len(node.inputs)))
        for v in node.inputs:
            if v is None or isinstance(v, Weight):
                continue
            for a in v.axes or ():
                leaf = find(a)
                if leaf.kind == "leaf" and (scales or leaf not in made):
                    found.setdefault(leaf)
    groups = [
        g
        for g in groups_of(graph)
        if g.axis in found
        and not g.frozen
        and g.size >= LEAST
        and any(_writes(m) for m in g.members)
    ]
    return sorted(groups, key=lambda g: -len(g.members))


def _writes(member: Any) -> bool:
    """Whether a place of a group is the whole dimension of a matrix."""
    return (
        member.weight.rank >= 2 and find((member.weight.axes or ())[member.dim]) is member.slot.leaf
    )


def rotatable(graph: Graph, group: Group) -> Rotatable:
    """What a rotation of the width ``group`` does to the weights of an analysed ``graph``.

    Raises:
        IrpruneError: Where something in the graph lets no rotation pass; it is named.
    """
    try:
        return _Trial(graph, group, centred=False).run()
    except _Centred:
        return _Trial(graph, group, centred=True).run()


class _Centred(Exception):
    """A norm takes the mean away."""


class _Trial:
    """One run of the graph with the images of its values."""

    def __init__(self, graph: Graph, group: Group, centred: bool) -> None:
        self.graph, self.leaf = graph, group.axis
        self.made = Rotatable(group, centred=centred)
        self.layers = {layer.node: layer for layer in layers(graph)}
        self.images: dict[Value, Any] = {}
        self.frames: dict[Value, Frame] = {}  # of turned values
        self.views: dict[Value, Place] = {}  # turned weights, seen otherwise
        self.means: dict[Value, Node] = {}  # over the width, of the stream
        self.why: dict[Value, Node] = {}  # of values that are not turned: what made them so
        draw = torch.Generator().manual_seed(0)
        v = torch.randn(group.size, generator=draw, dtype=torch.float64)
        self.mirror = v / v.norm()  # the rotation is the reflection at its plane
        self.added = torch.randn(group.size, generator=draw, dtype=torch.float64)

    def run(self) -> Rotatable:
        """Raises IrpruneError where a value that is not turned is read by a layer, or comes out."""
        graph = self.graph
        for weight in graph.weights.values():
            self._dim(weight)
        drawn = random_inputs(graph, example_symbols(graph))
        inputs = [as_tensor(drawn[v.name]) for v in graph.inputs]
        evaluate(graph, inputs, dtype=torch.float64, hook=self._hook)
        for v in graph.outputs:
            if v in self.frames or v in self.images or v in self.means:
                raise self._refusal(v, "it comes out of the model")
        if not self.made.readers:
            raise IrpruneError("no layer reads this width", self.made.group.name, _ADVICE)
        self._shift_biases()
        return self.made

    # -- values ------------------------------------------------------------------------------------

    def _dim(self, value: Value) -> int | None:
        """The dimension of ``value`` that is the width, None where there is none."""
        mine = [d for d, a in enumerate(value.axes or ()) if self.leaf in leaves(a)]
        if not mine:
            return None
        if len(mine) == 1 and find((value.axes or ())[mine[0]]) is self.leaf:
            return mine[0]
        if isinstance(value, Weight) and len(mine) == 2:
            axes = value.axes or ()
            if all(find(axes[d]) is self.leaf for d in mine):
                return mine[0]
        where = value.producer.where if value.producer is not None else value.name
        raise IrpruneError(
            f"the width {self.made.group.name} cannot be turned: it is a part of a dimension of "
            f"{value.name!r}",
            where,
            _ADVICE,
        )

    def _turn(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        shape = [1] * x.dim()
        shape[dim] = -1
        v = self.mirror.reshape(shape)
        made: torch.Tensor = x - 2 * (x * v).sum(dim, keepdim=True) * v
        return made

    def _centre(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return x - x.mean(dim, keepdim=True) if self.made.centred else x

    def _refusal(self, value: Value, what: str) -> IrpruneError:
        node = self.why.get(value) or value.producer
        where = node.where if node is not None else value.name
        by = f"by {node.op!r}" if node is not None else "by itself"
        return IrpruneError(
            f"the width {self.made.group.name} cannot be turned: {what}, {by}", where, _ADVICE
        )

    # -- nodes -------------------------------------------------------------------------------------

    def _hook(self, node: Node, operands: list[Any], run: Callable[..., Any]) -> Any:
        if any(v in self.means for v in node.inputs):
            return self._centred(node, operands, run)
        wide = [i for i, v in enumerate(node.inputs) if v is not None and self._dim(v) is not None]
        changed = [i for i, v in enumerate(node.inputs) if v in self.images]
        has = [v for v in node.outputs if self._dim(v) is not None]
        if not wide and not changed and not has:
            return run(*operands)
        layer = self.layers.get(node)
        if layer is not None and (self._dim(layer.weight) is not None):
            return self._layer(layer, operands, run)
        held = [i for i in wide if isinstance(node.inputs[i], Weight)]
        if any(role_of(node, i) == "scale" for i in held):
            return self._norm(node, operands, run, held)
        if held and len(held) < len(wide) + len(changed):
            return self._with_vectors(node, operands, run, held)
        return self._plain(node, operands, run, held)

    def _image(self, node: Node, i: int, operand: Any) -> Any:
        return self.images.get(node.inputs[i], operand)  # type: ignore[arg-type]

    def _layer(self, layer: Layer, operands: list[Any], run: Callable[..., Any]) -> Any:
        """A product with a matrix that has the width on one of its sides, or on both."""
        node, x = layer.node, layer.node.operand(layer.at)
        weight = layer.weight
        if not layer.stored.direct or layer.stored.how is not None or not is_real(weight.dtype):
            raise IrpruneError(
                f"the width {self.made.group.name} cannot be turned: {weight.name!r} holds integers",
                node.where,
                _ADVICE,
            )
        out = self._dim(node.out)
        for dim, a in enumerate(weight.axes or ()):
            if self.leaf not in leaves(a):
                continue
            if dim in layer.inputs:
                frame = self._read(x, weight)
                self.made.readers.append(Reader(node, layer.at, frame, layer))
                self._place(Place("read", weight, node, layer.by, dim, frame, layer))
            elif (out is not None and self._dim(x) is None) or (
                dim not in layer.inputs and out is not None and self._both(layer, dim)
            ):
                self._place(Place("written", weight, node, layer.by, dim))
            else:
                raise IrpruneError(
                    f"the width {self.made.group.name} cannot be turned: {weight.name!r} maps each "
                    "of its channels by itself",
                    node.where,
                    _ADVICE,
                )
        for i, v in enumerate(node.inputs):
            if isinstance(v, Weight) and v is not weight and self._dim(v) is not None:
                self._place(Place("written", v, node, i, self._dim(v) or 0))
        made = run(*operands)
        if out is None:
            return made
        made = self._centre(made, out)
        self._turned(node.out, self._turn(made, out), STREAM)
        return made

    def _both(self, layer: Layer, dim: int) -> bool:
        """Whether a matrix has the width on both sides, and ``dim`` is that of what it makes."""
        return any(self.leaf in leaves((layer.weight.axes or ())[d]) for d in layer.inputs)

    def _read(self, x: Value, weight: Weight) -> Frame:
        """The frame of what a layer reads. Raises IrpruneError where it is not turned."""
        if x not in self.frames:
            raise self._refusal(x, f"what {weight.name!r} reads is in no other basis")
        frame = self.frames[x]
        if self.made.centred and not frame.centred:
            raise IrpruneError(
                f"the width {self.made.group.name} cannot be turned: layer norms read it, and "
                f"{weight.name!r} reads it with its mean",
                x.producer.where if x.producer is not None else x.name,
                _ADVICE,
            )
        return frame

    def _norm(
        self, node: Node, operands: list[Any], run: Callable[..., Any], held: list[int]
    ) -> Any:
        """A norm that is one node, with the scale and perhaps a shift among its operands."""
        scale = next(i for i in held if role_of(node, i) == "scale")
        given = list(operands)
        given[scale] = torch.ones_like(operands[scale])
        shift = None
        for i in held:
            if i == scale:
                continue
            zero, moved = list(given), list(given)
            zero[i] = torch.zeros_like(operands[i])
            moved[i] = self.added.reshape(operands[i].shape)
            a, b = (_first(run(*xs)) for xs in (zero, moved))
            if _near(b, a + self.added):
                shift = i
                given[i] = zero[i]
        images = list(given)
        for i, v in enumerate(node.inputs):
            if v is None or i in (scale, shift) or self._dim(v) is None:
                continue
            if isinstance(v, Weight):
                given[i] = self._centre(operands[i], self._dim(v) or 0)
                images[i] = self._turn(given[i], self._dim(v) or 0)
            elif self.frames.get(v) != STREAM:
                raise self._refusal(v, "a norm reads what is in no other basis")
            else:
                images[i] = self.images[v]
        own = _many(run(*given))
        other = _many(run(*images))
        centred = False
        if not all(
            self._is_turned(v, a, b) for v, a, b in zip(node.outputs, own, other, strict=False)
        ):
            x = given[0]
            eps = float(node.attrs.get("eps") or _LAYER_NORM_EPS)
            if len(node.outputs) > 1 or not self._takes_mean(node, own[0], x, eps):
                raise self._refusal(node.out, "a norm is none of the root mean square")
            if not self.made.centred:
                raise _Centred
            centred = True
            other = [_rms(images[0], self._dim(node.operand(0)) or 0, eps)]
            if not self._is_turned(node.out, own[0], other[0]):
                raise self._refusal(node.out, "a norm is none of the root mean square")
        elif self.made.centred:
            raise self._refusal(node.out, "norms with and without a mean read it")
        by, moved_by = node.inputs[scale], None if shift is None else node.inputs[shift]
        assert isinstance(by, Weight) and (moved_by is None or isinstance(moved_by, Weight))
        frame = Frame(by, moved_by, centred)
        self._place(Place("scale", by, node, scale, 0))
        if shift is not None and moved_by is not None:
            self._place(Place("shift", moved_by, node, shift, 0))
        if centred:
            self.made.norms.append(
                Norm(
                    node, frame.scale, frame.shift, float(node.attrs.get("eps") or _LAYER_NORM_EPS)
                )
            )
        for i in held:
            if i not in (scale, shift):
                weight = node.inputs[i]
                assert isinstance(weight, Weight)
                self._place(Place("written", weight, node, i, self._dim(weight) or 0))
        for number, v in enumerate(node.outputs):
            if self._dim(v) is not None:
                self._turned(v, other[number], frame if number == 0 else STREAM)
        return own if len(own) > 1 else own[0]

    def _mean(self, node: Node, x: Any, run: Callable[..., Any], acts: Sequence[Value]) -> bool:
        """Whether ``node`` takes the mean of the stream over its width."""
        if len(acts) != 1 or self.frames.get(acts[0]) != STREAM or len(node.inputs) != 1:
            return False
        dim = self._dim(acts[0]) or 0
        other = x + self.added.reshape(_along(x, dim))
        found = _first(run(other))
        if not isinstance(found, torch.Tensor) or found.numel() * self.added.numel() != x.numel():
            return False
        return _near(found.flatten(), other.mean(dim).flatten())

    def _centred(self, node: Node, operands: list[Any], run: Callable[..., Any]) -> Any:
        """What reads a mean over the width: it must be the stream less that mean, which is the
        stream itself, since the mean has gone out of it."""
        at = [
            i for i, v in enumerate(node.inputs) if v is not None and self.frames.get(v) == STREAM
        ]
        made = run(*operands)
        plain = len(at) == 1 and len(node.inputs) == 2 and isinstance(made, torch.Tensor)
        if not plain or made.shape != operands[at[0]].shape or not _near(made, operands[at[0]]):
            raise self._refusal(node.out, "a mean over it is not subtracted from it")
        x, mean = node.operand(at[0]), node.operand(1 - at[0])
        self.made.centrings.append(Centring(node, at[0], self.means[mean]))
        self._turned(node.out, self.images[x], Frame(centred=True))
        return made

    def _takes_mean(self, node: Node, y: Any, x: Any, eps: float) -> bool:
        """Whether a norm without its scale is the root mean square norm of ``x`` less its mean."""
        dim = self._dim(node.operand(0)) or 0
        return _near(y, _rms(x - x.mean(dim, keepdim=True), dim, eps))

    def _with_vectors(
        self, node: Node, operands: list[Any], run: Callable[..., Any], held: list[int]
    ) -> Any:
        """What is computed together with stored vectors: added to the stream, or the scale or shift
        of a norm that is written out."""
        acts = [
            v
            for i, v in enumerate(node.inputs)
            if v is not None and i not in held and (self._dim(v) is not None or v in self.images)
        ]
        frame = self.frames.get(acts[0]) if len(acts) == 1 else None
        if frame is not None and len(held) == 1 and self._dim(node.out) is not None:
            (i,) = held
            weight = node.inputs[i]
            assert isinstance(weight, Weight)
            vector = sum(n != 1 for n in operands[i].shape) == 1
            x = operands[next(k for k, v in enumerate(node.inputs) if v is acts[0])]
            scales = frame.scale is None
            given = list(operands)
            given[i] = torch.ones_like(operands[i]) if scales else torch.zeros_like(operands[i])
            alone = run(*given)
            if vector and (scales or frame.shift is None) and _near(alone, x):
                given[i] = self.added.reshape(operands[i].shape)
                along = self.added.reshape(_along(x, self._dim(node.out) or 0))
                if _near(run(*given), x * along if scales else x + along):
                    kind: Literal["scale", "shift"] = "scale" if scales else "shift"
                    self._place(Place(kind, weight, node, i, self._dim(weight) or 0))
                    made = replace(frame, scale=weight) if scales else replace(frame, shift=weight)
                    self._turned(node.out, self.images[acts[0]], made)
                    return x
        return self._plain(node, operands, run, held)

    def _plain(
        self, node: Node, operands: list[Any], run: Callable[..., Any], held: list[int]
    ) -> Any:
        """Any other operation: its results are turned, the same in any basis, or neither."""
        given = list(operands)
        images = [self._image(node, i, x) for i, x in enumerate(operands)]
        for i in held:
            dim = self._dim(node.inputs[i]) or 0  # type: ignore[arg-type]
            given[i] = self._centre(operands[i], dim)
            images[i] = self._turn(given[i], dim)
        own, other = _many(run(*given)), _many(run(*images))
        acts = [
            v
            for i, v in enumerate(node.inputs)
            if v is not None and i not in held and (self._dim(v) is not None or v in self.images)
        ]
        if not held and self._mean(node, given[0], run, acts):
            if not self.made.centred:
                raise _Centred
            self.means[node.out] = node
            return own[0]
        frames = list(dict.fromkeys(self.frames[v] for v in acts if v in self.frames))
        if held:
            frames = list(dict.fromkeys([*frames, STREAM]))
        broken = next((self.why[v] for v in acts if v in self.why), None)
        placed = False
        for v, a, b in zip(node.outputs, own, other, strict=False):
            if not isinstance(a, torch.Tensor):
                continue
            if self._dim(v) is not None and len(frames) == 1 and self._is_turned(v, a, b):
                frame = frames[0]
                if frame.shift is None or self._shifts(node, given, run, acts, a, v):
                    self._turned(v, b, frame)
                    placed = True
                    continue
            if self._dim(v) is None and a.shape == b.shape and _near(b, a):
                if any(x in self.views for x in acts):
                    self._through_views(node, given, run, acts, a)
                    continue
                if self.made.centred and acts and any(f == STREAM for f in frames):
                    raise self._refusal(v, "norms with and without a mean read it")
                if any(not f.plain for f in frames):
                    raise self._refusal(v, "what a norm has scaled is read by what is no layer")
                placed = placed or not held
                continue
            self.images[v] = b
            self.why[v] = broken or node
        if held and not placed:
            raise IrpruneError(
                f"the width {self.made.group.name} cannot be turned: {node.inputs[held[0]].name!r} "  # type: ignore[union-attr]
                f"stands in it, by {node.op!r}",
                node.where,
                _ADVICE,
            )
        for i in held:
            weight = node.inputs[i]
            assert isinstance(weight, Weight)
            place = Place("written", weight, node, i, self._dim(weight) or 0)
            self._place(place)
            if len(held) == 1 and not acts:
                self.views[node.out] = place
        if not held and len(acts) == 1 and acts[0] in self.views and node.out in self.frames:
            self.views[node.out] = self.views[acts[0]]
        return own if len(node.outputs) > 1 else own[0]

    def _through_views(
        self, node: Node, given: list[Any], run: Callable[..., Any], acts: Sequence[Value], y: Any
    ) -> None:
        """A product with a matrix that comes through a view: what sums over the width, as a layer
        does. Raises IrpruneError for anything else."""
        views = [v for v in acts if v in self.views]
        others = [v for v in acts if v not in self.views]
        if len(views) != 1 or len(others) != 1:
            raise self._refusal(node.out, "several matrices meet in it")
        (view,), (x,) = views, others
        place = self.views[view]
        frame = self._read(x, place.weight)

        def scaled(which: Value) -> Any:
            return run(
                *(
                    t * self.added.reshape(_along(t, self._dim(which) or 0)) if v is which else t
                    for v, t in zip(node.inputs, given, strict=True)
                )
            )

        if frame.shift is not None or not _near(scaled(view), scaled(x)):
            raise self._refusal(node.out, "what a norm has shifted is read by what is no layer")
        at = next(i for i, v in enumerate(node.inputs) if v is x)
        self.made.places.remove(place)
        self.made.places.append(replace(place, kind="read", frame=frame))
        self.made.readers.append(Reader(node, at, frame))
        self.views.pop(view)

    def _shifts(
        self,
        node: Node,
        given: list[Any],
        run: Callable[..., Any],
        acts: Sequence[Value],
        result: Any,
        out: Value,
    ) -> bool:
        """Whether a shift of the one operand is the same shift of the result: views do, sums do
        not."""
        if len(acts) != 1 or len(node.outputs) != 1:
            return False
        moved = [
            x + self.added.reshape(_along(x, self._dim(acts[0]) or 0))
            if v is acts[0] and isinstance(x, torch.Tensor)
            else x
            for v, x in zip(node.inputs, given, strict=True)
        ]
        return _near(run(*moved), result + self.added.reshape(_along(result, self._dim(out) or 0)))

    def _is_turned(self, value: Value, own: Any, other: Any) -> bool:
        dim = self._dim(value)
        if dim is None or own.shape != other.shape:
            return dim is None
        return _near(other, self._turn(own, dim))

    def _turned(self, value: Value, image: Any, frame: Frame) -> None:
        self.images[value], self.frames[value] = image, frame

    def _place(self, place: Place) -> None:
        if not is_real(place.weight.dtype):
            raise IrpruneError(
                f"the width {self.made.group.name} cannot be turned: {place.weight.name!r} holds "
                "integers",
                place.node.where,
                _ADVICE,
            )
        self.made.places.append(place)

    def _shift_biases(self) -> None:
        """Let the biases of readers take the shifts of what they read."""
        for reader in self.made.readers:
            layer, frame = reader.layer, reader.frame
            if frame.shift is None or layer is None:
                continue
            if layer.unfolds:
                raise IrpruneError(
                    f"the width {self.made.group.name} cannot be turned: a norm shifts what the "
                    f"convolution {layer.weight.name!r} reads",
                    layer.node.where,
                    _ADVICE,
                )
            if layer.bias is None:
                self.made.unbiased.append((layer, frame))
            else:
                bias = layer.bias
                self.made.places.append(
                    Place("bias", bias.weight, bias.node, bias.at, 0, frame, layer)
                )


_ADVICE = "prune it without rotate"


def _along(x: torch.Tensor, dim: int) -> list[int]:
    return [-1 if d == dim else 1 for d in range(x.dim())]


def _rms(x: torch.Tensor, dim: int, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + eps)


def _many(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _first(made: Any) -> Any:
    return _many(made)[0]


def _near(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    most = max(float(b.abs().amax()) if b.numel() else 0.0, 1e-300)
    return bool((a - b).abs().amax() <= _ALIKE * most) if a.numel() else True
