"""Brings a trained model to the sites: at most once to each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire.messages.message import Failure, Instruction, NDArray
from fedhubert.federation.wire.messages.nodes import (
    Has,
    HasExtractor,
    HasTeacher,
    SendExtractor,
    SendTeacher,
)
from fedhubert.models.frozen import FrozenModel


@dataclass(frozen=True)
class ModelTransfer:
    """A model to bring to sites: the instruction that asks whether it is there, and the one that
    brings it."""

    ask: HasExtractor | HasTeacher
    send: SendExtractor | SendTeacher


def tensors_of(model: FrozenModel) -> dict[str, NDArray]:
    """Return a model's tensors as they travel."""
    return {name: tensor.numpy() for name, tensor in model.state.items()}


@dataclass
class Delivery:
    """How many nodes a model was ``sent`` to, and which have ``failed`` to take it."""

    sent: int = 0
    failed: dict[int, Failure] = field(default_factory=dict)


def deliver(
    federation: Federation,
    transfer: ModelTransfer,
    shares: Mapping[int, Sequence[int]],
    timeout_s: float,
) -> Delivery:
    """Make sure that each node of ``shares`` (node id -> partitions) has the model.

    Nodes are asked for its key first. Of those that lack it one is sent it, then the others are
    asked again: nodes that share a state folder (a simulation) get it once together.
    """
    done = Delivery()
    lacking = _lacking(federation, transfer, list(shares), timeout_s, done)
    while lacking and not done.sent:
        done.sent += len(_ask(federation, transfer.send, lacking[:1], timeout_s, done))
        lacking = lacking[1:]
    lacking = _lacking(federation, transfer, lacking, timeout_s, done)
    done.sent += len(_ask(federation, transfer.send, lacking, timeout_s, done))
    return done


def go_on_without(federation: Federation, delivery: Delivery, what: str) -> None:
    """Leave out the nodes that a model could not be brought to, where ``federated.min_clients``
    allows; raises :class:`FederationError`."""
    failed = [failure for _, failure in sorted(delivery.failed.items())]
    if not failed:
        return
    others = {
        partition
        for node, hosted in federation.hosts.items()
        if node not in delivery.failed
        for partition in hosted
    }
    lost = [
        Failure(partition, delivery.failed[node].code, delivery.failed[node].setting)
        for node in sorted(delivery.failed)
        for partition in federation.hosts.get(node, ())
        if partition not in others
    ]
    federation.leave_out(lost or failed, f"{what} failed")
    for node in delivery.failed:
        federation.hosts.pop(node, None)
        federation.refuse(node)


def failures_of(delivery: Delivery, shares: Mapping[int, Sequence[int]]) -> list[Failure]:
    """Return the failures of a delivery by partition."""
    return [
        Failure(partition, failure.code, failure.setting)
        for node, failure in delivery.failed.items()
        for partition in shares[node]
    ]


def _lacking(
    federation: Federation,
    transfer: ModelTransfer,
    nodes: list[int],
    timeout_s: float,
    done: Delivery,
) -> list[int]:
    lacking = [
        node for node, has in _ask(federation, transfer.ask, nodes, timeout_s, done) if not has
    ]
    return sorted(lacking, key=nodes.index)


def _ask(
    federation: Federation,
    instruction: Instruction,
    nodes: list[int],
    timeout_s: float,
    done: Delivery,
) -> list[tuple[int, bool]]:
    answers = []
    for reply in federation.ask(
        instruction, Has, {node: [] for node in nodes}, timeout_s=timeout_s
    ):
        if reply.failures or reply.answer is None:
            done.failed[reply.node_id] = next(iter(reply.failures), Failure(-1, "malformed"))
        else:
            answers.append((reply.node_id, reply.answer.has == 1))
    return answers
