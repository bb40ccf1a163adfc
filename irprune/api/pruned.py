"""What a prune gives back: the smaller model, its report, and the ways out."""

from __future__ import annotations

import copy
import html
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from irprune.api.in_instance import in_basis, in_two
from irprune.api.option_kinds import FP16, INT8, settle_memory
from irprune.api.report import Report
from irprune.base.atomic_write import NotWritten, atomic_write, replace_folder
from irprune.base.format import human
from irprune.base.memory import memory_budget, within_memory
from irprune.base.near import meant
from irprune.choice.plan import Plan
from irprune.emit.backends.base import backend_of
from irprune.emit.bridge.onnx_module import with_trained_weights
from irprune.emit.bridge.openvino_files import openvino, write_openvino
from irprune.emit.onnx.tensorrt import build_script
from irprune.errors import CheckFailed, IrpruneError, printable
from irprune.frontend.torch.pretrained import is_pretrained
from irprune.ir.graph import Graph
from irprune.ir.selection import Indices
from irprune.ops.registry import draws
from irprune.run.session import session
from irprune.run.take import kept_indices
from irprune.validate.openvino_parity import compare_openvino
from irprune.validate.profiles import given_profile, profile_of, run_profile

if TYPE_CHECKING:
    import torch

    from irprune.api.options import Options
    from irprune.api.trials import Trials
    from irprune.validate.parity import Parity
    from irprune.validate.read_back import ReadBack

__all__ = ["FORMATS", "Pruned"]

M = TypeVar("M", bound="torch.nn.Module")
FORMATS = ("irprune", "hf", "genai", "openvino", "tensorrt")


