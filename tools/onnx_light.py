"""The nine ``light_*.onnx`` models of the onnx package at 0.3, 0.5 and 0.7: pruned from the file,
proven, and run as written.

    python tools/onnx_light.py                     all nine; the table goes to
    docs/results/light.md

Their weights are constant, so that every channel is like every other; here they get random ones.
The proof compares the silenced original with the cut model, the parity the file as written with the
nn.Module of it in torch. A classifier on the frozen output must stay on one side: the second column
leaves it aside."""

from __future__ import annotations

import datetime
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from tables import RESULTS, write_table  # noqa: E402

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
RATIOS = (0.3, 0.5, 0.7)


def lively(name: str) -> onnx.ModelProto:
    """The model with random weights in the place of its constant ones, so that each channel
    differs, and scaled so that signals last."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    random = np.random.default_rng(0)
    shapes = {t.name: tuple(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
    norms = {
        name: k
        for n in model.graph.node
        if n.op_type == "BatchNormalization"
        for k, name in enumerate(n.input)
    }
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape, out = shapes[node.input[0]], node.output[0]
            fan = max(1, int(np.prod(shape[1:])))
            array = (
                random.standard_normal(shape) * (2 / fan) ** 0.5
                if len(shape) > 1
                else random.uniform(0.5, 1.5, shape)
            )
            array = array - 1.0 if norms.get(out) in (2, 3) else array
            node = onnx.helper.make_node(
                "Constant", [], [out], value=onnx.numpy_helper.from_array(array.astype(np.float32))
            )
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    softmax = [n for n in model.graph.node if n.op_type == "Softmax"]
    for node in softmax:  # what comes before it says more
        out = node.output[0]
        node.op_type = "Identity"
        del node.attribute[:]
        assert out in {v.name for v in model.graph.output}
    return model


def measured(name: str) -> list[dict[str, Any]]:
    """One row per ratio."""
    import torch
    from bench_onnx import held

    import irprune
    from irprune.run.error import relative_error
    from irprune.run.inputs import random_inputs
    from irprune.validate.onnx_run import run_model

    model, rows = lively(name), []
    for ratio in RATIOS:
        pruned = irprune.prune(model, ratio=ratio)
        x = random_inputs(pruned.graph)
        with tempfile.TemporaryDirectory() as folder:
            made = run_model(pruned.onnx(Path(folder) / "m.onnx"), x)
        with torch.no_grad():
            ours = pruned.module(*(torch.from_numpy(x[v.name]) for v in pruned.graph.inputs))
        parity = relative_error(
            [t.numpy() for t in (ours if isinstance(ours, tuple) else (ours,))], made
        )
        fixed = held(pruned.graph)
        kept = sum(math.prod(pruned.cut.weights[w.name].shape) for w in fixed)
        whole, rest = pruned.report.params, sum(math.prod(w.shape) for w in fixed)
        rows.append(
            {
                "ratio": ratio,
                "left": whole.left,
                "shrinking": (whole.after - kept) / (whole.before - rest),
                "macs": pruned.report.macs.left,
                "error": pruned.report.proof.max_error,
                "parity": parity,
            }
        )
    return rows


@click.command(help=__doc__)
@click.option("--case", "cases", multiple=True, help="only these models, without the table")
def main(cases: tuple[str, ...]) -> None:
    lines = [
        "| model | parameters left | of what may shrink | MACs left | proof | parity |",
        "| --- |" + " ---: |" * 5,
    ]
    fine = True
    for name in cases or NAMES:
        rows = measured(name)
        left, shrinking, macs = (
            " / ".join(f"{r[key]:.0%}" for r in rows) for key in ("left", "shrinking", "macs")
        )
        error, parity = (max(r[key] for r in rows) for key in ("error", "parity"))
        fine = fine and max(error, parity) < 1e-4
        lines.append(f"| {name} | {left} | {shrinking} | {macs} | {error:.0e} | {parity:.0e} |")
        print(lines[-1], flush=True)
    if not cases:
        head = f"Measured {datetime.date.today()}, at {', '.join(map(str, RATIOS))}."
        write_table(RESULTS / "light.md", "\n".join([head, "", *lines]))
    sys.exit(int(not fine))


if __name__ == "__main__":
    main()
