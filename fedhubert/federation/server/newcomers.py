"""What nodes need before they can train: the teacher of a distillation, and the labels; for those
that are there when the run begins, and for those that join later."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedhubert.federation.phases.delivery import Delivery, failures_of, go_on_without
from fedhubert.federation.phases.frozen import send_frozen_part
from fedhubert.federation.phases.targets import Targets, label_newcomers
from fedhubert.federation.phases.teacher import ServerTeacher, send_teacher
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
        timeout_s = self.federation.config.federated.round_timeout_s
        for what, send in self._sent():
            delivery = send(self.federation.hosts, timeout_s)
            go_on_without(self.federation, delivery, f"the delivery of the {what}")

    def on_join(self, targets: Targets, shares: Shares) -> list[Failure]:
        """Prepare the nodes of ``shares`` (node id -> partitions), which join after the start;
        return what went wrong."""
        config, failures = self.federation.config, list[Failure]()
        timeout_s = min(PREPARE_TIMEOUT_S, config.federated.round_timeout_s)
        for _, send in self._sent():
            delivery = send(shares, timeout_s)
            failures += failures_of(delivery, shares)
            shares = {node: own for node, own in shares.items() if node not in delivery.failed}
        if config.task.needs_labels:
            on_event = self.record.event
            failures += label_newcomers(self.federation, targets, shares, on_event, timeout_s)
        return failures

    def _sent(self) -> Iterator[tuple[str, Callable[[Shares, float], Delivery]]]:
        """Yield what there is to bring, and what brings it."""
        federation, event = self.federation, self.record.event
        if self.teacher is not None:
            teacher = self.teacher.teacher
            yield (
                "teacher",
                lambda shares, timeout_s: send_teacher(
                    federation, teacher, shares, event, timeout_s
                ),
            )
        if self.frozen is not None:
            part = self.frozen
            yield (
                "frozen part",
                lambda shares, timeout_s: send_frozen_part(
                    federation, part, shares, event, timeout_s
                ),
            )
