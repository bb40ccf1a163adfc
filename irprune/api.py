"""The public calls: capture, groups, prune, apply_plan.

Options are checked and put into one object at the door. Nothing here imports torch until a torch model comes in, so that
ONNX files are pruned without it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from irprune.arguments import check_call, check_options, check_replay
from irprune.errors import CheckFailed, IrpruneError
from irprune.ir.graph import Graph
from irprune.ir.group import Group, groups_of
from irprune.report import Change, Report, describe

if TYPE_CHECKING:
    import torch

    from irprune.latency.search import Latency
    from irprune.plan import Plan

__all__ = ["Options", "Pruned", "analyse", "apply_plan", "capture", "device_of", "groups", "load_program", "prune"]

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """Everything that a prune can be told. See ``prune`` for what each means."""

    ratio: float = 0.5
    importance: Any = None
    scope: str = "local"
    keep: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    round_to: int | str | None = None
    budget: Mapping[str, float | str] | None = None
    min_channels: int = 1
    max_ratio: float = 1.0
    prefer: str = "heads"
    per_block: bool = True
    reduce: str | None = None
    normalise: str = "mean"
    seed: int | None = None
    proof: bool = True
    strict: bool = False
    device: str = "auto"
    dynamic_shapes: Any = None
    repair: Any = None
    calibration: Any = None
    loss: Any = None
    threads: int = 0
    progress: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        else:
            object.__setattr__(self, "keep", tuple(self.keep))
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)):
            raise IrpruneError(f"ratio is {self.ratio!r}", "", "a number from 0 to 1: the share of every width that is dropped")
        if self.device not in DEVICES and not str(self.device).startswith("cuda:"):
            raise IrpruneError(f"device is {self.device!r}", "", f"one of {', '.join(DEVICES)}, or cuda:0, cuda:1, ...")
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 0:
            raise IrpruneError(f"threads is {self.threads!r}", "", "a whole number; 0 leaves it to onnxruntime")
        if isinstance(self.calibration, Iterator):  # the criterion reads it, and the repair again
            object.__setattr__(self, "calibration", list(self.calibration))
        data = self.calibration is not None
        if self.importance is None:
            object.__setattr__(self, "importance", "wanda" if data else "magnitude")
        if self.repair is None:
            object.__setattr__(self, "repair", data)
        self.choose()  # its own checks
        self.score()

    @classmethod
    def of(cls, **settings: Any) -> Options:
        """The options of those names. Raises IrpruneError for a name or a value that there is not."""
        for name in settings:
            if name not in cls.__dataclass_fields__:
                raise IrpruneError(f"no option {name!r}", "", f"one of {', '.join(cls.__dataclass_fields__)}")
        return cls(**settings)

    def score(self) -> Any:
        """The pass that scores."""
        from irprune.passes.score import Score

        return Score(self.importance, reduce=self.reduce, seed=self.seed, normalise=self.normalise,
                     calibration=self.calibration, loss=self.loss)

    def choose(self) -> Any:
        """The pass that chooses; of a latency in seconds the share comes later, when the original was measured."""
        from irprune.choice.budget import wanted
        from irprune.passes.choose import Choose

        budget: Any = self.budget
        if isinstance(budget, Mapping) and "latency" in budget:
            share, seconds = wanted(budget["latency"])
            budget = {**budget, "latency": 1.0 if seconds else share}
        return Choose(self.ratio, self.ratios, self.scope, self.keep, self.round_to, self.min_channels, self.max_ratio, self.prefer,
                      self.per_block, budget, self._times())

    def _times(self) -> Any:
        """The table of times on this machine, where the choice asks for it."""
        if self.round_to != "auto" and "latency" not in (self.budget or {}):
            return None
        from irprune.latency.table import Table

        return Table.here(self.device.split(":")[0], self.threads)


class Pruned:
    """A pruned model: ``module``, ``report``, ``kept``, ``plan``, and the ways out: ``onnx``, ``save``, ``apply_to``.

    ``graph`` is the analysed original with its choice, ``cut`` the graph after slicing.
    """

    def __init__(self, graph: Graph, cut: Graph, report: Report, options: Options) -> None:
        self.graph, self.cut, self.report, self.options = graph, cut, report, options
        self._module: torch.nn.Module | None = None

    def __repr__(self) -> str:
        return f"Pruned({self.report.name}: parameters {self.report.params}, MACs {self.report.macs})"

    @property
    def from_onnx(self) -> bool:
        """Whether the model came in as an ONNX file."""
        return not hasattr(self.graph.structure, "in_spec")

    @property
    def module(self) -> torch.nn.Module:
        """The pruned ``nn.Module``, in eval mode, called as the original is; its tensors are its own."""
        if self._module is None and self.from_onnx:
            from irprune.emit.onnx_module import module_from_onnx

            self._module = module_from_onnx(self.cut).eval()
        elif self._module is None:
            from irprune.emit.module import emit_module

            self._module = emit_module(self.cut)
        return self._module

    @property
    def surgeon(self) -> Any:
        """The pruned model as a graph of onnx-graphsurgeon. Raises IrpruneError for a model that did not come in as ONNX."""
        from irprune.capture.surgeon import to_surgeon
        from irprune.emit.onnx import emit_onnx

        return to_surgeon(emit_onnx(self.cut))

    @property
    def kept(self) -> dict[str, list[list[int] | None]]:
        """For each weight that was cut, per dimension the kept indices of the original, or None where all are."""
        from irprune.passes.slice import kept_indices

        out: dict[str, list[list[int] | None]] = {}
        choice = self.graph.kept
        if choice is None:
            return out
        for weight in self.graph.weights.values():
            indices = kept_indices(weight, choice)
            if any(i is not None for i in indices):
                listed = [None if i is None else i.tolist() for i in indices]
                out.update(dict.fromkeys((weight.name, *weight.aliases), listed))
        return out

    @property
    def plan(self) -> Plan:
        """What was chosen, as data that ``apply_plan`` replays."""
        from irprune.plan import Plan

        return Plan.from_graph(self.graph)

    def onnx(self, path: str | Path, parity: bool = True) -> Path:
        """Write the pruned model to ``path`` and compare it with the module on onnxruntime, every output; returns the path.

        The comparison is in ``report.parity``. Raises CheckFailed where an output differs; the file stays for inspection.
        """
        path = Path(path)
        if self.from_onnx:
            from irprune.emit.onnx import write_onnx

            write_onnx(self.cut, path)
            return path
        from irprune.emit.torch_onnx import export_onnx

        export_onnx(self.module, self.graph.structure, path)
        if parity:
            self._compare(path)
        return path

    def _compare(self, path: Path) -> None:
        from irprune.emit.torch_onnx import compare

        self.report.parity = compare(self.module, self.graph.structure, path, self.options.device.split(":")[0])
        if not self.report.parity.passed:
            raise CheckFailed(f"the ONNX file differs from the module: {self.report.parity}", str(path),
                              "keep the module and report this as a bug")

    def save(self, folder: str | Path) -> Path:
        """Write ``folder``: model.py with weights.safetensors (loads without irprune), model.pt2, model.onnx, plan.json,
        report.json, report.html. It appears whole or not at all."""
        from irprune.emit.folder import save_folder

        return save_folder(self, folder)

    def apply_to(self, model: torch.nn.Module) -> torch.nn.Module:
        """Make the same cut in ``model`` itself, parameters and size attributes; returns it. An optimizer is to be made afterwards.

        Raises IrpruneError, with the model as it was, where it would then not compute what ``module`` computes.
        """
        from irprune.emit.instance import apply_to

        return apply_to(self, model)


def capture(
    model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None,
) -> Graph:
    """The graph of an ``nn.Module`` called with ``args`` and ``kwargs``, of an ``ExportedProgram``, of an ``.onnx`` or ``.pt2``
    file, or of a graph of onnx-graphsurgeon.

    The model is left as it was. Raises IrpruneError for what cannot be captured.
    """
    kind = _kind(model)
    if kind == "surgeon":
        from irprune.capture.surgeon import from_surgeon

        model = from_surgeon(model)
        kind = "onnx"
    if kind == "onnx":
        from irprune.capture.onnx import capture_onnx

        return capture_onnx(model)
    if kind == "pt2":
        model = load_program(Path(model))
        kind = "program"
    if kind == "program":
        from irprune.capture.torch_export import from_exported

        return from_exported(model)
    from irprune.capture import capture as capture_module

    check_call(model, kwargs)
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        args = (args,)  # a single tensor
    graph = capture_module(model, tuple(args), kwargs, dynamic_shapes)
    graph.structure.dynamic_shapes = dynamic_shapes
    return graph


def _kind(model: Any) -> str:
    """What came in: ``module``, ``program``, ``pt2``, ``onnx`` or ``surgeon``. Raises IrpruneError for anything else."""
    if isinstance(model, (str, Path)):
        suffix = Path(model).suffix
        if suffix in (".onnx", ".pt2"):
            return suffix[1:]
        raise IrpruneError("not a model file", str(model), "give an nn.Module, an ExportedProgram, an .onnx file or a .pt2 file")
    for kind in type(model).__mro__:
        where = f"{kind.__module__}.{kind.__name__}"
        if where == "torch.nn.modules.module.Module":
            return "module"
        if where == "torch.export.exported_program.ExportedProgram":
            return "program"
        if kind.__name__ == "ModelProto":
            return "onnx"
        if where == "onnx_graphsurgeon.ir.graph.Graph":
            return "surgeon"
    raise IrpruneError(f"not a model: {type(model).__name__}", "", "give an nn.Module, an ExportedProgram, an .onnx file or a .pt2 file")


def load_program(path: Path) -> Any:
    """The program in a ``.pt2`` file."""
    import torch

    from irprune.quiet import quiet

    if not path.exists():
        raise IrpruneError("no such file", str(path), "check the path")
    if path.stat().st_size == 0:
        raise IrpruneError("the file is empty", str(path), "write it again with torch.export.save")
    try:
        with quiet():
            return torch.export.load(str(path))
    except Exception as refused:  # zip, pickle and schema errors of many kinds
        text = str(refused).strip().splitlines()
        raise IrpruneError(f"not a program of torch.export: {text[0][:200] if text else type(refused).__name__}", str(path),
                           "write it with torch.export.save") from refused


def groups(graph: Graph) -> list[Group]:
    """The coupled groups of ``graph``, free and frozen, in order of first appearance; the graph is analysed where it was not."""
    analyse(graph)
    return groups_of(graph)


def analyse(graph: Graph) -> Graph:
    """Give every dimension of ``graph`` its axis, once, by the pipelines ``prepare`` and ``analyse``."""
    if not isinstance(graph, Graph):
        raise IrpruneError(f"not a graph: {type(graph).__name__}", "", "give what irprune.capture returns")
    if graph.axes is None:
        from irprune.driver.registry import own
        from irprune.passes import ANALYSE, PREPARE

        for one in own((*PREPARE, *ANALYSE)):
            one.run(graph)
    return graph


def prune(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    ratio: float = 0.5,
    importance: Any = None,
    scope: str = "local",
    keep: Sequence[str] = (),
    round_to: int | str | None = None,
    budget: Mapping[str, float | str] | None = None,
    proof: bool = True,
    **more: Any,
) -> Pruned:
    """A smaller model, proven equal to ``model`` with the dropped channels silenced. ``model`` is not changed.

    model       nn.Module, ExportedProgram, "m.pt2", "m.onnx", onnx.ModelProto or onnx_graphsurgeon.Graph; ``args`` and ``kwargs``
                are an example call
    ratio       share of every width that is dropped, 0 to 1; default 0.5
    importance  criterion: a name of ``irprune.importance`` or an object; default "magnitude", with calibration data "wanda"
    scope       "local": every width by its ratio; "global": one threshold; "isomorphic": one for each kind of structure
    keep        patterns over weights, groups and module paths that stay whole: ["head*"]
    round_to    widths become multiples of it; "auto": of what onnxruntime likes on this machine, as measured (16 for convolutions on
                AVX-512, 1 for matrix products). Default: 1, with a budget on latency "auto"
    budget      {"macs": 0.5}, {"params": ...}, {"bytes": ...}, {"activation": ...}: found in place of ``ratio``; shares up to 1 or
                amounts; several hold together. {"latency": 0.5} or {"latency": "3ms"} on onnxruntime: predicted from times of its
                operators, which are measured once and kept in the user's cache, then measured on the cut (``irprune.latency``)
    proof       False leaves the proof out
    ratios      pattern -> ratio, for groups to be cut by a ratio of their own
    min_channels
                no group gets narrower than this; default 1
    max_ratio   no group loses a larger share than this; default 1
    prefer      which factor of a product of widths carries its ratio: "heads", "head_dim", "both", "groups"
    per_block   False keeps the same inner indices in every head or group; default True, where that is legal
    reduce, normalise, seed
                how importance is joined over a group, made comparable between groups, and drawn (``irprune.passes.score``)
    calibration a few hundred inputs for criteria and repairs: an iterable, a tensor, a folder (``irprune.calibration``)
    loss        ``loss(outputs, batch)`` for gradient criteria; default: labels drawn from the model's own output
    repair      "least_squares" (or True), "batch_norm", "bias", "affine", "fold", or several: refit what is left to the original on
                ``calibration``, or on noise where there is none (``irprune.repair``); the proof is made before. Default: least
                squares where there are calibration data, else none; False leaves it out
    strict      True refuses a model with an operator that no rule covers
    device      where the proof, the comparison and the timing run: "auto" (CUDA where there is one), "cpu", "cuda"
    threads     of onnxruntime, for a budget on latency; 0 leaves its default
    progress    called with a line of text where measuring takes its time
    dynamic_shapes
                as in ``torch.export.export``

    Raises IrpruneError for bad input, CheckFailed where the proof fails.
    """
    chosen = Options.of(ratio=ratio, importance=importance, scope=scope, keep=keep, round_to=round_to, budget=budget, proof=proof, **more)
    clock = Clock()
    with clock("capture"):
        graph = capture(model, args, kwargs, chosen.dynamic_shapes)
    with clock("analyse"):
        analyse(graph)
        check_weights(graph, ranked(graph) if chosen.importance == "magnitude" else ())
        _check_rules(graph, chosen)
    with clock("score"):
        chosen.score().run(graph)
    with clock("choose"):
        latency = _choose(graph, chosen)
    pruned = _finish(graph, chosen, clock)
    pruned.report.latency = latency
    return pruned


def _choose(graph: Graph, options: Options) -> Latency | None:
    """Set ``graph.kept``; with a budget on latency by what was measured."""
    choose = options.choose()
    if "latency" not in (options.budget or {}):
        choose.run(graph)
        return None
    from irprune.latency.search import choose_in_time

    assert options.budget is not None
    return choose_in_time(graph, choose, options.budget["latency"], cut_graph, options.device, options.threads,
                          options.progress or (lambda line: None))


def apply_plan(
    model: Any, plan: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, proof: bool = True, **more: Any,
) -> Pruned:
    """Make exactly the cut that ``plan`` records, on the same model or its ONNX export.

    ``plan`` is a ``Plan``, its JSON as text or data, or a file's path.
    ``more`` are the options of ``prune`` that do not choose: ``device``, ``dynamic_shapes``. Raises IrpruneError for a
    model that the plan does not fit.
    """
    from irprune.plan import Plan

    check_replay(more)
    chosen = Options.of(proof=proof, **more)
    clock = Clock()
    with clock("capture"):
        graph = capture(model, args, kwargs, chosen.dynamic_shapes)
    with clock("analyse"):
        analyse(graph)
        check_weights(graph)
    with clock("choose"):
        Plan.read(plan).choose(graph)
    return _finish(graph, chosen, clock)


class Clock:
    """Seconds by stage, as ``now`` counts them."""

    now: ClassVar[Callable[[], float]] = time.perf_counter

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        now = type(self).now
        began = now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now() - began


def cut_graph(graph: Graph) -> Graph:
    """A copy of the analysed graph, sliced by its choice: the pipeline ``cut``."""
    from irprune.driver.registry import own
    from irprune.passes import CUT

    cut = graph.copy()
    for one in own(CUT):
        one.run(cut)
    return cut


def _finish(graph: Graph, options: Options, clock: Clock) -> Pruned:
    """Slice, emit, prove and report."""
    with clock("slice"):
        cut = cut_graph(graph)
    with clock("report"):
        report = _report(graph)
    pruned = Pruned(graph, cut, report, options)
    if not pruned.from_onnx:
        with clock("emit"):
            pruned.module  # noqa: B018 - made here, so that its errors come from prune
    if options.proof:
        with clock("proof"):
            _prove(pruned)
    if options.repair:
        with clock("repair"):
            _repair(pruned)
    report.seconds = clock.seconds
    return pruned


def _repair(pruned: Pruned) -> None:
    """Refit the cut weights, after the proof: a repaired model is not the silenced original any more, on purpose."""
    from irprune.repair import repair

    chosen = pruned.options.repair
    done = repair(pruned.graph, pruned.cut, pruned.options.calibration, "least_squares" if chosen is True else chosen)
    pruned.report.repair = done
    if not pruned.from_onnx:
        pruned._module = None
        pruned.module  # noqa: B018 - made again from the new weights


def _report(graph: Graph) -> Report:
    from irprune.cost import Costs

    costs = Costs(graph)
    before, after = costs.at({}), costs.at(graph.kept if graph.kept is not None else {})
    free, frozen, unruled = describe(graph)
    params, macs, size, activation = (Change(before[k], after[k]) for k in ("params", "macs", "bytes", "activation"))
    return Report(graph.name, params, macs, size, activation, free, frozen, unruled, list(graph.notes))


def _prove(pruned: Pruned) -> None:
    """Put the proof into the report. Raises CheckFailed where it fails."""
    report = pruned.report
    if pruned.from_onnx:
        from irprune.validate.onnx_proof import prove_onnx

        report.proof = prove_onnx(pruned.graph, pruned.cut)
    else:
        from irprune.emit.module import emit_module
        from irprune.validate.proof import prove

        if any(t.is_meta for t in pruned.module.state_dict().values()):
            report.notes.append("no proof: the weights are on the meta device")
            return

        def remake(graph: Graph) -> tuple[Graph, torch.nn.Module]:
            cut = cut_graph(graph)
            return cut, emit_module(cut)

        report.proof = prove(pruned.graph, pruned.module, remake, device_of(pruned.options.device))
    if not report.proof.passed:
        raise CheckFailed(f"the proof fails: {report.proof}", report.name,
                          "give an example input on which the outputs vary" if report.proof.vacuous else
                          "report this as a bug; proof=False (--no-proof) gives the model unproven")


def device_of(name: str) -> torch.device:
    """The torch device that a name (``auto``, ``cpu``, ``cuda:1``) means here. Raises IrpruneError where there is no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise IrpruneError("there is no CUDA device here", "", "say device='cpu' or 'auto'")
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())  # as tensors name theirs
    return torch.device(name)


