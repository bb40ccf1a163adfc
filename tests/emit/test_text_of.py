"""The text of a tree is what ``ast.unparse`` writes, of the forms that are written directly and of
all others."""

import ast

import pytest

from irprune.emit.torch import text_of as written
from irprune.emit.torch.text_of import text_of

DIRECT = [
    "x = self.layer1[0].conv1(x, y_1)",
    "y, z = f(x)",
    "x = y = f(x)",
    "del x, y",
    "del x[0]",
    "put(self, 'layer1.0', nn.Conv2d(3, 64, (7, 7), stride=(2, 2), bias=False, padding_mode='x'))",
    "x = torch.cat([x, y], -1)",
    "x = x[:, 2:5, None]",
    "x = x[-1]",
    "x = x[i, j]",
    "x = x[(1, 2)]",
    "x = x + y * z",
    "x = (x + y) * z",
    "x = (x + y).relu()",
    "x = 2 ** x",
    "x = (-2) ** x",
    "x = -2 + x",
    "x = -x",
    "x = ~x",
    "x = x @ y",
    "x = x <= 3",
    "x = x < y < z",
    "x = x in y",
    "x = not x",
    "f(*x, **y)",
    "f((1,), (), [], [1.5, 1e-05, 1e300, -0.0], 'it\\'s \"so\"\\n', b'x', 1j, None, True, ...)",
    "f(1e400)",
    "'x'.join(y)",
    "(1).real",
    "f(x)(y)[z].w",
    "f(lambda: x)",
    "f(x for x in y)",
    "return x",
    "return x, y",
    "x: int = 3",
    "x += 1",
    "'a text'",
    "(x, y)",
]


@pytest.mark.parametrize("text", DIRECT)
def test_the_text_is_that_of_unparse(text: str) -> None:
    (tree,) = ast.parse(text).body
    assert text_of(tree) == ast.unparse(tree)


def test_the_lines_of_a_module_are_written_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written.ast, "unparse", lambda tree: pytest.fail(ast.dump(tree)))
    lines = [
        "x = self.conv(x)",
        "put(self, 'conv', nn.Conv2d(3, 8, (3, 3), bias=False))",
        "y = x + 1",
        "del x",
    ]
    assert [text_of(s) for s in ast.parse("\n".join(lines)).body] == lines
