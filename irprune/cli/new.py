"""``irprune new``: a file to begin with, and a test that passes."""

from __future__ import annotations

import re
from pathlib import Path

import click

from irprune.base.atomic_write import write_text
from irprune.cli.one_of import OneOf
from irprune.cli.options import common, say, show_json
from irprune.errors import IrpruneError

__all__ = ["new"]

_PASS = '''"""NAME: ... what it does, in a line.

Before: ... what the graph is like. After: ... what it is like then.
"""

from dataclasses import dataclass

from irprune.errors import IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.group import groups_of
from irprune.passes import PassResult


@dataclass(frozen=True)
class CLASS:
    """Freeze every coupled group with fewer than ``least`` channels."""

    least: int = 16

    def run(self, graph: Graph) -> PassResult:
        if graph.axes is None:
            raise IrpruneError("nothing is analysed", "NAME", "run infer-axes first")
        small = [g for g in groups_of(graph) if not g.frozen and g.size < self.least]
        for group in small:
            graph.axes.freeze(group.axis, f"fewer than {self.least} channels")
        return PassResult(bool(small))
'''

_PASS_TEST = '''"""The pass NAME on a small net."""

import torch
from torch import nn
from FILE import CLASS

import irprune
from irprune.api import analyse


def test_it_changes_what_it_should_and_says_so():
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
    graph = analyse(irprune.capture(net, (torch.randn(2, 8),)))
    assert CLASS().run(graph).changed and not CLASS().run(graph).changed
    frozen = {g.name: g.frozen for g in irprune.groups(graph)}
    assert "fewer than 16" in frozen["0.weight:0"] and not frozen["2.weight:0"]
'''

_CRITERION = '''"""NAME: ... what makes a channel important, in a line, with its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irprune.criteria import Scores, criterion
from irprune.criteria.places import place_of, places, reduce
from irprune.criteria.profile import float_array
from irprune.criteria.quantised import numbers
from irprune.ir.axis import Axis
from irprune.ir.graph import Graph
from irprune.ir.group import Group


@criterion("NAME")
@dataclass(frozen=True)
class CLASS:
    """The sum of the absolute values of a channel's weights to the power ``p``."""

    p: float = 1.0

    def scores(
        self, graph: Graph, groups: Sequence[Group], blocks: Mapping[Axis, Axis]
    ) -> dict[Axis, Scores]:
        out = {}
        for leaf, members in places(graph, groups, integers=True).items():
            found = []
            for member in members:
                place = place_of(member, blocks.get(leaf))
                array = np.abs(float_array(numbers(place.weight), place.weight.name)) ** self.p
                own = tuple(range(len(place.dims)))
                rest = tuple(range(len(place.dims), array.ndim))
                found.append(place.gather(np.moveaxis(array, place.dims, own).sum(axis=rest)))
            out[leaf] = reduce(found, "mean")
        return out
'''

_CRITERION_TEST = '''"""The criterion NAME on a small net."""

import FILE  # noqa: F401 - registers it
import torch
from torch import nn

import irprune


def test_it_keeps_the_channels_that_it_finds_important():
    net = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        net[0].weight[[1, 4, 5]] *= 100
    pruned = irprune.prune(net, (torch.randn(2, 8),), ratio=0.5, importance="NAME")
    assert pruned.kept["0.weight"][0] == [1, 4, 5] and pruned.report.proof.passed
'''

_OPERATOR = '''"""The operator NAME: ... what it computes, in a line.

A letter that occurs twice in the signature is one axis: what is cut on one side is cut on the other.
"""

import torch

from irprune.ops.registry import Arg, Sample, op


@torch.library.custom_op("mine::SNAKE", mutates_args=())
def SNAKE(x: torch.Tensor) -> torch.Tensor:
    """x times its sigmoid, element by element."""
    return x * torch.sigmoid(x)


@SNAKE.register_fake
def _(x):
    return torch.empty_like(x)


op(
    "mine_SNAKE",
    "n c *s -> n c *s",
    aten=("mine.SNAKE.default",),
    doc="x times its sigmoid",
    samples=(Sample((Arg((2, 6, 5)),), free=3),),
)
'''

_OPERATOR_TEST = '''"""The operator NAME: a model with it is pruned through it, and proven."""

import FILE
import torch
from torch import nn

import irprune


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.down(FILE.SNAKE(self.up(x)))


def test_channels_go_through_it():
    pruned = irprune.prune(Net().eval(), (torch.randn(2, 8),), ratio=0.5)
    assert pruned.module.up.out_features == 8 and pruned.report.proof.passed
'''

_KINDS = {
    "pass": (_PASS, _PASS_TEST),
    "criterion": (_CRITERION, _CRITERION_TEST),
    "operator": (_OPERATOR, _OPERATOR_TEST),
}


@click.command()
@click.argument("kind", type=OneOf([*_KINDS]))
@click.argument("name")
@common
def new(kind: str, name: str, json_: bool) -> None:
    """Write a pass, a criterion or an operator called NAME to begin with, and its test.

    The file is NAME.py here, the test test_NAME.py; `irprune prune --load NAME.py` takes it in."""
    kebab = name.replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", kebab):
        raise IrpruneError(f"{name!r} is no name", "", "lower case with dashes, as in my-pass")
    snake = kebab.replace("-", "_")
    words = {
        "CLASS": "".join(part.capitalize() for part in kebab.split("-")),
        "SNAKE": snake,
        "NAME": kebab,
        "FILE": snake,
    }
    made = {}
    for text, file in zip(_KINDS[kind], (f"{snake}.py", f"test_{snake}.py"), strict=True):
        if Path(file).exists():
            raise IrpruneError("the file exists", file, "choose another name, or remove it")
        made[file] = re.sub("|".join(words), lambda found: words[found[0]], text)
    for file, text in made.items():
        write_text(Path(file), text)
    if json_:
        show_json({"files": list(made)})
    say(f"wrote {' and '.join(made)}")