class Pruned:
    """A pruned model, with its report and the ways out: ``module``, ``onnx``, ``save`` and
    ``apply_to``. ``irprune.prune`` makes it.

    Args:
        graph: The analysed original with its choice.
        cut: The graph after slicing.
        report: What was done, and what the checks measured.
        options: Those of the call.
        whole: The analysed original where layers became two: ``graph`` is then that of the model
            with the two layers.
    """

    def __init__(
        self,
        graph: Graph,
        cut: Graph,
        report: Report,
        options: Options,
        whole: Graph | None = None,
    ) -> None:
        self.whole = graph if whole is None else whole
        self.graph, self.cut, self.report, self.options = graph, cut, report, options
        self._module: torch.nn.Module | None = None
        self._judged: torch.nn.Module | None = None

    def __repr__(self) -> str:
        return f"Pruned({printable(self.report.name)}: parameters {self.report.params}, MACs {self.report.macs})"

    def _repr_html_(self) -> str:
        """The report's page, in a frame, for a notebook."""
        page = html.escape(self.report.to_html(), quote=True)
        return f'<iframe title="report" srcdoc="{page}" style="width:100%;height:40rem;border:0"></iframe>'

    @property
    def from_onnx(self) -> bool:
        """Whether the model came in as an ONNX file."""
        return not backend_of(self.graph).exports

    @property
    def module(self) -> torch.nn.Module:
        """The pruned ``nn.Module``, in eval mode, called as the original is; its tensors are its
        own."""
        if self._module is None:
            self._module = backend_of(self.graph).module(self.cut)
        return self._module

    @property
    def judged(self) -> torch.nn.Module:
        """What is proven and written for transformers: ``module``, or, where the model's weights
        lie in files, one that reads them when they are used."""
        if self._module is not None or not backend_of(self.graph).stores(self.graph):
            return self.module
        if self._judged is None:
            self._judged = backend_of(self.graph).module(self.cut, stored=True)
        return self._judged

    def renew(self) -> None:
        """Make the module again, from other weights of the cut graph."""
        self._module = self._judged = None
        self.judged  # noqa: B018 - so that its errors come from here

    @property
    def surgeon(self) -> Any:
        """The pruned model as a graph of onnx-graphsurgeon. Raises IrpruneError for a model that
        did not come in as ONNX."""
        from irprune.emit.onnx.emitter import emit_onnx
        from irprune.frontend.onnx.surgeon import to_surgeon

        return to_surgeon(emit_onnx(self._current()))

    @property
    def kept(self) -> dict[str, list[list[Any] | None]]:
        """For each weight that was cut, per dimension the kept indices of the original, or None
        where all are.

        Where each block keeps its own, a dimension that stands beside the blocks has a row of
        indices for each kept index of the dimension that holds them: of a grouped convolution,
        dimension 1 (the inputs) has a row for each kept output."""
        out: dict[str, list[list[Any] | None]] = {}
        choice = self.whole.kept
        if choice is None:
            return out
        for weight in self.whole.weights.values():
            indices = kept_indices(weight, choice)
            if any(i is not None for i in indices):
                listed = [
                    None if i is None else _rows(i, d).tolist() for d, i in enumerate(indices)
                ]
                out.update(dict.fromkeys((weight.name, *weight.aliases), listed))
        return out

    @property
    def trials(self) -> Trials | None:
        """The models that were tried to keep a metric; None where none was to be kept."""
        return self.report.trials

    @property
    def plan(self) -> Plan:
        """What was chosen, as data that ``apply_plan`` replays."""
        plan = Plan.from_graph(self.whole)
        low_rank = self.report.low_rank
        return plan if low_rank is None else replace(plan, calibrated=low_rank.calibrated)

    def onnx(
        self, path: str | Path, parity: bool = True, cache: bool = False, symmetric: bool = False
    ) -> Path:
        """Write the pruned model as ONNX, and compare it with the module on onnxruntime, every
        output; the comparison is in ``report.parity``. What is written of a file is read again by
        the onnx package and run; that is in ``report.read_back``. With ``bench=True`` the latency
        before and after is in ``report.speed``.

        With ``quantize`` the file is then quantised, and how well it agrees is in
        ``report.narrowed``.

        A model that came in as ONNX goes out as the file that came in, with what ``module`` holds
        where that was trained.

        Args:
            path: The file to write; data of over 2 GB lie beside it.
            parity: False leaves the comparison out.
            cache: Of a decoder of transformers: with its cache of keys and values as inputs and
                outputs, so that it runs token by token (``irprune.emit.bridge.decoder_onnx``); the
                comparison is then of what it goes on to say.
            symmetric: With ``quantize="int8"``, activations in signed integers around zero, as
                TensorRT takes them.

        Returns:
            ``path``.

        Raises:
            CheckFailed: Where an output, or what was written, differs; the file stays for
                inspection.
            IrpruneError: Where the exporter lacks an operator.
        """
        path = Path(path)
        if cache:
            self._with_cache(path, parity)
            return path
        if self.options.values["quantize"]:
            with tempfile.TemporaryDirectory(prefix="irprune-") as folder:
                plain = Path(folder) / path.name
                self._plainly(plain, parity)
                self._narrow(plain, path, symmetric)
        else:
            self._plainly(path, parity)
        if self.options.values["bench"]:
            self._time(path)
        return path

    def _plainly(self, path: Path, parity: bool) -> None:
        """Write the file and check it."""
        backend = backend_of(self.graph)
        backend.write_onnx(self.cut, self.module if backend.exports else self._module, path)
        if parity and not backend.exports:
            from irprune.validate.onnx_read_back import read_back

            self._found(read_back(path, self._current()), path)
        if backend.exports:
            from irprune.emit.bridge.torch_onnx import notes_on_sizes
            from irprune.frontend.torch.source import torch_source

            notes = notes_on_sizes(path, torch_source(self.graph), self.cut)
            self.report.notes += [note for note in notes if note not in self.report.notes]
        if parity and backend.exports:
            if any(map(draws, self.cut.nodes)):
                self.report.notes.append(
                    f"{path.name} is not compared with the module: the model draws random numbers"
                )
            else:
                self._compare(path)

    def _with_cache(self, path: Path, parity: bool) -> None:
        """Write the model of the user's class, with its cache."""
        from irprune.emit.bridge.decoder_onnx import export_decoder
        from irprune.validate.decoder_parity import compare_decoder

        model = self._cached()
        export_decoder(model, path)
        if parity:
            self._judge(compare_decoder(model, path, self.options.values["device"]), path)

    def _cached(self) -> torch.nn.Module:
        """A copy of the user's model with the cut made in it. Raises IrpruneError for one that is
        none of transformers."""
        from irprune.frontend.torch.source import find_torch_source
        from irprune.run.stored_tensor import read_whole

        source = find_torch_source(self.graph)
        if source is None or source.module is None or not is_pretrained(source.module):
            raise IrpruneError(
                "only models of transformers are written with their cache",
                self.report.name,
                "give one, or write it without",
            )
        made = self.apply_to(copy.deepcopy(source.module))
        return read_whole(made)  # the exporter writes weights that are in memory

    def _narrow(self, plain: Path, path: Path, symmetric: bool) -> None:
        """Put narrower numbers into the file, and into the report how well it agrees."""
        from irprune.api.narrow import narrow

        values = self.options.values
        kind, metric = values["quantize"], values["metric"]
        assert kind is not None
        self.report.narrowed = narrow(
            plain, path, kind, self.graph, values["calibration"], metric, symmetric
        )

    def _time(self, path: Path) -> None:
        """Put into the report how fast the file is beside the original."""
        from irprune.api.speed import measure_speed

        values = self.options.values
        with within_memory(settle_memory(values["memory"], {})):
            allowed = memory_budget()
        held = self.report.bytes.before + self.report.bytes.after
        if self.from_onnx and held > allowed:  # a model of torch is whole in memory in any case
            self.report.notes.append(
                f"not timed: onnxruntime would hold both files, {human(held)}B, and memory= "
                f"(--memory) allows {human(allowed)}B; irprune bench A --against B times them"
            )
            return
        try:
            self.report.speed = measure_speed(self.graph, path, values["device"], values["threads"])
        except IrpruneError as refused:
            self.report.notes.append(f"not timed: {refused.what}")

    def _current(self) -> Graph:
        """The cut graph of an ONNX file, with the weights of the module where there is one."""
        if self._module is None:
            return self.cut
        return with_trained_weights(self.cut, self._module)

    def _found(self, found: ReadBack, path: Path) -> None:
        """Put what reading a file again said into the report. Raises CheckFailed where it is not
        what was written."""
        others = [r for r in self.report.read_back if (r.file, r.by) != (found.file, found.by)]
        self.report.read_back = [*others, found]
        if not found.passed:
            raise CheckFailed(
                f"what was written is not what was proven: {found}",
                str(path),
                "report this as a bug",
            )

    def _compare(self, path: Path) -> None:
        from irprune.frontend.torch.source import torch_source
        from irprune.validate.module_parity import compare

        device = self.options.values["device"].split(":")[0]
        self._judge(compare(self.module, torch_source(self.graph), path, device), path)

    def _judge(self, parity: Parity, path: Path) -> None:
        """Put the comparison into the report. Raises CheckFailed where it failed."""
        self.report.parity = parity
        if not self.report.parity.passed:
            raise CheckFailed(
                f"the ONNX file differs from the module: {self.report.parity}",
                str(path),
                "keep the module and report this as a bug",
            )

    def program(self, path: str | Path) -> Path:
        """Write the pruned model as a program of ``torch.export``, which torch reads again and
        runs; that is in ``report.read_back``.

        Args:
            path: The file to write.

        Returns:
            ``path``.

        Raises:
            CheckFailed: Where what torch reads computes something else; nothing is written.
            IrpruneError: For a model that came in as ONNX, which has no example call.
        """
        from irprune.emit.torch.saved import save_program
        from irprune.frontend.torch.source import torch_source
        from irprune.validate.torch_read_back import read_back_program

        path = Path(path)
        if self.from_onnx:
            raise IrpruneError(
                "a .pt2 program is made of a PyTorch model, and this one is an ONNX file",
                str(path),
                "write a folder, which holds a module as source",
            )
        with atomic_write(path) as draft:
            file = draft / path.name
            save_program(self.module, torch_source(self.graph), file, self.graph)
            self._found(read_back_program(file, self.module, self.cut), path)
        return path

    def gguf(self, path: str | Path) -> Path:
        """Write the pruned language model as a GGUF file, for llama.cpp and the programs on top of
        it. The numbers are read again, and where ``llama-cpp-python`` is installed its logits are
        compared with the module's; that is in ``report.read_back``.

        Args:
            path: The file to write.

        Returns:
            ``path``.

        Raises:
            CheckFailed: Where what is read, or what llama.cpp computes, is something else; nothing
                is written.
            IrpruneError: For a model that is none of transformers, and where no architecture of
                llama.cpp has such layers.
        """
        if self.report.low_rank is not None:
            raise IrpruneError(
                "no architecture of llama.cpp says that a layer is two",
                self.report.name,
                "prune without low_rank",
            )
        self._check_norms("architecture of llama.cpp", "prune without rotate")
        from irprune.emit.gguf.file import write_gguf
        from irprune.frontend.torch.source import torch_source
        from irprune.validate.gguf_read_back import read_back_gguf, run_gguf

        path = Path(path)
        repaired = self._refitted
        model, tokenizer = backend_of(self.graph).gguf_model(
            self.graph, self.cut, self.judged, repaired
        )
        with atomic_write(path) as draft:
            file = draft / path.name
            notes = write_gguf(model, file, tokenizer)
            self._found(read_back_gguf(file, model), path)
            run = run_gguf(file, self.judged, torch_source(self.graph))
            if run is None:
                notes.append("llama.cpp is not installed here (llama-cpp-python): it was not run")
            else:
                self._found(run, path)
        self.report.notes += notes
        return path

    def save(
        self,
        folder: str | Path,
        format: str = "irprune",
        *,
        per_layer: bool = False,
        profile: Mapping[str, Sequence[Sequence[int]]] | None = None,
    ) -> Path:
        """Write ``folder``. It appears whole or not at all.

        Args:
            folder: Where to write.
            format: ``irprune``: model.py with weights.safetensors (loads without irprune),
                model.pt2, model.onnx, plan.json, report.json, report.html. ``hf``, for a model of
                transformers: what ``from_pretrained`` loads, with the tokenizer of the folder that
                the model came from; where no config can say the sizes (prune with ``uniform=True``)
                with a model file of its own. A fresh process loads it and compares. ``genai``, for
                a decoder of transformers: model.onnx with its cache, genai_config.json and the
                tokenizer, run by onnxruntime-genai where that is installed. ``openvino``:
                model.xml and model.bin, run by OpenVINO and compared with the ONNX file.
                ``tensorrt``: model.onnx and build.sh, a call of trtexec with the sizes that an
                engine is built for, at which onnxruntime runs the file.
            per_layer: With ``hf`` write that model file in any case.
            profile: With ``tensorrt``, for each input with open sizes three shapes: the least, the
                usual and the most. By default the example's is the usual one.

        Returns:
            ``folder``.

        Raises:
            IrpruneError: For another format, and where the model's class cannot hold the sizes.
            CheckFailed: Where what was written computes something else.
        """
        if format not in FORMATS:
            hint = meant(format, FORMATS, f"one of {', '.join(FORMATS)}")
            raise IrpruneError(f"format is {format!r}", "", hint)
        if format == "openvino":
            openvino()  # refused before anything is written
        if profile and format != "tensorrt":
            raise IrpruneError("a profile is for TensorRT", "", "say format='tensorrt'")
        with replace_folder(Path(folder)) as draft:
            if format == "hf":
                self._fill_pretrained(draft, per_layer)
            elif format == "genai":
                self._fill_genai(draft)
            elif format == "openvino":
                self._fill_openvino(draft)
            elif format == "tensorrt":
                self._fill_tensorrt(draft, profile)
            else:
                self._fill(draft)
        return Path(folder)

    def _fill_pretrained(self, folder: Path, per_layer: bool) -> None:
        if self.report.low_rank is not None:
            raise IrpruneError(
                "no config of transformers says that a layer is two",
                self.report.name,
                "save the folder of irprune: leave the format out",
            )
        self._check_norms(
            "config of transformers", "save the folder of irprune: leave the format out"
        )
        self.report.notes += backend_of(self.graph).save_pretrained(
            self.graph, self.cut, self.judged, folder, self._refitted, per_layer
        )
        self._describe(folder)

    def _check_norms(self, what: str, advice: str) -> None:
        """Raises IrpruneError where a rotation made root mean square norms of layer norms."""
        if self.report.rotation is not None and self.report.rotation.replaces_norms:
            raise IrpruneError(
                f"no {what} says that layer norms take no mean, as rotate makes them",
                self.report.name,
                advice,
            )

    def _fill_genai(self, folder: Path) -> None:
        from irprune.emit.bridge.genai_folder import write_genai
        from irprune.validate.decoder_parity import compare_decoder
        from irprune.validate.genai_parity import compare_genai

        model = self._cached()
        path = write_genai(model, folder)
        self._judge(compare_decoder(model, path, self.options.values["device"]), path)
        if (run := compare_genai(model, folder)) is None:
            self.report.notes.append("onnxruntime-genai is not installed here: it was not run")
        else:
            self._found(run, path)
        self._describe(folder)

    def _fill_openvino(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="irprune-") as place:
            file = self.onnx(Path(place) / "model.onnx")
            path = write_openvino(file, folder)
            quantised = self.options.values["quantize"] is not None
            self._found(compare_openvino(path, file, self.graph, quantised), folder)
        self._describe(folder)

    def _fill_tensorrt(
        self, folder: Path, given: Mapping[str, Sequence[Sequence[int]]] | None
    ) -> None:
        file = self.onnx(folder / "model.onnx", symmetric=True)
        names = [v.name for v in session(str(file), "cpu").get_inputs()]
        profile = given_profile(self.graph, names, given) if given else profile_of(self.graph, file)
        self._found(run_profile(self.graph, file, profile), folder)
        kind = self.options.values["quantize"]
        flags = {INT8: ["--int8", "--fp16"], FP16: ["--fp16"]}.get(kind or "", [])
        script = folder / "build.sh"
        text = build_script(file.name, profile.shapes(self.graph, names), flags)
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)
        self.report.notes += [
            *profile.notes,
            "build.sh was not run: it needs a machine with TensorRT",
        ]
        self._describe(folder)

    def _describe(self, folder: Path) -> None:
        """The plan and the report."""
        self.plan.save(folder / "plan.json")
        (folder / "report.json").write_text(self.report.to_json(details=True), encoding="utf-8")
        (folder / "report.html").write_text(self.report.to_html(), encoding="utf-8")

    def _fill(self, folder: Path) -> None:
        from irprune.emit.torch.saved import save_module
        from irprune.validate.torch_read_back import (
            beside_file,
            read_back_program,
            read_back_source,
        )

        save_module(self.module, folder)
        self._found(read_back_source(folder, self.module, self.cut), folder)
        notes = backend_of(self.graph).save(self.graph, self.cut, self.module, folder)
        why = ""
        if self.report.low_rank is not None:
            why = "a layer is two"
        elif self.report.rotation is not None and self.report.rotation.replaces_norms:
            why = "layer norms take no mean"
        told, beside = "no huggingface/:", folder / "huggingface"
        if why and (beside.exists() or any(n.startswith(told) for n in notes)):
            shutil.rmtree(beside, ignore_errors=True)
            notes = [f"{told} no config of transformers says that {why}"]
        program = folder / "model.pt2"
        if program.exists():
            self._found(read_back_program(program, self.module, self.cut), folder)
        try:
            file = self.onnx(folder / "model.onnx")
            if self.from_onnx and not self.options.values["quantize"]:
                self._found(beside_file(file, self.module, self.cut), folder)
        except (CheckFailed, NotWritten):
            raise
        except (
            IrpruneError
        ) as refused:  # the exporter lacks an operator; the rest of the folder is sound
            self.report.notes.append(f"no model.onnx: {refused.what}")
        self.report.notes.extend(notes)
        self._describe(folder)

    def fill(self, module: M) -> M:
        """Copy the pruned values into a module of the same names and shapes, such as one that was
        made on the meta device, sharded by ``fully_shard`` and given memory by ``to_empty``: each
        rank fills its part.

        Args:
            module: The module to fill.

        Returns:
            ``module``.

        Raises:
            IrpruneError: Where names or shapes differ; nothing is copied.
        """
        from irprune.emit.torch.fill import fill

        return fill(module, self.module)

    def apply_to(self, model: M) -> M:
        """Make the same cut in the user's own instance: parameters, buffers and attributes that
        hold sizes. An optimizer is to be made afterwards. The report's notes name
        attributes that still hold an old size.

        Args:
            model: The module that was pruned, or one of the same class and sizes.

        Returns:
            ``model``.

        Raises:
            IrpruneError: Where it would then not compute what ``module`` computes; it is as it was.
        """
        notes: list[str] = []
        low_rank, rotation = self.report.low_rank, self.report.rotation
        with in_two(self.graph, low_rank, model), in_basis(self.graph, rotation, model):
            backend_of(self.graph).apply_to(model, self.graph, self.cut, self._refitted, notes)
        if rotation is not None and rotation.replaces_norms and is_pretrained(model):
            notes.append(
                "the config does not say that layer norms take no mean: save_pretrained of this "
                "instance writes what does not load; pruned.save does"
            )
        self.report.notes += [note for note in notes if note not in self.report.notes]
        return model

    @property
    def _refitted(self) -> bool:
        """Whether the cut graph holds other weights than those that slicing left."""
        rotation = self.report.rotation
        return self.report.repair is not None or (rotation is not None and rotation.scaled)


def _rows(index: Indices, dim: int) -> Indices:
    """What ``kept_indices`` gives for dimension ``dim``, with a row for each index that it depends
    on and no dimensions of size 1."""
    if index.ndim == 1:
        return index
    index = np.moveaxis(index, dim, -1)
    return index.reshape(*(n for n in index.shape[:-1] if n != 1), index.shape[-1])