def check_weights(graph: Graph, skip: Iterable[str] = ()) -> None:
    """Raises IrpruneError for a parameter that holds a NaN: no importance can be told from it; ``skip`` names those checked elsewhere."""
    passed = set(skip)
    for weight in graph.weights.values():
        if weight.name in passed or weight.kind != "parameter" or weight.dtype not in ("f64", "f32", "f16", "bf16"):
            continue
        if _has_nan(weight.load()):
            raise IrpruneError("a weight holds NaN", weight.name, "train or load the model again: NaN weights cannot be ranked")


def ranked(graph: Graph) -> list[str]:
    """The weights that magnitude reads whole, and refuses with NaN in them: matrices and kernels in a free group."""
    held = {m.weight.name: m.weight for g in groups_of(graph) if not g.frozen for m in g.members}
    return [name for name, w in held.items() if w.kind == "parameter" and sum(s != 1 for s in w.shape) > 1]


def _has_nan(array: Any) -> bool:
    """Whether ``array`` (torch or numpy) holds a NaN; the sum is NaN then, and seldom otherwise."""
    if getattr(array, "is_meta", False):
        return False
    array = array.detach() if hasattr(array, "detach") else array
    with np.errstate(over="ignore", invalid="ignore"):  # a mask of the largest negative numbers is no news
        total = float(array.sum())
    return total != total and bool((array != array).any())


def _check_rules(graph: Graph, options: Options) -> None:
    if not options.strict:
        return
    _, _, unruled = describe(graph)
    for op, where in unruled.items():
        raise IrpruneError(f"no rule for {op}", where.split(";")[0],
                           "write one in irprune/ops/families/, or leave strict out to prune around it")


