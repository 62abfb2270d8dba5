"""Brings a model that sites do not train to them, at most once to each: the teacher of a
distillation, the extractor of a second iteration, or the frozen part of the model."""

import logging
from collections.abc import Callable, Mapping, Sequence
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
from fedhubert.models.teacher import Teacher
from fedhubert.models.trainable import FrozenPart
from fedhubert.targets.extractor import Extractor

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class ModelTransfer:
    """A model to bring to sites.

    Attributes:
        name: What errors call it.
        said: What the log says of it.
        event: What its event says of it, in ``metrics.jsonl``.
        ask: Asks whether it is there.
        send: Brings it.
    """

    model: FrozenModel
    name: str
    said: str
    event: Mapping[str, object]
    ask: HasExtractor | HasTeacher
    send: SendExtractor | SendTeacher


def teacher_transfer(teacher: Teacher) -> ModelTransfer:
    """Return the transfer of a teacher; sites that have another fail."""
    return ModelTransfer(
        teacher,
        "teacher",
        "teacher",
        {"event": "teacher", "sha256": teacher.key},
        HasTeacher(teacher=teacher.key),
        SendTeacher(teacher=teacher.key, model=teacher.config, arrays=_arrays(teacher)),
    )


def extractor_transfer(extractor: Extractor) -> ModelTransfer:
    """Return the transfer of the model whose layer gives the features."""
    key, layer, width = extractor.key, extractor.config.num_layers, extractor.config.embed_dim
    return ModelTransfer(
        extractor,
        "extractor",
        f"features: layer {layer}, {width} wide; extractor",
        {"event": "extractor", "hash": key, "layer": layer},
        HasExtractor(extractor=key),
        SendExtractor(extractor=key, model=extractor.config, arrays=_arrays(extractor)),
    )


def frozen_transfer(part: FrozenPart) -> ModelTransfer:
    """Return the transfer of the part of the model that the run does not train."""
    return ModelTransfer(
        part,
        "frozen part",
        f"model.trainable={part.config.trainable}: the frozen part",
        {"event": "frozen_part", "hash": part.key},
        HasExtractor(extractor=part.key),
        SendExtractor(extractor=part.key, model=part.config, arrays=_arrays(part)),
    )


def _arrays(model: FrozenModel) -> dict[str, NDArray]:
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
    on_event: Callable[[dict[str, object]], None],
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
    size, nodes = transfer.model.num_bytes, len(shares)
    log.info(
        "%s (%.1f MB) sent to %d of %d nodes; the others have it",
        transfer.said,
        size / 1e6,
        done.sent,
        nodes,
    )
    counts = {"nodes": nodes, "sent_to": done.sent, "bytes_down": done.sent * size}
    on_event({**transfer.event, **counts})
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
