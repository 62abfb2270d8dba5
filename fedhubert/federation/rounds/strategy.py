"""The federated strategy: a Flower ``Strategy`` driven by Flower's own ``start()``.

Each round it asks partitions in an order drawn from the run's seed, sends the global model to the nodes that host them, folds their updates as
they arrive, and takes one step of the server optimiser. Rounds of ``start()`` count from 1; ``first_round`` maps them to the
run's own rounds after a resume.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedhubert.errors import FederationError
from fedhubert.federation.privacy.mechanism import CentralPrivacy
from fedhubert.federation.roster.nodes import Federation, describe_failures, refresh
from fedhubert.federation.roster.sampling import asking_order, assign_to_nodes
from fedhubert.federation.rounds.aggregate import RoundFold
from fedhubert.federation.rounds.journal import Entry, Journal
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.strategies.strategy import ServerStrategy, client_job, server_share
from fedhubert.federation.updates.codecs import decode, encode
from fedhubert.federation.updates.exact_sum import ExactSum, measure
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.arrays import HeldArray, publish
from fedhubert.federation.wire.protocol import Failure
from fedhubert.objectives.spec import spec_of
from fedhubert.training.parameters import tensor_of

log = logging.getLogger("fedhubert")

ClientsDone = Callable[[int, int, int], None]
"""Told after every reply: the round, the clients done, the clients asked."""


class FederatedStrategy(Strategy):
    """Clients by partition id, streaming exact aggregation, one server-optimiser step.

    Args:
        federation: The connected nodes.
        optimizer: The run's strategy, with its state.
        first_round: Our number of the round that ``start()`` calls 1.
        state: What earlier rounds left; advanced as rounds are accepted.
        journal: Where the accepted clients are written before each step; rounds already in it are replayed as they went.
        checkpoints: Returns the rounds that a resume may go back to, for which sites keep their state.
        privacy: Draws the cohorts and adds the noise; None: no differential privacy.
        on_client: Progress callback.
    """

    def __init__(
        self,
        federation: Federation,
        optimizer: ServerStrategy,
        *,
        first_round: int = 1,
        state: RoundState | None = None,
        journal: Journal | None = None,
        targets_key: str = "",
        checkpoints: Callable[[], list[int]] = list,
        privacy: CentralPrivacy | None = None,
        on_client: ClientsDone | None = None,
    ) -> None:
        self.federation = federation
        self.optimizer = optimizer
        self.state = state or RoundState()
        self.outcome = RoundOutcome(0, [])
        self.incoming = torch.empty(0)
        """The model [P] that the current round began with."""
        self.between_steps = True
        """False from the start of a server-optimiser step until its result is accepted: the optimiser's state is then ahead of the model."""
        self._offset = first_round - 1
        self._journal = journal
        self._targets_key = targets_key
        self._checkpoints = checkpoints
        self._privacy = privacy
        self._silent_rounds = 0
        self._on_client = on_client or (lambda round_number, done, asked: None)
        self._keeps_state = client_job(federation.config).keeps_state
        self._total = ExactSum(0 if optimizer.needs_every_update else federation.layout.numel)

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
        """Choose whom the round asks first and return a generator of one message per node that hosts some of them."""
        self.federation.grid.check_stop()
        refresh(self.federation)
        number = server_round + self._offset
        self.incoming = tensor_of(arrays["model"].numpy())
        self._message_array, self._reference = self.pack(self.incoming)
        self._replayed = self._journal.get(number) if self._journal else None
        federated = self.federation.config.federated
        self.outcome = RoundOutcome(number, [])
        if self._replayed:
            self._queue = sorted(self._replayed.steps)
            self._wanted = len(self._queue)
        elif self._privacy:
            self._queue = self._privacy.cohort(number)
            self._wanted = len(self._queue)
            away = set(self._queue) - self.federation.connected
            self.outcome.failures = [Failure(partition, "not_connected") for partition in sorted(away)]
        else:
            self._queue = asking_order(self.federation.config, number)
            self._wanted = federated.clients_per_round
        self._norm_limit = self.state.norm_limit(federated.max_norm_ratio)
        self._fold = RoundFold(
            federated,
            self.federation.config.client.sgd_momentum,
            self.federation.layout,
            self._reference,
            self.outcome,
            self._norm_limit,
            self._privacy.clip_norm if self._privacy else None,
            total=self._total,
            objective=spec_of(self.federation.config.task),
            seed=self.federation.config.seed,
        )
        self._attempt = 0
        self._started = time.monotonic()
        return self._ask(self._wanted if self._replayed else math.ceil(self._wanted * federated.over_commit))

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Fold the replies one at a time, ask again where they are too few, and step the server optimiser.

        Raises:
            FederationError: when fewer usable updates than the quorum arrived; the model stays that of the last checkpoint.
        """
        outcome = self.outcome
        self._gather(replies)
        while self._too_few() and self._attempt < self.federation.config.federated.round_retries:
            self._ask_again()
        outcome.asked.sort()
        self._check_quorum()
        outcome.seconds["train"] = time.monotonic() - self._started
        step_started = time.monotonic()
        release = self._privacy.release(outcome.number, self._fold.total, outcome.clients) if self._privacy else None
        self._write_journal(release.tag if release else "")
        self.between_steps = False
        share = server_share(self.federation.config.federated, outcome.number)
        updated = self.optimizer.step(self.incoming, release.mean if release else self._fold.mean(), share)
        if not math.isfinite(measure(updated).peak):
            raise FederationError(
                f"round {outcome.number}: the server optimiser's step is not finite; lower federated.eta or federated.server_learning_rate",
                setting="federated.strategy",
            )
        self.between_steps = True
        outcome.seconds["server_step"] = time.monotonic() - step_started
        self.state.accept(outcome)
        if self._privacy and release:
            outcome.privacy = self._privacy.figures(outcome.number)
            self._privacy.clip_norm = release.next_clip_norm
        record = ArrayRecord()
        record["model"] = HeldArray(updated.numpy())
        return record, MetricRecord({"clients": len(outcome.clients)})

    def pack(self, model: torch.Tensor) -> tuple[Array, torch.Tensor]:
        """Return ``model`` [P] as it travels, and as the clients read it."""
        codec, shapes = self.federation.config.federated.broadcast_codec, self.federation.layout.shapes
        arrays = encode(codec, model, shapes)
        return publish(arrays["update"]), decode(codec, arrays, shapes)

    def evaluation_messages(self, model: torch.Tensor, number: int) -> Iterator[Message]:
        """Yield messages that have every client score ``model`` on its validation split."""
        self._message_array, self._reference = self.pack(model)
        for node, partitions in self.federation.everyone().items():
            yield self._request(node, protocol.EVALUATE, partitions, number)

    def _ask(self, count: int) -> Iterator[Message]:
        """Return messages to the next ``count`` partitions of the queue that are connected."""
        connected = self.federation.connected
        asked = [partition for partition in self._queue if partition in connected][:count]
        self._queue = [partition for partition in self._queue if partition not in asked]
        self.outcome.asked += [partition for partition in asked if partition not in self.outcome.asked]
        load = {partition: float(about["train_audio_s"]) for partition, about in self.federation.partitions.items()}
        self._shares = assign_to_nodes(asked, self.federation.hosts, load)
        self._fold.expect(self._shares)
        self.outcome.bytes_down += len(self._shares) * self._reference.numel() * np.dtype(self._message_array.dtype).itemsize
        self.outcome.bytes_down_fp32 += len(self._shares) * self._reference.numel() * 4
        return (self._request(node, protocol.TRAIN, shared, self.outcome.number) for node, shared in self._shares.items())

    def _gather(self, replies: Iterable[Message]) -> None:
        """Fold replies until the round has enough, or all are in, or the deadline has passed."""
        outcome, unheard = self.outcome, set(self._shares)
        for message in replies:
            reply = protocol.read_reply(message)
            unheard.discard(reply.node_id)
            self._fold.add(reply)
            self._on_client(outcome.number, min(len(outcome.clients), self._wanted), self._wanted)
            if len(outcome.clients) >= self._wanted and unheard:
                close = getattr(replies, "close", None)
                if close is not None:
                    close()
                return  # over-committed: the others are not needed, and have not failed
        outcome.failures += [Failure(partition, "no_answer") for node in sorted(unheard) for partition in self._shares[node]]

    def _too_few(self) -> bool:
        """Below the quorum; or, in a replay, without all that were accepted before.

        Never with differential privacy: whether others fail must not decide who is asked.
        """
        accepted = len(self.outcome.clients)
        if self._privacy and not self._replayed:
            return False
        return accepted < self._wanted if self._replayed else accepted < self.federation.config.federated.quorum

    def _ask_again(self) -> None:
        """Ask the next of the queue, and when there are none left, those that failed."""
        self._attempt += 1
        refresh(self.federation)
        missing = self._wanted - len(self.outcome.clients)
        if not set(self._queue) & self.federation.connected:
            self._queue = [partition for partition in self.outcome.asked if partition not in self.outcome.clients]
        log.warning(
            "round %d: %d usable updates, %d wanted; asking again (%d of %d). %s",
            self.outcome.number,
            len(self.outcome.clients),
            self._wanted,
            self._attempt,
            self.federation.config.federated.round_retries,
            describe_failures(self.outcome.failures),
        )
        messages = self._ask(missing)
        self._gather(self.federation.grid.send_and_receive(messages, timeout=self.federation.config.federated.round_timeout_s))

    def _check_quorum(self) -> None:
        accepted, needed = len(self.outcome.clients), self.federation.config.federated.quorum
        if self._privacy:
            self._check_not_silent()
        elif accepted < needed:
            absent = sorted(set(range(self.federation.config.federated.num_clients)) - self.federation.connected)
            away = f" Not connected: {absent}." if absent else ""
            raise FederationError(
                f"round {self.outcome.number}: {accepted} usable updates of {len(self.outcome.asked)} asked, {needed} needed "
                f"(federated.min_clients). {describe_failures(self.outcome.failures)}{away}",
                setting="federated.min_clients",
            )

    def _check_not_silent(self) -> None:
        """With differential privacy a round of noise alone is one like any other; a row of them in which clients were asked has broken down."""
        self._silent_rounds = self._silent_rounds + 1 if self._wanted and not self.outcome.clients else 0
        if self._silent_rounds > self.federation.config.federated.round_retries:
            raise FederationError(
                f"round {self.outcome.number}: no usable update in {self._silent_rounds} rounds in a row (federated.round_retries), only noise. "
                f"{describe_failures(self.outcome.failures)}",
                setting="federated.round_retries",
            )

    def _write_journal(self, release: str) -> None:
        """Make the accepted set, and the name of what is ``release``d of it, durable; or, in a replay, check that they are those of before."""
        outcome = self.outcome
        same = self._replayed is not None and set(outcome.clients) == set(self._replayed.steps)
        if self._replayed and same:
            outcome.asked, outcome.failures = list(self._replayed.asked), list(self._replayed.failures)
            for name, count in self._replayed.bytes.items():
                setattr(outcome, name, count)
            if release == self._replayed.release:
                return
        if self._replayed and self._privacy:
            self._privacy.check_replay(outcome.number, sorted(outcome.clients))
        elif self._replayed:
            log.warning(
                "round %d accepted clients %s before the interruption, and now only %s answer: from here the run is another",
                outcome.number,
                sorted(self._replayed.steps),
                sorted(outcome.clients),
            )
        if self._journal:
            steps = {partition: int(outcome.clients[partition]["train_steps"]) for partition in sorted(outcome.clients)}
            counts = {name: getattr(outcome, name) for name in ("bytes_down", "bytes_up", "bytes_down_fp32", "bytes_up_fp32")}
            self._journal.write(Entry(outcome.number, outcome.asked, steps, outcome.failures, counts, release))

    def _request(self, node: int, kind: str, partitions: list[int], number: int) -> Message:
        federated = self.federation.config.federated
        task: dict[str, Any] = {
            "round": number,
            "partitions": partitions,
            "positions": {str(partition): self.state.positions.get(partition, 0) for partition in partitions},
            "layout": self.federation.layout.fingerprint,
            "targets": self._targets_key,
            "broadcast_codec": federated.broadcast_codec,
            "budget_s": federated.round_timeout_s,
        }
        if kind == protocol.TRAIN:
            task |= {"attempt": self._attempt, "norm_limit": self._norm_limit}
            if self._privacy:
                task["clip_norm"] = self._privacy.clip_norm
            if self._replayed:
                task["steps"] = {str(partition): self._replayed.steps[partition] for partition in partitions}
            if self._keeps_state:
                task["site_rounds"] = {str(partition): self.state.site_rounds.get(partition, 0) for partition in partitions}
                task["checkpoints"] = self._checkpoints()
        arrays = {"model": self._message_array}
        return self.federation.message(node, kind, task, group=str(number), timeout_s=federated.round_timeout_s, arrays=arrays)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """No message: clients score the incoming model in the next round's train message, which saves a round trip."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None
