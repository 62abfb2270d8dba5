"""A round whose updates the server never sees: a cohort masks them, their sum is opened, and the
model steps by it as in any other round.

Who is in the sum is in the journal before it is opened: the clients open one set of a round. A
round that was opened before an interruption is repeated with the same cohort, model and set, under
fresh masks; one that cannot be read is skipped: the model stays, and those in its sum go on.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from fedhubert import live
from fedhubert.errors import FederationError
from fedhubert.federation.roster.connect import refresh
from fedhubert.federation.roster.nodes import describe_failures
from fedhubert.federation.rounds.drift import pooled_drift
from fedhubert.federation.rounds.journal import Entry
from fedhubert.federation.rounds.round import Round
from fedhubert.federation.rounds.secure_checks import (
    check_opened,
    is_possible,
    opened_before,
    power_above_weights,
)
from fedhubert.federation.rounds.secure_sum import SecureSum
from fedhubert.federation.rounds.shared import RoundResult, Rounds
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.figures import CLEAR, train_names
from fedhubert.federation.updates.exact_sum import PartialSum, UpdateRejected, magnitude_of
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.messages.secure import Masked
from fedhubert.objectives.spec import spec_of

log = logging.getLogger("fedhubert")


class SecureRound(Round):
    """A round of secure sums."""

    def __init__(self, rounds: Rounds, number: int, model: torch.Tensor) -> None:
        super().__init__(rounds, number, model)
        self._spec = spec_of(self._federation.config.task)
        self._sum = SecureSum(
            self._federation,
            Train.KIND,
            number,
            self._federation.layout.numel,
            train_names(self._spec),
            bits=None if self._ring is None else self._ring.bits,
        )
        self._cohort: list[int] = []
        self._first_scale = 0

    def messages(self) -> Iterator[Message]:
        """Return one message per node that hosts some of the cohort; none where the round is known
        to be skipped."""
        if self._replayed is not None and self._replayed.skipped:
            return iter(())
        return self._ask(self._wanted)

    def finish(self, replies: Iterable[Message]) -> RoundResult:
        """Take in the masked parts, asking again where they are too few; write down whose sum it
        is, open it, and step the server optimiser.

        Raises:
            FederationError: too few parts; the model stays that of the last round.
            StepNotFinite, CheckpointError: as :meth:`Round.finish`.
        """
        outcome, replayed = self._outcome, self._replayed
        if replayed is not None and replayed.skipped:
            outcome.asked, outcome.failures = list(replayed.asked), list(replayed.failures)
            return self._skip(replayed.skipped, replayed.cohort, replayed.micro_batches)
        self._gather_enough(replies)
        outcome.asked.sort()
        if replayed is not None and self._too_few():
            log.warning(
                "round %d was opened over clients %s before the interruption, and not all of them "
                "can repeat it (%s): it is skipped, and from "
                "here the run is another",
                outcome.number,
                sorted(replayed.steps),
                describe_failures(outcome.failures),
            )
            return self._skip("secure_repeat", replayed.cohort, replayed.micro_batches)
        self._check_quorum()
        self._set_aside_silent()
        outcome.seconds["train"] = time.monotonic() - self._started
        started = time.monotonic()
        self._write_journal(replayed.release if replayed else "")
        try:
            self._open()
        except SecureError as error:
            log.error("round %d: %s", outcome.number, error)
            result = self._skip(error.code, self._cohort, self._micro_batches())
            self.rounds.check_not_stuck(error)
            return result
        outcome.seconds["open"] = time.monotonic() - started
        started = time.monotonic()
        updated = self._step()
        outcome.seconds["server_step"] = time.monotonic() - started
        self.rounds.silent_rounds = 0
        return RoundResult(outcome, self._model, updated)

    def _choose(self) -> tuple[list[int], int]:
        """Return whom the round asks: where a sum of its model was opened before, those in it; the
        others are known to have dropped out."""
        self._kept_cohort, self._kept = opened_before(
            self._replayed, self.rounds.state, self.rounds.journal, self._outcome.number
        )
        return (self._kept, len(self._kept)) if self._kept else super()._choose()

    def _ask_for(self, asked: list[int]) -> Iterator[Message]:
        """Begin an attempt with those of ``asked`` that are connected; return its messages."""
        replayed, rounds = self._replayed, self.rounds
        # a client that is away counts as dropped out where the cohort must stay
        self._cohort = sorted(self._kept_cohort or asked)
        self._outcome.clients.clear()
        journal = rounds.journal
        attempt = (
            journal.begin(Train.KIND, self._outcome.number, self._cohort, self._scale())
            if journal
            else self._attempt
        )
        state = rounds.state
        self._terms, self._keys = self._sum.begin(
            self._cohort,
            attempt,
            positions={partition: state.positions.get(partition, 0) for partition in self._cohort},
            steps=replayed.steps if replayed else None,
            site_rounds=state.versions(self._cohort) if rounds.keeps_state else None,
            scale=self._scale(),
            norm=2.0 ** math.frexp(state.norms[-1])[1] if any(state.norms[-1:]) else 1.0,
        )
        messages = super()._ask_for(asked)
        self._outcome.bytes_down += len(self._shares) * sum(
            array.nbytes for array in self._keys.values()
        )
        return messages

    def _scale(self) -> int:
        """Return a power of two that no weight of the cohort exceeds: of all attempts, and of all
        rounds with one model, that of the first."""
        if self._first_scale:
            return self._first_scale
        if self.rounds.journal:
            number = self._outcome.number - bool(self.rounds.state.secure_cohort)
            self._first_scale = self.rounds.journal.attempt_of(Train.KIND, number).scale
        self._first_scale = self._first_scale or power_above_weights(
            self._federation, self._limits, self._cohort
        )
        return self._first_scale

    def _message(self, node: int, partitions: list[int]) -> Message:
        return self._message_of(
            node, partitions, arrays=self._keys, attempt=self._attempt, secure=self._terms
        )

    def _gather(self, replies: Iterable[Message]) -> None:
        """Add masked parts until all are in, or the deadline has passed."""
        outcome, unheard = self._outcome, set(self._shares)
        failures: list[Failure] = []
        for message in replies:
            asked = self._shares.get(message.metadata.src_node_id, [])
            reply = self._federation.read(message, Masked, self._sum.asked_for(asked))
            unheard.discard(reply.node_id)
            outcome.bytes_up += reply.num_bytes
            outcome.bytes_up_fp32 += 4 * self._federation.layout.numel * len(reply.metrics)
            used: set[int] = set()
            clear = {
                partition: {name: numbers[name] for name in CLEAR if name in numbers}
                for partition, numbers in reply.metrics.items()
            }
            code = "malformed" if reply.answer is not None and reply.metrics else "no_result"
            if all(
                is_possible(self._federation, self._limits, *item) for item in clear.items()
            ) and self._sum.take(reply):
                outcome.clients.update(clear)
                used = set(clear)
            failures += reply.failures_of((p for p in asked if p not in used), code)
            live.reached(len(outcome.clients))
        outcome.failures += failures
        self._note_silent(unheard)

    @property
    def _needed(self) -> int:
        return len(self._kept) or max(self._federated.quorum, self._sum.least)

    def _too_few(self) -> bool:
        return len(self._outcome.clients) < self._needed

    def _ask_again(self) -> None:
        """Begin another attempt: with the same clients in a round that must be repeated as it was,
        else with those who answered and the next of the queue; when there are none left, with
        those that failed, too."""
        self._attempt += 1
        refresh(self._federation)
        outcome = self._outcome
        log.warning(
            "round %d: %d masked updates, %d wanted; beginning anew (%d of %d). %s",
            outcome.number,
            len(outcome.clients),
            self._needed,
            self._retries,
            self._federated.round_retries,
            describe_failures(outcome.failures),
        )
        if self._kept:
            again = list(self._kept)
        else:
            there = [p for p in self._queue if p in self._federation.connected]
            others = there[: self._wanted - len(outcome.clients)]
            again = [*outcome.clients, *others]
            if len(again) < self._wanted:
                again += [p for p in outcome.asked if p not in again]
            self._queue = [partition for partition in self._queue if partition not in others]
        self._gather_from(self._ask_for(sorted(set(again) & self._federation.connected)))

    def _check_quorum(self) -> None:
        outcome = self._outcome
        if self._too_few() and self._kept:
            raise FederationError(
                f"round {outcome.number}: a sum of this model was opened over clients "
                f"{self._kept}, and over nobody else may another be: all of "
                f"them have to answer. {describe_failures(outcome.failures)}; resume when they are "
                "back, or begin with another seed",
                setting="secure.protocol",
            )
        if self._too_few():
            raise FederationError(
                f"round {outcome.number}: {len(outcome.clients)} masked updates of "
                f"{len(self._cohort)} asked, {self._needed} needed (two thirds "
                "of those asked and one more; federated.min_clients; the roster's min_sites). "
                f"{describe_failures(outcome.failures)}",
                setting="secure.threshold",
            )

    def _micro_batches(self) -> dict[int, int]:
        return {
            partition: int(numbers["train_micro_batches"])
            for partition, numbers in sorted(self._outcome.clients.items())
        }

    def _write_journal(self, release: str) -> None:
        """Make the cohort and those in the sum durable: before it is opened, and, with differential
        privacy, once more with the name of what is released."""
        replayed, outcome = self._replayed, self._outcome
        if replayed:
            replayed.restore(outcome)
            if release == replayed.release:
                return
            if self._privacy and replayed.release:
                self._privacy.check_replay(outcome.number, sorted(outcome.clients))
        if self.rounds.journal and (release or not outcome.pooled):
            self.rounds.journal.write(
                Entry.of(outcome, release, self._cohort, self._micro_batches())
            )

    def _open(self) -> None:
        """Open the sum, and put it where that of plain updates would be; raises
        :class:`SecureError`."""
        outcome, clients = self._outcome, self._outcome.clients
        sums = self._sum.open(self._federated.round_timeout_s, self._federated.round_retries)
        check_opened(sums, self._federation, self._limits, sorted(clients))
        outcome.pooled = sums
        dropped = sorted(set(self._cohort) - set(clients))
        outcome.secure = self._sum.said(dropped)
        total = self._fold.total
        total.clear()
        try:
            total.merge(PartialSum(self._sum.integers, int(sums["weight"])))
        except UpdateRejected as rejected:
            raise SecureError("secure_garbage", f"the opened sum: {rejected.reason}") from None

    def _unclipped(self) -> int:
        return int(self._outcome.pooled["update_unclipped"])

    def _mean(self) -> torch.Tensor:
        sums, mean = self._outcome.pooled, self._fold.total.mean()
        self._outcome.drift = pooled_drift(
            sums,
            len(self._outcome.clients),
            self._terms.scale * self._terms.norm,
            magnitude_of(mean).norm,
        )
        factor = self.rounds.optimizer.pooled_factor(sums)
        return mean if factor == 1.0 else mean.mul_(factor)

    def _skip(
        self, reason: str, cohort: Sequence[int], micro_batches: dict[int, int]
    ) -> RoundResult:
        """Leave the model as it is: the clients may have opened what could not be read, and open no
        other set of it. They go on from where they are; raises :class:`CheckpointError`."""
        outcome, state, journal = self._outcome, self.rounds.state, self.rounds.journal
        outcome.clients.clear()
        outcome.secure = {"cohort": len(cohort), "skipped": reason}
        state.skip(cohort, micro_batches)
        if journal and not (self._replayed and self._replayed.skipped):
            journal.write(Entry.of(outcome, "", cohort, micro_batches, reason))
        outcome.seconds.setdefault("train", time.monotonic() - self._started)
        log.warning(
            "round %d is skipped (%s): the model stays, and the next round asks the same clients",
            outcome.number,
            reason,
        )
        return RoundResult(outcome, self._model, self._model)
