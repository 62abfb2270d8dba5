"""Brings a trained model to the sites: at most once to each."""

from dataclasses import dataclass
from typing import Any

from fedhubert.errors import FederationError
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.wire.flower import Array
from fedhubert.models.kept import KeptModel


@dataclass(frozen=True)
class Parcel:
    """A model to deliver.

    Attributes:
        name: What requests call its key.
        ask, send: Kinds of the messages that ask whether it is there, and that bring it.
    """

    name: str
    ask: str
    send: str
    model: KeptModel


def deliver(federation: Federation, parcel: Parcel, nodes: list[int]) -> int:
    """Make sure that each of ``nodes`` has ``parcel``; returns how many it was sent to.

    Nodes are asked for its key first. Of those that lack it one is sent it, then the others are asked again: nodes that share a state folder (a
    simulation) get it once together.

    Raises:
        FederationError: a node that cannot keep it, or that has another one in its place.
    """
    lacking = _lacking(federation, parcel, nodes)
    if not lacking:
        return 0
    sent = _send(federation, parcel, lacking[:1])
    return sent + _send(federation, parcel, _lacking(federation, parcel, lacking[1:]))


def _lacking(federation: Federation, parcel: Parcel, nodes: list[int]) -> list[int]:
    lacking = [node for node, has in _ask(federation, parcel.ask, nodes, {parcel.name: parcel.model.key}, None) if not has]
    return sorted(lacking, key=nodes.index)


def _send(federation: Federation, parcel: Parcel, nodes: list[int]) -> int:
    task = {parcel.name: parcel.model.key, "model": parcel.model.config.model_dump_json()}
    arrays = {name: Array(tensor.numpy()) for name, tensor in parcel.model.state.items()} if nodes else {}
    return len(_ask(federation, parcel.send, nodes, task, arrays))


def _ask(
    federation: Federation, kind: str, nodes: list[int], task: dict[str, Any], arrays: dict[str, Array] | None
) -> list[tuple[int, bool]]:
    timeout_s = federation.config.federated.round_timeout_s
    answers = []
    for reply in federation.ask(kind, {node: [] for node in nodes}, timeout_s=timeout_s, arrays=arrays, task=task):
        if reply.failures:
            raise FederationError(
                f"{kind} failed: {describe_failures(reply.failures)} (the site's log says more)",
                setting=reply.failures[0].setting,
            )
        answers.append((reply.node_id, reply.info.get("has") == 1))
    return answers
