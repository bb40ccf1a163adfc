"""Sizes that forward leaves open: at other sizes the emitted module computes what the original
does, or says in one line which size it was captured at and which line of forward fixed it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import irprune
from irprune.emit.torch.module import emit_module
from irprune.errors import IrpruneError
from irprune.ir.guards import Guard
from irprune.ir.open_sizes import OpenSizes
from irprune.run.other_sizes import other_sizes

WIDTH = 12


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


class Net(nn.Module):
    """A linear layer, ``body`` on [batch, length, 12], another linear layer."""

    def __init__(self, body: Callable[[Net, Tensor, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
        self.body = body
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self, x, self.first(x).relu()))  # type: ignore[no-any-return]


def _windows(net: Net, x: Tensor, y: Tensor) -> Tensor:
    b, n, c = y.shape
    pad = (4 - n % 4) % 4
    z = F.pad(y, (0, 0, 0, pad)).view(b, (n + pad) // 4, 4, c)
    z = (z @ z.transpose(-1, -2)).softmax(-1) @ z
    return z.reshape(b, n + pad, c)[:, :n]


def _default_states(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return net.rnn(y)[0]  # type: ignore[no-any-return, operator]


OPEN: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "plain": lambda s, x, y: y,
    "view(B, C, -1)": lambda s, x, y: (
        y.transpose(1, 2).reshape(x.shape[0], WIDTH, -1).transpose(1, 2)
    ),
    "view(*shape[:2], -1)": lambda s, x, y: y.view(*x.shape[:2], 3, 4).view(*x.shape[:2], -1),
    "flatten by size(0)": lambda s, x, y: y.view(x.size(0), -1).view(x.size(0), -1, WIDTH),
    "permute, reshape": lambda s, x, y: (
        y.permute(1, 0, 2).reshape(x.shape[1], -1, WIDTH).transpose(0, 1)
    ),
    "divide by length": lambda s, x, y: y.sum(1) / x.shape[1],
    "scale by shape ** -0.5": lambda s, x, y: y * x.shape[1] ** -0.5,
    "divide by numel": lambda s, x, y: y / x.numel(),
    "arange(n)": lambda s, x, y: y + torch.arange(x.shape[1])[None, :, None],
    "first half": lambda s, x, y: y[:, : x.shape[1] // 2],
    "table up to n": lambda s, x, y: y + torch.arange(512.0)[: x.shape[1], None],
    "windows with padding": _windows,
    "default states": _default_states,
    "heads": lambda s, x, y: (
        F.scaled_dot_product_attention(
            *(y.view(x.shape[0], x.shape[1], 3, 4).transpose(1, 2) for _ in range(3))
        )
        .transpose(1, 2)
        .reshape(x.shape[0], x.shape[1], -1)
    ),
    "causal mask": lambda s, x, y: (
        (y @ y.mT).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1) > 0, -1e9).softmax(-1) @ y
    ),
    "min": lambda s, x, y: y[:, : min(x.shape[1], 7)] if x.shape[1] else y,
    "bias_kv": lambda s, x, y: s.mha(y, y, y)[0],  # type: ignore[operator]
    "transformer": lambda s, x, y: s.encoder(y),  # type: ignore[operator]
}
FIXED: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "last": lambda s, x, y: y[:, x.shape[1] - 1],
    "loop over length": lambda s, x, y: sum((y[:, i] for i in range(x.shape[1])), y[:, 0]),
    "loop over batch": lambda s, x, y: torch.stack([y[i] * i for i in range(x.shape[0])]),
    "branch on length": lambda s, x, y: y * 2 if x.shape[1] > 6 else y,
    "branch on batch": lambda s, x, y: y - y.mean(0) if x.shape[0] > 2 else y,
    "int()": lambda s, x, y: y * int(x.shape[1]) * int(x.shape[0]),
    "unbind": lambda s, x, y: torch.stack(y.unbind(1)).sum(0) + torch.stack(y.unbind(0)).sum(0)[0],
}


def net(body: Callable[[Net, Tensor, Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {}
    if body is _default_states:
        parts["rnn"] = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    if body is OPEN["bias_kv"]:
        parts["mha"] = nn.MultiheadAttention(WIDTH, 3, add_bias_kv=True, batch_first=True)
    if body is OPEN["transformer"]:
        layer = nn.TransformerEncoderLayer(WIDTH, 3, 24, batch_first=True)
        parts["encoder"] = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(body, **parts).eval()


@pytest.mark.parametrize("length", [5, 1])
@pytest.mark.parametrize("name", OPEN)
def test_open_sizes_compute_what_the_original_does(name: str, length: int) -> None:
    model, x = net(OPEN[name]), torch.randn(2, length, 6)
    module = emit_module(irprune.capture(model, (x,)))
    for shape in ((2, length, 6), (4, 9, 6), (3, 12, 6)):
        z = torch.randn(shape)
        with torch.no_grad():
            try:
                found = module(z)
            except ValueError as refused:
                assert length == 1 or name == "min", refused  # sizes of 1 are special to some
                assert re.search(r"captured with", str(refused)), refused
                continue
            assert difference(found, model(z)) < 1e-5


@pytest.mark.parametrize("name", FIXED)
def test_what_forward_fixes_is_refused_with_its_line(name: str) -> None:
    model, x = net(FIXED[name]), torch.randn(2, 5, 6)
    module = emit_module(irprune.capture(model, (x,)))
    assert difference(module(x), model(x)) < 1e-5
    with pytest.raises(
        ValueError, match=r"^x: dimension [01] is \d+, the model was captured with [25] "
    ):
        module(torch.randn(4, 9, 6))
    with pytest.raises(ValueError, match=r"\(test_open_sizes\.py:\d+"):
        module(torch.randn(4, 9, 6))


def test_an_image_of_another_size() -> None:
    """The grid and the strides of a detector follow the image."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.MaxPool2d(2, 2)
            )
            self.out = nn.Conv2d(8, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.out(self.conv(x))
            h, w = y.shape[-2:]
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            grid = torch.stack((columns, rows), 0)[None] + 0.5
            boxes = (y[:, :2].sigmoid() + grid) * (x.shape[2] / h)
            y = torch.cat((boxes, y[:, 2:]), 1).flatten(2)
            return F.interpolate(y, scale_factor=2.0)

    model, x = Detector().eval(), torch.randn(1, 3, 64, 48)
    graph = irprune.capture(model, (x,))
    assert [str(s) for s in graph.inputs[0].shape] == ["x_0", "3", "x_2", "x_3"]
    module = emit_module(graph)
    for shape in ((1, 3, 64, 48), (2, 3, 80, 72), (5, 3, 65, 51)):
        z = torch.randn(shape)
        assert difference(module(z), model(z)) < 1e-5


def test_a_decoder_with_a_cache() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv = nn.Embedding(20, 12), nn.Linear(12, 36)
            self.out = nn.Linear(12, 20)

        def forward(self, ids: Tensor, past: tuple[Tensor, Tensor]) -> Any:
            b, n = ids.shape
            y = self.embed(ids) + torch.arange(past[0].shape[2], past[0].shape[2] + n)[:, None]
            q, k, v = (t.view(b, n, 3, 4).transpose(1, 2) for t in self.qkv(y).split(12, dim=-1))
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 12)
            return self.out(y), (k, v)

    def call(b: int, n: int, cached: int) -> tuple[Any, ...]:
        return torch.randint(20, (b, n)), tuple(torch.randn(b, 3, cached, 4) for _ in range(2))

    model = Decoder().eval()
    module = emit_module(irprune.capture(model, call(2, 3, 6)))
    for sizes in ((2, 3, 6), (4, 5, 9), (3, 2, 11)):
        given = call(*sizes)
        mine, theirs = module(*given), model(*given)
        assert difference(mine[0], theirs[0]) < 1e-5
        assert difference(mine[1][0], theirs[1][0]) == 0


