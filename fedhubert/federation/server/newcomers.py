"""What nodes need before they can train: the teacher of a distillation, and the labels; for those
that are there when the run begins, and for those that join later."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedhubert.federation.phases.delivery import (
    ModelTransfer,
    deliver,
    failures_of,
    frozen_transfer,
    go_on_without,
    teacher_transfer,
)
from fedhubert.federation.phases.targets import Targets, label_newcomers
from fedhubert.federation.phases.teacher import ServerTeacher
from fedhubert.federation.roster.connect import PREPARE_TIMEOUT_S
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.server.record import RunRecord
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.models.trainable import FrozenPart

Shares = dict[int, list[int]]


@dataclass(frozen=True)
class Equipment:
    """Brings nodes what they need to train."""

    federation: Federation
    record: RunRecord
    teacher: ServerTeacher | None
    frozen: FrozenPart | None

    def bring_models(self) -> None:
        """Bring the teacher and the part that is not trained, if there are such, to all nodes; go
        on without those that cannot take them, where ``federated.min_clients`` allows; raises
        :class:`FederationError`."""
        federation, on_event = self.federation, self.record.event
        timeout_s = federation.config.federated.round_timeout_s
        for transfer in self._transfers():
            delivery = deliver(federation, transfer, federation.hosts, on_event, timeout_s)
            go_on_without(federation, delivery, f"the delivery of the {transfer.name}")

    def on_join(self, targets: Targets, shares: Shares) -> list[Failure]:
        """Prepare the nodes of ``shares`` (node id -> partitions), which join after the start;
        return what went wrong."""
        federation, on_event = self.federation, self.record.event
        config, failures = federation.config, list[Failure]()
        timeout_s = min(PREPARE_TIMEOUT_S, config.federated.round_timeout_s)
        for transfer in self._transfers():
            delivery = deliver(federation, transfer, shares, on_event, timeout_s)
            failures += failures_of(delivery, shares)
            shares = {node: own for node, own in shares.items() if node not in delivery.failed}
        if config.task.needs_labels:
            failures += label_newcomers(federation, targets, shares, on_event, timeout_s)
        return failures

    def _transfers(self) -> Iterator[ModelTransfer]:
        if self.teacher is not None:
            yield teacher_transfer(self.teacher.teacher)
        if self.frozen is not None:
            yield frozen_transfer(self.frozen)
