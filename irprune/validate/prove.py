"""The proof of a cut, whatever the model came from: the original with its dropped channels
silenced, against the model that goes out, on random inputs.

Both kinds of model share what a proof says (``Proof``), the error, the inputs, the random weights
and the question whether outputs vary; what runs the two sides goes by the graph's source."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from irprune.analysis.cost import Costs
from irprune.driver.pipelines import analyse, cut_graph
from irprune.errors import IrpruneError
from irprune.frontend.capture import capture
from irprune.ir.graph import Graph
from irprune.ops.arrays import is_meta
from irprune.validate.affected_outputs import reached
from irprune.validate.proof_result import Proof

if TYPE_CHECKING:
    import onnx
    import torch

    from irprune.validate.gradient_proof import Gradients

__all__ = ["prove_cut"]


def prove_cut(
    graph: Graph,
    cut: Graph,
    module: Callable[[], torch.nn.Module],
    device: Callable[[], torch.device],
    gradients: bool = False,
    again: Callable[[Graph], Graph] = cut_graph,
) -> Proof | None:
    """Prove that ``cut`` computes what ``graph`` computes with the dropped channels silenced.

    Args:
        graph: the analysed original with its choice.
        cut: what slicing made of it.
        module: gives the module that goes out, where the model came in as one.
        device: gives the device that a module is proven on.
        gradients: prove those of a module too, even where that takes more than about a second.
        again: makes ``cut`` of ``graph``, or of one with other weights.

    Returns:
        What was measured; None where the weights have no values (``meta`` device).

    Raises:
        IrpruneError: where the graph came from no model, or no proof is possible.
    """
    dialect = graph.source.dialect if graph.source is not None else ""
    if dialect == "onnx":
        from irprune.validate.onnx_proof import prove_onnx

        return _counted(
            graph, prove_onnx(graph, cut, lambda model: _cut_again(graph, model, again))
        )
    if dialect != "torch":
        raise IrpruneError("no proof is possible: this graph came from no model", graph.name)
    from irprune.emit.torch.module import emit_module
    from irprune.run.stored_tensor import is_stored
    from irprune.validate.gradient_proof import is_cheap, prove_gradients
    from irprune.validate.proof import Remake, prove
    from irprune.validate.training_proof import differs_in_training, held_otherwise

    made = module()
    if any(is_meta(t) for t in made.state_dict().values()):
        return None

    remake = Remake(again, lambda smaller: emit_module(smaller, is_stored(made)))
    proof = _counted(graph, prove(graph, made, remake, device()))
    if proof.passed and (gradients or is_cheap(graph, Costs(graph).at({})["macs"])):
        _add_gradients(proof, prove_gradients(graph, made, device()))
        proof.training = held_otherwise(graph, made) or differs_in_training(graph)
        if proof.training:
            proof.notes.append(f"in training it is not what forward is: {proof.training}")
    return proof


def _counted(graph: Graph, proof: Proof) -> Proof:
    """``proof`` with the number of outputs that depend on what was cut, where anything was."""
    assert graph.kept is not None
    if graph.kept.choice or graph.kept.dropped:
        of_graph = reached(graph, graph.kept)
        proof.outputs, proof.reached = len(of_graph), sum(of_graph)
    return proof


def _add_gradients(proof: Proof, found: Gradients | str) -> None:
    if isinstance(found, str):
        proof.notes.append(found)
        return
    proof.gradient_error, proof.gradients_passed = found.error, found.passed
    proof.notes += found.notes
    if not found.passed:
        proof.notes.append(f"the gradient of {found.worst} differs by {found.error:.1e}")
    if found.differing:
        shown = ", ".join(found.differing[:4])
        more = f" and {len(found.differing) - 4} more" if len(found.differing) > 4 else ""
        proof.notes.append(f"gradients are not those of forward at {shown}{more}")


def _cut_again(
    graph: Graph, model: onnx.ModelProto | str, again: Callable[[Graph], Graph]
) -> tuple[Graph, Graph] | None:
    """``model``, which has other weights than the file behind ``graph``, analysed and cut as that
    was; None where its groups are others."""
    from irprune.validate.onnx_random_weights import same_choice

    twin = analyse(capture(model))
    twin.sizes = dict(graph.sizes)
    twin.kept = same_choice(graph, twin)
    return None if twin.kept is None else (twin, again(twin))
