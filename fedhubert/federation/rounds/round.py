"""One round: whom it asks, what becomes of their replies, and the server optimiser's step."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch

from fedhubert import live
from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import refresh
from fedhubert.federation.roster.nodes import describe_failures
from fedhubert.federation.roster.sampling import asking_order, assign_to_nodes
from fedhubert.federation.rounds.aggregate import RoundFold
from fedhubert.federation.rounds.broadcast import Broadcast
from fedhubert.federation.rounds.journal import Entry
from fedhubert.federation.rounds.limits import asked_for, limits_of
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.ring import ring_of, terms_of, warn_of_clipping
from fedhubert.federation.rounds.shared import RoundResult, Rounds, StepNotFinite
from fedhubert.federation.strategies.strategy import server_share, stepped
from fedhubert.federation.updates.exact_sum import magnitude_of
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Arrays, Failure
from fedhubert.federation.wire.messages.rounds import Train, Trained

log = logging.getLogger("fedhubert")


class Round:
    """A round that is being played: :meth:`messages` are to be sent, and :meth:`finish` takes their
    replies."""

    def __init__(self, rounds: Rounds, number: int, model: torch.Tensor) -> None:
        self.rounds, self._federation, self._model = rounds, rounds.federation, model
        self._federated, self._privacy = rounds.federation.config.federated, rounds.privacy
        self._federation.grid.check_stop()
        refresh(self._federation)
        self._broadcast = Broadcast.of(self._federation, rounds.targets_key, model)
        self._replayed = rounds.journal.get(number) if rounds.journal else None
        self._outcome = RoundOutcome(number, [])
        self._queue, self._wanted = self._choose()
        self._limits = limits_of(self._federation, rounds.state, self._replayed)
        self._ring = ring_of(self._federation, rounds.state, self._limits.weight)
        if self._ring is not None:
            self._limits = replace(self._limits, weight=self._ring.max_weight)
        self._fold = RoundFold(
            self._federated,
            self._federation.config.client.sgd_momentum,
            self._federation.layout,
            self._broadcast.reference,
            self._outcome,
            self._limits,
            self._privacy.clip_norm if self._privacy else None,
            total=rounds.total,
            seed=self._federation.config.seed,
            ring=self._ring,
        )
        self._shares: dict[int, list[int]] = {}
        self._attempt = self._retries = 0
        self._silent: set[int] = set()
        self._started = time.monotonic()

    def messages(self) -> Iterator[Message]:
        """Return one message per node that hosts some of those who are asked first."""
        last = self._federated.num_rounds
        live.doing(f"round {self._outcome.number}/{last}", self._outcome.number, last)
        live.counting(self._wanted, "clients")
        return self._ask(
            self._wanted
            if self._replayed
            else math.ceil(self._wanted * self._federated.over_commit)
        )

    def finish(self, replies: Iterable[Message]) -> RoundResult:
        """Take in the replies one at a time, ask again where they are too few, write the journal,
        and step the server optimiser.

        Raises:
            FederationError: fewer usable updates than the quorum; the model stays that of the last
                round.
            StepNotFinite: the step was taken and cannot be used.
            CheckpointError: the journal cannot be written.
        """
        outcome = self._outcome
        self._gather_enough(replies)
        self._fold.settle()
        outcome.asked.sort()
        self._check_quorum()
        self._set_aside_silent()
        outcome.seconds["train"] = time.monotonic() - self._started
        started = time.monotonic()
        updated = self._step()
        outcome.seconds["server_step"] = time.monotonic() - started
        return RoundResult(outcome, self._model, updated)

    def _gather_enough(self, replies: Iterable[Message]) -> None:
        self._gather(replies)
        while self._too_few() and self._retries < self._federated.round_retries:
            self._retries += 1
            self._ask_again()

    def _gather_from(self, messages: Iterable[Message]) -> None:
        timeout_s = self._federated.round_timeout_s
        self._gather(self._federation.grid.send_and_receive(messages, timeout=timeout_s))

    def _step(self) -> torch.Tensor:
        """Write the journal, then move the model; return the new one [P]."""
        outcome, privacy = self._outcome, self._privacy
        release = (
            privacy.release(
                outcome.number, self._fold.total, len(outcome.clients), self._unclipped()
            )
            if privacy
            else None
        )
        self._write_journal(release.tag if release else "")
        if self._ring is not None:
            warn_of_clipping(outcome, self._federated.ring_clip, self._federation.layout.numel)
        mean = release.mean if release else self._mean()
        share = server_share(self._federated, outcome.number)
        layout = self._federation.layout
        updated = stepped(self.rounds.optimizer, layout, self._model, mean, share)
        if not math.isfinite(magnitude_of(updated).peak):
            raise StepNotFinite(
                f"round {outcome.number}: the server optimiser's step is not finite; lower "
                "federated.eta or federated.server_learning_rate",
                setting="federated.strategy",
            )
        self.rounds.state.accept(outcome)
        if privacy and release:
            outcome.privacy = privacy.metrics(outcome.number)
            privacy.clip_norm = release.next_clip_norm
        return updated

    def _unclipped(self) -> int:
        """Return how many of the updates were short enough (differential privacy)."""
        return sum(bool(metrics["update_unclipped"]) for metrics in self._outcome.clients.values())

    def _mean(self) -> torch.Tensor:
        """Return the mean update [P] of those accepted."""
        return self._fold.mean()

    def _choose(self) -> tuple[list[int], int]:
        """Return the partitions in the order in which the round asks them, and how many it
        wants."""
        number = self._outcome.number
        if self._replayed:
            return sorted(self._replayed.steps), len(self._replayed.steps)
        cohort = self._privacy.cohort(number) if self._privacy else None
        if cohort is not None:
            away = set(cohort) - self._federation.connected
            self._outcome.failures = [
                Failure(partition, "not_connected") for partition in sorted(away)
            ]
            return cohort, len(cohort)
        return asking_order(self._federation.config, number), self._federated.clients_per_round

    def _ask(self, count: int) -> Iterator[Message]:
        """Return messages to the next ``count`` partitions of the queue that are connected."""
        connected = self._federation.connected
        present = (partition for partition in self._queue if partition in connected)
        asked = list(islice(present, count))
        taken = set(asked)
        self._queue = [partition for partition in self._queue if partition not in taken]
        return self._ask_for(asked)

    def _ask_for(self, asked: list[int]) -> Iterator[Message]:
        """Return messages to those of ``asked`` that are connected."""
        outcome = self._outcome
        before, partitions = set(outcome.asked), self._federation.partitions
        outcome.asked += [partition for partition in asked if partition not in before]
        load = {
            partition: float(partitions[partition]["train_audio_s"])
            for partition in asked
            if partition in partitions
        }
        self._shares = assign_to_nodes(asked, self._federation.hosts, load)
        self._fold.expect(self._shares)
        outcome.bytes_down += len(self._shares) * self._broadcast.num_bytes
        outcome.bytes_down_fp32 += len(self._shares) * self._broadcast.reference.numel() * 4
        return (self._message(node, shared) for node, shared in self._shares.items())

    def _message(self, node: int, partitions: list[int]) -> Message:
        return self._message_of(node, partitions)

    def _message_of(
        self,
        node: int,
        partitions: list[int],
        arrays: Arrays | None = None,
        **also: object,
    ) -> Message:
        state = self.rounds.state
        more: dict[str, object] = {
            **also,
            "attempt": self._attempt,
            "norm_limit": self._limits.norm,
            "weight_limit": self._limits.weight,
        }
        if self._privacy:
            more["clip_norm"] = self._privacy.clip_norm
        if self._ring:
            more["ring"] = terms_of(self._ring)
        if self._replayed:
            more["steps"] = {partition: self._replayed.steps[partition] for partition in partitions}
        if self.rounds.keeps_state:
            more["site_rounds"] = state.versions(partitions)
            more["checkpoints"] = tuple(self.rounds.checkpoints())
        return self._broadcast.message(
            node, Train, partitions, self._outcome.number, state.positions, arrays, **more
        )

    def _gather(self, replies: Iterable[Message]) -> None:
        """Fold replies until the round has enough, or all are in, or the deadline has passed."""
        outcome, unheard = self._outcome, set(self._shares)
        for message in replies:
            asked = self._shares.get(message.metadata.src_node_id, [])
            reply = self._federation.read(
                message, Trained, asked_for(self._federation.config, self._federation.layout, asked)
            )
            unheard.discard(reply.node_id)
            self._fold.add(reply)
            live.reached(min(len(outcome.clients), self._wanted))
            if len(outcome.clients) >= self._wanted and unheard:
                close = getattr(replies, "close", None)
                if close is not None:
                    close()
                unheard.clear()  # over-committed: the others are not needed, and have not failed
                break
        self._note_silent(unheard)
        if fell := self._fold.judge():
            self._attempt += 1
            self._gather_from(self._ask_for(fell))

    def _note_silent(self, nodes: set[int]) -> None:
        self._silent |= nodes
        self._outcome.failures += [
            Failure(partition, "no_answer")
            for node in sorted(nodes)
            for partition in self._shares[node]
        ]

    def _set_aside_silent(self) -> None:
        """Do not wait again for nodes that have let the round wait out its time, where the others
        suffice."""
        hosts = self._federation.hosts
        others = {
            partition
            for node, hosted in hosts.items()
            if node not in self._silent
            for partition in hosted
        }
        if len(others) >= self._federated.quorum:
            self._federation.set_aside(self._silent)

    def _too_few(self) -> bool:
        """Below the quorum; or, in a replay, without all that were accepted before.

        Never with differential privacy: whether others fail must not decide who is asked.
        """
        accepted = len(self._outcome.clients)
        if self._privacy and not self._replayed:
            return False
        return accepted < self._wanted if self._replayed else accepted < self._federated.quorum

    def _ask_again(self) -> None:
        """Ask the next of the queue, and when there are none left, those that failed."""
        self._attempt += 1
        refresh(self._federation)
        outcome = self._outcome
        if not set(self._queue) & self._federation.connected:
            self._queue = [
                partition for partition in outcome.asked if partition not in outcome.clients
            ]
        log.warning(
            "round %d: %d usable updates, %d wanted; asking again (%d of %d). %s",
            outcome.number,
            len(outcome.clients),
            self._wanted,
            self._retries,
            self._federated.round_retries,
            describe_failures(outcome.failures),
        )
        self._gather_from(self._ask(self._wanted - len(outcome.clients)))

    def _check_quorum(self) -> None:
        outcome, needed = self._outcome, self._federated.quorum
        if self._privacy:
            self.rounds.check_not_silent(outcome, self._wanted)
        elif len(outcome.clients) < needed:
            absent = sorted(set(range(self._federated.num_clients)) - self._federation.connected)
            away = f" Not connected: {absent}." if absent else ""
            raise FederationError(
                f"round {outcome.number}: {len(outcome.clients)} usable updates of "
                f"{len(outcome.asked)} asked, {needed} needed "
                f"(federated.min_clients). {describe_failures(outcome.failures)}{away}",
                setting="federated.min_clients",
            )

    def _write_journal(self, release: str) -> None:
        """Make the accepted set, and the name of what is ``release``d of it, durable; or, in a
        replay, check that they are those of before."""
        outcome, replayed = self._outcome, self._replayed
        if replayed and set(outcome.clients) == set(replayed.steps):
            replayed.restore(outcome)
            if release == replayed.release:
                return
        if replayed and self._privacy:
            self._privacy.check_replay(outcome.number, sorted(outcome.clients))
        elif replayed:
            log.warning(
                "round %d accepted clients %s before the interruption, and now only %s answer: "
                "from here the run is another",
                outcome.number,
                sorted(replayed.steps),
                sorted(outcome.clients),
            )
        if self.rounds.journal:
            self.rounds.journal.write(Entry.of(outcome, release))
