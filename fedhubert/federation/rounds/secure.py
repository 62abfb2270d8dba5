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

from fedhubert.errors import FederationError
from fedhubert.federation.roster.bounds import check_sums, training_bounds
from fedhubert.federation.roster.connect import refresh
from fedhubert.federation.roster.nodes import describe_failures
from fedhubert.federation.rounds.aggregate import pooled_drift
from fedhubert.federation.rounds.journal import Attempt, Entry
from fedhubert.federation.rounds.limits import sums_of
from fedhubert.federation.rounds.metrics import check_metrics
from fedhubert.federation.rounds.round import Round, RoundResult, Rounds
from fedhubert.federation.rounds.secure_sum import SecureSum, Sums
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.figures import CLEAR, train_names
from fedhubert.federation.updates.exact_sum import PartialSum, UpdateRejected, magnitude_of
from fedhubert.federation.wire.flower import Message
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Evaluate, Train
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
        self._gather(replies)
        while self._too_few() and self._retries < self._federated.round_retries:
            self._retries += 1
            self._ask_again()
        outcome.asked.sort()
        if replayed is not None and self._too_few():
            log.warning(
                "round %d was opened over clients %s before the interruption, and not all of them can repeat it (%s): it is skipped, and from "
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
            self._check_not_stuck(error)
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
        self._kept_cohort, self._kept = self._find_kept()
        return (self._kept, len(self._kept)) if self._kept else super()._choose()

    def _find_kept(self) -> tuple[list[int], list[int]]:
        """Return the cohort of a sum of the round's model that was opened before, and over whom:
        another would be refused. A repeated round's, that of one that could not be read, or of the
        score of what was the final model until the run went on."""
        replayed, state, journal = self._replayed, self.rounds.state, self.rounds.journal
        if replayed:
            return list(replayed.cohort), sorted(replayed.steps)
        if state.secure_cohort:
            return list(state.secure_cohort), list(state.secure_included or state.secure_cohort)
        scored = (
            journal.attempt_of(Evaluate.KIND, self._outcome.number - 1) if journal else Attempt()
        )
        return (scored.cohort, scored.included) if scored.included else ([], [])

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
            site_rounds={
                partition: state.site_rounds.get(partition, 0) for partition in self._cohort
            }
            if rounds.keeps_state
            else None,
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
        self._first_scale = self._first_scale or self._largest_weight()
        return self._first_scale

    def _largest_weight(self) -> int:
        bounds = [
            training_bounds(self._federation.config, about, self._limits.weight).weight
            for partition in self._cohort
            if (about := self._federation.partitions.get(partition)) is not None
        ]
        return 1 << max(1, *bounds).bit_length()

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
            if all(self._possible(*item) for item in clear.items()) and self._sum.take(reply):
                outcome.clients.update(clear)
                used = set(clear)
            failures += reply.failures_of((p for p in asked if p not in used), code)
            self.rounds.on_client(outcome.number, len(outcome.clients), self._wanted)
        self._silent |= unheard
        failures += [
            Failure(partition, "no_answer")
            for node in sorted(unheard)
            for partition in self._shares[node]
        ]
        outcome.failures += failures

    def _possible(self, partition: int, numbers: dict[str, int | float]) -> bool:
        """Whether what a client says in the clear is not more than its data allows."""
        about = self._federation.partitions.get(partition)
        if about is None or numbers.keys() != set(CLEAR):
            return False
        bounds = training_bounds(self._federation.config, about, self._limits.weight)
        return (
            1 <= numbers["train_steps"] <= bounds.steps
            and 1 <= numbers["train_micro_batches"] <= bounds.micro_batches
        )

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
        again = sorted(set(again) & self._federation.connected)
        messages = self._ask_for(again)
        self._gather(
            self._federation.grid.send_and_receive(
                messages, timeout=self._federated.round_timeout_s
            )
        )

    def _check_quorum(self) -> None:
        outcome = self._outcome
        if self._too_few() and self._kept:
            raise FederationError(
                f"round {outcome.number}: a sum of this model was opened over clients {self._kept}, and over nobody else may another be: all of "
                f"them have to answer. {describe_failures(outcome.failures)}; resume when they are back, or begin with another seed",
                setting="secure.protocol",
            )
        if self._too_few():
            raise FederationError(
                f"round {outcome.number}: {len(outcome.clients)} masked updates of {len(self._cohort)} asked, {self._needed} needed (two thirds "
                "of those asked and one more; federated.min_clients; the roster's min_sites). "
                f"{describe_failures(outcome.failures)}",
                setting="secure.threshold",
            )

    def _check_not_stuck(self, error: SecureError) -> None:
        """Raise ``error`` where round after round cannot be read: nobody sees whose fault it is."""
        self.rounds.silent_rounds += 1
        if self.rounds.silent_rounds > self._federated.round_retries:
            raise SecureError(
                "secure_garbage" if error.code == "secure_garbage" else "secure_unreadable",
                f"{self.rounds.silent_rounds} rounds in a row could not be read (federated.round_retries), the last one because: {error}. Their "
                "sums do not say whose fault it is: the sites' logs may; leave sites out of the run one after the other to find out",
                setting="federated.round_retries",
            )

    def _micro_batches(self) -> dict[int, int]:
        return {
            partition: int(numbers["train_micro_batches"])
            for partition, numbers in sorted(self._outcome.clients.items())
        }

    def _entry(self, release: str) -> Entry:
        outcome = self._outcome
        return Entry(
            outcome.number,
            outcome.asked,
            {
                partition: int(numbers["train_steps"])
                for partition, numbers in sorted(outcome.clients.items())
            },
            outcome.failures,
            outcome.byte_counts(),
            release,
            self._cohort,
            self._micro_batches(),
        )

    def _write_journal(self, release: str) -> None:
        """Make the cohort and those in the sum durable: before it is opened, and, with differential
        privacy, once more with the name of what is released."""
        replayed, outcome = self._replayed, self._outcome
        if replayed:
            outcome.asked, outcome.failures = list(replayed.asked), list(replayed.failures)
            outcome.count_bytes_as(replayed.bytes)
            if release == replayed.release:
                return
            if self._privacy and replayed.release:
                self._privacy.check_replay(outcome.number, sorted(outcome.clients))
        if self.rounds.journal and (release or not outcome.pooled):
            self.rounds.journal.write(self._entry(release))

    def _open(self) -> None:
        """Open the sum, and put it where that of plain updates would be; raises
        :class:`SecureError`."""
        outcome, clients = self._outcome, self._outcome.clients
        sums = self._sum.open(self._federated.round_timeout_s, self._federated.round_retries)
        self._check(sums)
        outcome.pooled = sums
        dropped = sorted(set(self._cohort) - set(clients))
        outcome.secure = self._sum.said(dropped)
        total = self._fold.total
        total.clear()
        try:
            total.merge(PartialSum(self._sum.integers, int(sums["weight"])))
        except UpdateRejected as rejected:
            raise SecureError("secure_garbage", f"the opened sum: {rejected.reason}") from None

    def _check(self, sums: Sums) -> None:
        """Raise :class:`SecureError` for figures that the clients' data cannot have."""
        federation, partitions = self._federation, sorted(self._outcome.clients)
        about = [federation.partitions[partition] for partition in partitions]
        bounds = [training_bounds(federation.config, each, self._limits.weight) for each in about]
        audio_s = float(sums["train_audio_s"])
        validation_s = math.fsum(float(each.get("validation_audio_s", 0.0)) for each in about)
        try:
            if not len(about) <= sums["weight"] <= sum(bound.weight for bound in bounds):
                raise ValueError("weights")
            if not 0.0 <= audio_s <= math.fsum(bound.audio_s for bound in bounds):
                raise ValueError("audio")
            check_metrics(sums, self._limits.objective)
            # a second for what rounding adds for each
            check_sums(federation.config, sums_of(sums, "train_"), audio_s + len(about))
            check_sums(federation.config, sums_of(sums, "validation_"), validation_s + len(about))
        except ValueError as error:
            raise SecureError("secure_garbage", f"figures out of range: {error}") from None

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
        for partition, count in micro_batches.items():
            state.positions[partition] = state.positions.get(partition, 0) + count
        state.secure_cohort = state.secure_cohort or tuple(cohort)
        state.secure_included = state.secure_included or tuple(sorted(micro_batches))
        if journal and not (self._replayed and self._replayed.skipped):
            journal.write(
                Entry(
                    outcome.number,
                    outcome.asked,
                    {},
                    outcome.failures,
                    outcome.byte_counts(),
                    "",
                    list(cohort),
                    dict(micro_batches),
                    reason,
                )
            )
        outcome.seconds.setdefault("train", time.monotonic() - self._started)
        log.warning(
            "round %d is skipped (%s): the model stays, and the next round asks the same clients",
            outcome.number,
            reason,
        )
        return RoundResult(outcome, self._model, self._model)