def test_what_the_user_says_is_open() -> None:
    model, x = net(OPEN["plain"]), torch.randn(2, 5, 6)

    def shown(dynamic: str) -> list[str]:
        graph = irprune.capture(model, (x,), dynamic=dynamic)
        return [str(s) for s in graph.inputs[0].shape]

    assert shown("none") == ["2", "5", "6"]
    assert shown("batch") == ["x_0", "5", "6"]
    assert shown("all") == ["x_0", "x_1", "6"]
    assert shown("x:1") == ["2", "x_1", "6"] and shown("x:-2,0") == ["x_0", "x_1", "6"]
    for wrong in ("x", "x:a", "x:7", "y:0", ""):
        with pytest.raises(IrpruneError):
            shown(wrong)
    module = emit_module(irprune.capture(model, (x,), dynamic="none"))
    with pytest.raises(ValueError, match="x: dimension 0 is 3, the model was captured with 2"):
        module(torch.randn(3, 5, 6))


def test_files_keep_sizes_open(tmp_path: Path) -> None:
    model = net(OPEN["heads"])
    pruned = irprune.prune(model, (torch.randn(1, 5, 6),), ratio=0.5)
    pruned.save(tmp_path / "out")
    z = torch.randn(3, 9, 6)
    program = torch.export.load(str(tmp_path / "out" / "model.pt2")).module()
    assert difference(program(z), pruned.module(z)) < 1e-5
    file = onnx.load(tmp_path / "out" / "model.onnx")
    dims = file.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["x_0", "x_1", 6]


