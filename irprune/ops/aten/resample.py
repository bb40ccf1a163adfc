"""Resampling: channels pass, positions are fixed; sampling grids lend their own positions to the
result."""

from __future__ import annotations

from functools import partial

from irprune.ir.axis import Axes
from irprune.ir.graph import Node
from irprune.ops.aten.pool import image, spatial
from irprune.ops.registry import Arg, Cut, Sample
from irprune.ops.registry import op as declare

op = partial(declare, family="resample")

for _d, _ways in (
    (1, ("nearest", "_nearest_exact", "linear")),
    (2, ("nearest", "_nearest_exact", "bilinear", "bicubic")),
    (3, ("nearest", "_nearest_exact", "trilinear")),
):
    for _way in _ways:
        _name = f"_upsample{_way}{_d}d" if _way.startswith("_") else f"upsample_{_way}{_d}d"
        _align = {} if "nearest" in _way else {"align_corners": False}
        op(
            _name.lstrip("_"),
            spatial(_d),
            aten=(f"{_name}.vec", f"{_name}.default"),
            samples=(
                Sample(
                    (image(_d, 3),),
                    {"output_size": None, "scale_factors": [2.0] * _d, **_align},
                    free=2,
                ),
                Sample(
                    (image(_d, 3),),
                    {"output_size": [5] * _d, **_align},
                    free=2,
                    target=f"aten.{_name}.default",
                ),
            ),
        )
for _way in ("bilinear", "bicubic"):
    _name = f"_upsample_{_way}2d_aa"
    op(
        _name.lstrip("_"),
        spatial(2),
        aten=(f"{_name}.vec", f"{_name}.default"),
        samples=(
            Sample(
                (image(2),),
                {"output_size": [3, 4], "scale_factors": None, "align_corners": False},
                free=2,
            ),
            Sample(
                (image(2),),
                {"output_size": [3, 4], "align_corners": False},
                free=2,
                target=f"aten.{_name}.default",
            ),
        ),
    )

_WAY = {"interpolation_mode": 0, "padding_mode": 0, "align_corners": False}
op(
    "grid_sampler",
    "n c *s , n *t _ -> n c *t",
    fixed="s",
    aten=("grid_sampler.default", "grid_sampler_2d.default", "grid_sampler_3d.default"),
    samples=(
        Sample((image(2), Arg((2, 4, 5, 2))), _WAY, free=4),
        Sample(
            (image(3), Arg((2, 4, 5, 3, 3))), _WAY, free=5, target="aten.grid_sampler_3d.default"
        ),
    ),
)


def _affine_grid(axes: Axes, node: Node) -> None:
    theta = axes.of(node.operand(0))
    for a in theta[1:]:
        axes.freeze(a, "an affine map")
    node.out.axes = (theta[0], *(axes.frozen(s, "positions of a grid") for s in node.out.shape[1:]))


def _affine_resize(node: Node, cut: Cut) -> None:
    node.attrs["size"] = [cut.size((node.out.axes or ())[0]), *node.attrs["size"][1:]]


op(
    "affine_grid_generator",
    _affine_grid,
    resize=_affine_resize,
    aten=("affine_grid_generator.default",),
    samples=(Sample((Arg((3, 2, 3)),), {"size": [3, 4, 5, 6], "align_corners": False}, free=1),),
)
