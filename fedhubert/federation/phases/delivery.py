"""Brings a trained model to the sites: at most once to each."""

from dataclasses import dataclass

from fedhubert.errors import FederationError
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.wire.messages import Has, HasExtractor, HasTeacher, Instruction, NDArray, SendExtractor, SendTeacher
from fedhubert.models.kept import KeptModel


@dataclass(frozen=True)
class ModelTransfer:
    """A model to bring to sites: the instruction that asks whether it is there, and the one that brings it."""

    ask: HasExtractor | HasTeacher
    send: SendExtractor | SendTeacher


def tensors_of(model: KeptModel) -> dict[str, NDArray]:
    """Return a model's tensors as they travel."""
    return {name: tensor.numpy() for name, tensor in model.state.items()}


def deliver(federation: Federation, transfer: ModelTransfer, nodes: list[int]) -> int:
    """Make sure that each of ``nodes`` has the model; returns how many it was sent to.

    Nodes are asked for its key first. Of those that lack it one is sent it, then the others are asked again: nodes that share a state folder (a
    simulation) get it once together.

    Raises:
        FederationError: a node that cannot keep it, or that has another one in its place.
    """
    lacking = _lacking(federation, transfer, nodes)
    if not lacking:
        return 0
    sent = len(_ask(federation, transfer.send, lacking[:1]))
    return sent + len(_ask(federation, transfer.send, _lacking(federation, transfer, lacking[1:])))


def _lacking(federation: Federation, transfer: ModelTransfer, nodes: list[int]) -> list[int]:
    lacking = [node for node, has in _ask(federation, transfer.ask, nodes) if not has]
    return sorted(lacking, key=nodes.index)


def _ask(federation: Federation, instruction: Instruction, nodes: list[int]) -> list[tuple[int, bool]]:
    timeout_s = federation.config.federated.round_timeout_s
    answers = []
    for reply in federation.ask(instruction, Has, {node: [] for node in nodes}, timeout_s=timeout_s):
        if reply.failures or reply.answer is None:
            raise FederationError(
                f"{instruction.KIND} failed: {describe_failures(reply.failures)} (the site's log says more)",
                setting=reply.failures[0].setting if reply.failures else "",
            )
        answers.append((reply.node_id, reply.answer.has == 1))
    return answers