def test_a_proof_is_made_at_two_sizes() -> None:
    pruned = irprune.prune(net(OPEN["windows with padding"]), (torch.randn(2, 8, 6),), ratio=0.5)
    proof = pruned.report.proof
    assert proof is not None and proof.passed
    assert proof.other_sizes == "x 3x9x6"


def test_a_graph_that_is_right_at_one_size_alone_fails_its_proof() -> None:
    """A planted fault: a length that was written as a number."""
    from irprune.driver.pipelines import analyse, cut_graph
    from irprune.passes.choose import Choose
    from irprune.passes.score import Score
    from irprune.validate.proof import Remake, prove

    graph = analyse(irprune.capture(net(OPEN["divide by length"]), (torch.randn(2, 5, 6),)))
    for node in graph.nodes:
        node.attrs.update({k: 5 for k, v in node.attrs.items() if str(v) == "x_1"})
    Score().run(graph)
    Choose(ratio=0.5).run(graph)
    cut = cut_graph(graph)
    proof = prove(graph, emit_module(cut), Remake(cut_graph, emit_module))
    assert not proof.captured


def test_sizes_are_compared_at_points_that_tell_them_apart() -> None:
    sizes = OpenSizes()
    s, t = sizes.of_input("s", 0, 0, 14), sizes.of_input("t", 0, 1, 3)
    of = sizes.of
    assert of("-", of("+", s, t), t) == s and of("//", of("*", s, 6), 6) == s
    assert of("-", s, s) == 0 and of("//", s, s) == 1
    for other in (of("min", s, 512), of("*", of("//", s, 7), 7), of("max", s, 5), of("/", s, 1)):
        assert other != s
    assert of("%", of("-", 7, of("%", s, 7)), 7) != 0  # the padding to whole windows


def test_equations_fix_sizes_and_relations_stay() -> None:
    sizes = OpenSizes(lambda: "net.py:3")
    a, b, c = (
        sizes.of_input(n, i, 0, v) for i, (n, v) in enumerate((("a", 4), ("b", 4), ("c", 9)))
    )
    sizes.meet(a, b)
    assert sizes.decided(sizes.of("*", c, 2), "==", 18) and sizes.decided(a, ">", 2)
    settled = sizes.settle()
    assert settled.replaced == {"b": a, "c": 9}
    assert [(f.input, f.size, f.where) for f in settled.fixed] == [(2, 9, "net.py:3")]
    assert [str(g) for g in settled.guards] == ["a > 2", "a == b"]
    assert Guard(a, ">", 2).holds({"a": 3}) and not Guard(a, ">", 2).holds({"a": 2})


def test_other_sizes_meet_the_guards() -> None:
    graph = irprune.capture(net(FIXED["branch on length"]), (torch.randn(2, 5, 6),))
    tried = list(other_sizes(graph))
    assert tried and all(sizes["x_1"] <= 6 for sizes in tried)
    assert not list(
        other_sizes(irprune.capture(net(OPEN["plain"]), (torch.randn(2, 5, 6),), dynamic="none"))
    )


