"""The federated strategy: a Flower ``Strategy`` driven by Flower's own ``start()``.

Each round it draws a cohort of partitions from the run's seed, sends the global model to the nodes that host them, folds their updates as
they arrive into an exact sum, and takes one step of the server optimiser. Rounds of ``start()`` count from 1; ``first_round`` maps them to the
run's own rounds after a resume.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.exact_sum import ExactSum, PartialSum, UpdateRejected
from fedhubert.federation.nodes import Federation, describe_failures
from fedhubert.federation.protocol import Failure, Metrics, Reply
from fedhubert.federation.sampling import assign_to_nodes, cohort
from fedhubert.federation.server_optimizers import ServerOptimizer

log = logging.getLogger("fedhubert")


@dataclass
class RoundOutcome:
    """What happened in a round: per-partition metrics of the clients whose updates were folded, and who failed and why."""

    number: int
    asked: list[int]
    clients: dict[int, Metrics] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


ClientsDone = Callable[[int, int, int], None]
"""Told after every reply: the round, the clients done, the clients asked."""


class FederatedStrategy(Strategy):
    """Cohorts by partition id, streaming exact aggregation, one server-optimiser step.

    Args:
        federation: The connected nodes.
        optimizer: The server optimiser, with its state.
        first_round: Our number of the round that ``start()`` calls 1.
        positions: Partition -> micro-batches consumed so far; advanced as updates are accepted.
        on_client: Progress callback.
    """

    def __init__(
        self,
        federation: Federation,
        optimizer: ServerOptimizer,
        *,
        first_round: int = 1,
        positions: Mapping[int, int] | None = None,
        targets_key: str = "",
        on_client: ClientsDone | None = None,
    ) -> None:
        self.federation = federation
        self.optimizer = optimizer
        self.positions = dict(positions or {})
        self.outcome = RoundOutcome(0, [])
        self.between_steps = True
        """False from the start of a server-optimiser step until its result is accepted: the optimiser's state is then ahead of the model."""
        self._offset = first_round - 1
        self._targets_key = targets_key
        self._on_client = on_client or (lambda round_number, done, asked: None)
        self._model = torch.empty(0)
        self._shares: dict[int, list[int]] = {}

    def summary(self) -> None:
        federated = self.federation.config.federated
        log.debug(
            "strategy %s: %d of %d clients per round, weighted by %s",
            federated.strategy,
            federated.clients_per_round,
            federated.num_clients,
            federated.weight_by,
        )

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterator[Message]:
        """Draw the round's cohort and return a generator of one message per node that hosts members of it."""
        self.federation.grid.check_stop()
        run, federated = self.federation.config, self.federation.config.federated
        number = server_round + self._offset
        asked = cohort(run.seed, number, federated.num_clients, federated.clients_per_round)
        load = {partition: float(about["train_audio_s"]) for partition, about in self.federation.partitions.items()}
        self._shares = assign_to_nodes(asked, self.federation.hosts, load)
        self._model = torch.from_numpy(np.array(arrays["model"].numpy()))
        self.outcome = RoundOutcome(number, asked)
        self._started = time.monotonic()
        self.outcome.bytes_down = len(self._shares) * self._model.numel() * self._model.element_size()
        return (
            self._request(node, protocol.TRAIN, partitions, arrays["model"], number) for node, partitions in self._shares.items()
        )

    def evaluation_messages(self, model: Array, number: int) -> Iterator[Message]:
        """Yield messages that have every client score ``model`` on its validation split."""
        for node, partitions in self.federation.everyone().items():
            yield self._request(node, protocol.EVALUATE, partitions, model, number)

    def _request(self, node: int, kind: str, partitions: list[int], model: Array, number: int) -> Message:
        task = {
            "round": number,
            "partitions": partitions,
            "positions": {str(partition): self.positions.get(partition, 0) for partition in partitions},
            "layout": self.federation.layout,
            "targets": self._targets_key,
        }
        timeout_s = self.federation.config.federated.round_timeout_s
        return self.federation.message(node, kind, task, group=str(number), timeout_s=timeout_s, arrays={"model": model})

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Fold the replies one at a time and step the server optimiser.

        Raises:
            FederationError: when fewer than ``federated.min_clients`` usable updates arrived; the model stays that of the last checkpoint.
        """
        fold = ExactSum(self._model.numel())
        unheard = set(self._shares)
        for message in replies:
            reply = protocol.read_reply(message)
            unheard.discard(reply.node_id)
            self._fold(reply, fold)
            done = len(self.outcome.clients) + len(self.outcome.failures)
            self._on_client(self.outcome.number, done, len(self.outcome.asked))
        late = [Failure(partition, "no_answer") for node in unheard for partition in self._shares[node]]
        self.outcome.failures += late
        self._check_quorum()
        self.outcome.seconds["train"] = time.monotonic() - self._started
        step_started = time.monotonic()
        self.between_steps = False
        updated = self.optimizer.step(self._model, fold.mean())
        if not bool(torch.isfinite(updated).all()):
            raise FederationError(
                f"round {self.outcome.number}: the server optimiser's step is not finite; lower federated.eta or federated.server_learning_rate",
                setting="federated.strategy",
            )
        self.between_steps = True
        self.outcome.seconds["server_step"] = time.monotonic() - step_started
        for partition, metrics in self.outcome.clients.items():
            self.positions[partition] = self.positions.get(partition, 0) + int(metrics["train_micro_batches"])
        return ArrayRecord({"model": Array(updated.numpy())}), MetricRecord({"clients": len(self.outcome.clients)})

    def _fold(self, reply: Reply, fold: ExactSum) -> None:
        """Add a reply to the sum; anything wrong with it becomes a failure of the clients that the node was asked for."""
        self.outcome.bytes_up += reply.num_bytes
        asked = self._shares.get(reply.node_id, [])
        named = {failure.partition: failure for failure in reply.failures if failure.partition in asked}
        whole = next((failure for failure in reply.failures if failure.partition < 0), None)
        code = whole.code if whole else "no_result"
        if reply.metrics and not whole:
            try:
                self._check_reply(reply, set(asked) - set(named))
                self._add(reply, fold)
            except UpdateRejected as rejected:
                code = f"update_{rejected.reason}"
            except (KeyError, TypeError, ValueError):
                code = "malformed"
            else:
                self.outcome.clients.update(reply.metrics)
        unheard = set(asked) - set(named) - set(self.outcome.clients)
        others = [Failure(partition, code, whole.setting if whole else "") for partition in sorted(unheard)]
        self.outcome.failures += [*named.values(), *others]

    def _add(self, reply: Reply, fold: ExactSum) -> None:
        if "update" in reply.arrays:
            (metrics,) = reply.metrics.values()
            fold.add(torch.from_numpy(np.array(reply.arrays["update"])), int(metrics["weight"]))
        else:
            weight = sum(int(metrics["weight"]) for metrics in reply.metrics.values())
            fold.merge(PartialSum(torch.from_numpy(np.array(reply.arrays["sum"])), weight, float(reply.info["bound"])))

    def _check_reply(self, reply: Reply, expected: set[int]) -> None:
        if reply.info.get("round") != self.outcome.number:
            raise UpdateRejected("round")
        if reply.info.get("layout") != self.federation.layout:
            raise UpdateRejected("layout")
        if not set(reply.metrics) <= expected - set(self.outcome.clients):
            raise UpdateRejected("partition")
        for metrics in reply.metrics.values():
            if not all(np.isfinite(value) for value in metrics.values()) or not {"weight", "train_micro_batches"} <= set(metrics):
                raise UpdateRejected("metrics")

    def _check_quorum(self) -> None:
        accepted, needed = len(self.outcome.clients), self.federation.config.federated.min_clients
        if accepted < needed:
            raise FederationError(
                f"round {self.outcome.number}: {accepted} usable updates of {len(self.outcome.asked)} asked, {needed} needed "
                f"(federated.min_clients). {describe_failures(self.outcome.failures)}",
                setting="federated.min_clients",
            )

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """No message: clients score the incoming model in the next round's train message, which saves a round trip."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None
