"""What nodes need before they can train: the teacher of a distillation, and the labels; for those
that are there when the run begins, and for those that join later."""

from dataclasses import dataclass

from fedhubert.federation.phases.delivery import Delivery, failures_of, go_on_without
from fedhubert.federation.phases.targets import Targets, label_newcomers
from fedhubert.federation.phases.teacher import ServerTeacher, send_teacher
from fedhubert.federation.roster.connect import PREPARE_TIMEOUT_S
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.server.record import RunRecord
from fedhubert.federation.wire.messages.message import Failure

Shares = dict[int, list[int]]


@dataclass(frozen=True)
class Equipment:
    """Brings nodes what they need to train."""

    federation: Federation
    record: RunRecord
    teacher: ServerTeacher | None

    def teach(self) -> None:
        """Bring the teacher, if there is one, to all nodes; go on without those that cannot take
        it, where ``federated.min_clients`` allows; raises :class:`FederationError`."""
        if self.teacher is not None:
            timeout_s = self.federation.config.federated.round_timeout_s
            delivery = self._send(self.teacher, self.federation.hosts, timeout_s)
            go_on_without(self.federation, delivery, "the teacher's delivery")

    def on_join(self, targets: Targets, shares: Shares) -> list[Failure]:
        """Prepare the nodes of ``shares`` (node id -> partitions), which join after the start;
        return what went wrong."""
        config, failures = self.federation.config, list[Failure]()
        timeout_s = min(PREPARE_TIMEOUT_S, config.federated.round_timeout_s)
        if self.teacher is not None:
            delivery = self._send(self.teacher, shares, timeout_s)
            failures = failures_of(delivery, shares)
            shares = {node: own for node, own in shares.items() if node not in delivery.failed}
        if config.task.needs_labels:
            on_event = self.record.event
            failures += label_newcomers(self.federation, targets, shares, on_event, timeout_s)
        return failures

    def _send(self, teacher: ServerTeacher, shares: Shares, timeout_s: float) -> Delivery:
        return send_teacher(self.federation, teacher.teacher, shares, self.record.event, timeout_s)