class Positions(nn.Module):
    """Tokens and a table of six positions, which is cut to the length and stretched to the
    batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.table = nn.Embedding(20, WIDTH), nn.Embedding(6, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("places", torch.arange(6).expand(1, -1))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places[:, : x.shape[1]].expand(x.shape[0], x.shape[1])
        z = self.head(self.tokens(x) + self.table(places))
        return z, F.cross_entropy(z.flatten(0, 1), labels.flatten())


def test_lengths_up_to_that_of_a_short_table_and_a_loss_that_torch_composes() -> None:
    """What torch composes of operators that irprune knows is captured as those, with open sizes;
    ``min(length, 6) == length`` holds for a kind of lengths."""
    model = Positions().eval()
    example = torch.randint(0, 20, (2, 5)), torch.randint(0, 3, (2, 5))
    graph = irprune.capture(model, example)
    assert not graph.fixed and not graph.notes
    module = emit_module(graph).eval()
    for shape in ((3, 2), (1, 6), (4, 3)):
        x, labels = torch.randint(0, 20, shape), torch.randint(0, 3, shape)
        for a, b in zip(module(x, labels), model(x, labels), strict=True):
            torch.testing.assert_close(a, b)


def test_a_static_export_refuses_other_sizes() -> None:
    model = Net(OPEN["view(*shape[:2], -1)"]).eval()
    x = torch.randn(2, 5, 6)
    graph = irprune.capture(torch.export.export(model, (x,)))
    assert [(f.input, f.dim, f.size) for f in graph.fixed] == [(0, 0, 2), (0, 1, 5), (0, 2, 6)]
    module = emit_module(graph)
    torch.testing.assert_close(module(x), model(x))
    with pytest.raises(ValueError, match="x: dimension 0 is 5, the model was captured with 2"):
        module(torch.randn(5, 2, 6))


class Counted(nn.Module):
    """Returns numbers beside its result, as ``how(x, y)`` says."""

    def __init__(self, how: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(x, self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    "how",
    [
        lambda x, y: (y, x.shape[0]),
        lambda x, y: {"y": y, "n": x.size(0), "length": x.size(1)},
        lambda x, y: [y, (x.shape[0] * x.shape[1] + 1, {"half": x.shape[1] // 2})],
        lambda x, y: (y, x.shape, x.numel()),
        lambda x, y: (y, x.shape[1] / 2),
    ],
)
def test_a_size_that_forward_returns_as_a_number_stays_open(
    how: Callable[[Tensor, Tensor], Any], tmp_path: Path
) -> None:
    model = Counted(how)
    pruned = irprune.prune(model, (torch.randn(2, 5, 6),))
    assert [(f.input, f.dim) for f in pruned.graph.fixed] == [(0, 2)]

    def numbers(net: Any, x: Tensor) -> list[Any]:
        return [n for n in pytree.tree_leaves(net(x)) if not isinstance(n, Tensor)]

    pruned.save(tmp_path / "out")
    program = torch.export.load(str(tmp_path / "out" / "model.pt2")).module()
    for sizes in ((2, 5), (3, 7), (1, 4)):
        x = torch.randn(*sizes, 6)
        expected = numbers(model, x)
        found = numbers(pruned.module, x)
        assert found == expected
        assert list(map(type, found)) == list(map(type, expected))
        if sizes[0] > 1:  # torch.export takes a batch of 1 for another model
            assert numbers(program, x) == expected


def test_a_truth_that_forward_returns_is_guarded_and_said_to_be_why() -> None:
    module = irprune.prune(
        Counted(lambda x, y: (y, x.shape[1] > 3)), (torch.randn(2, 5, 6),)
    ).module
    assert module(torch.randn(3, 7, 6))[1] is True
    with pytest.raises(ValueError, match=r"captured with 5 \(forward returns it"):
        module(torch.randn(2, 3, 6))


def test_a_result_of_the_users_own_class_is_no_program(tmp_path: Path) -> None:
    """torch writes no program that returns a dataclass; the folder is there without it."""

    @dataclass
    class Result:
        y: Tensor
        length: int

    pruned = irprune.prune(Counted(lambda x, y: Result(y, x.shape[1])), (torch.randn(2, 5, 6),))
    assert pruned.module(torch.randn(2, 7, 6)).length == 7
    pruned.save(tmp_path / "out")
    assert any("no model.pt2" in note for note in pruned.report.notes)
    assert not (tmp_path / "out" / "model.pt2").exists()
    assert (tmp_path / "out" / "model.py").exists()


class Lengths(nn.Module):
    """Asks Python for the length of tensors, and of what is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        y = self.b(torch.relu(self.a(x)).view(len(x), -1))
        return y - torch.eye(len(y), len([1, 2, 3, 4])), len(y)


def test_the_length_of_a_tensor_leaves_its_batch_open() -> None:
    model = Lengths()
    module = irprune.prune(model, (torch.randn(2, 3, 8, 8),), ratio=0.0).module
    for batch in (2, 5, 1):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(module(x), model(x))
    assert "len" not in globals()
