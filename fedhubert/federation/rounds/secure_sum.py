"""A secure sum on the server: asks a cohort for its masked parts, adds them up, and has the helpers
open the total (:mod:`fedhubert.federation.secure`)."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.roster.sampling import assign_to_nodes
from fedhubert.federation.rounds.secure_terms import terms_for, wire_terms
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import SEAL_BYTES
from fedhubert.federation.secure.masks import Integers
from fedhubert.federation.secure.opening import LIMIT, Opening, largest_entry
from fedhubert.federation.secure.participant import Bytes, dealers_of, wanted_of
from fedhubert.federation.secure.shares import COMMITMENT_BYTES, SHARE_BYTES
from fedhubert.federation.secure.tail import COUNT, decode
from fedhubert.federation.secure.terms import (
    SumTerms,
    least_in_sum,
)
from fedhubert.federation.updates.rejected import UpdateRejected
from fedhubert.federation.updates.ring import of_wire, widened, word_type
from fedhubert.federation.wire.messages.message import Answer, Failure, NDArray
from fedhubert.federation.wire.messages.secure import Masked, Open, Opened, SecureTerms
from fedhubert.federation.wire.protocol import Asked, Reply

log = logging.getLogger("fedhubert")

Sums = dict[str, int | float]
_MOST_THREADS = 4


class SecureSum:
    """One secure sum, over as many attempts as it takes.

    Args:
        federation: Whom it asks.
        kind: Of the message that asks for it.
        number: The round's.
        numel: Entries of a client's vector; 0 where there are figures alone.
        names: Of the figures in its tail.
        bits: Of the ring that the vectors are on; None: integers modulo 2**64.

    Attributes:
        total: The sum of what has come, masked until it is opened [P].
        terms: Of the attempt.
        answered: Who has sent its part of it.
        bytes_down, bytes_up: Of what opening takes.
    """

    def __init__(
        self,
        federation: Federation,
        kind: str,
        number: int,
        numel: int,
        names: Sequence[str],
        *,
        bits: int | None = None,
    ) -> None:
        self._federation, self._kind, self._number = federation, kind, number
        self._names = list(names)
        self._bits = bits
        self.total: Integers = np.zeros(numel, np.int64 if bits is None else word_type(bits))
        self._tail = np.zeros(len(self._names), np.int64)
        self.terms: SumTerms | None = None
        self.answered: set[int] = set()
        self._sealed: dict[int, Bytes] = {}
        self._commitments: dict[int, Bytes] = {}
        self.bytes_down = self.bytes_up = 0
        self.helpers: set[int] = set()

    def begin(
        self,
        cohort: Sequence[int],
        attempt: int,
        *,
        positions: Mapping[int, int] | None = None,
        steps: Mapping[int, int] | None = None,
        site_rounds: Mapping[int, int] | None = None,
        scale: int = 1,
        norm: float = 1.0,
    ) -> tuple[SecureTerms, dict[str, NDArray]]:
        """Begin an attempt; return the terms and the arrays that its messages carry.

        Raises:
            SecureError: a cohort that cannot make a sum.
        """
        self.terms = terms_for(self._federation, self._kind, self._number, attempt, cohort)
        self.total.fill(0)
        self._tail.fill(0)
        self.answered.clear()
        self._sealed.clear()
        self._commitments.clear()
        return wire_terms(
            self.terms,
            positions=positions,
            steps=steps,
            site_rounds=site_rounds,
            scale=scale,
            norm=norm,
        )

    @property
    def _begun(self) -> SumTerms:
        assert self.terms is not None
        return self.terms

    @property
    def least(self) -> int:
        """The fewest clients over which it may be opened."""
        roster = self._federation.roster
        return least_in_sum(self._begun, roster.min_sites if roster else 0)

    def asked_for(self, partitions: Sequence[int]) -> Asked:
        """Return what may come of a node that is asked for ``partitions``."""
        secrets = self._begun.secrets()
        return Asked(
            partitions,
            {
                "masked": len(self.total) * (self._bits or 64) // 8,
                "tail": self._tail.nbytes,
                "sealed_*": secrets * (secrets * SHARE_BYTES + SEAL_BYTES),
                "commitments_*": secrets * (1 + secrets) * COMMITMENT_BYTES,
            },
        )

    def take(self, reply: Reply[Masked]) -> bool:
        """Add a node's part; returns whether it could be used."""
        answer, terms = reply.answer, self._begun
        if answer is None or not answer.metrics or answer.metrics.keys() & self.answered:
            return False
        masked = self._part(answer)
        tail = answer.arrays.get("tail")
        fits = (
            (answer.round, answer.attempt) == (terms.round, terms.attempt)
            and answer.layout == self._federation.layout.fingerprint
            and masked is not None
            and tail is not None
            and tail.shape == self._tail.shape
            and all(self._dealt(answer, number) for number in answer.metrics)
        )
        if not fits or tail is None or masked is None:
            return False
        self.total += masked
        self._tail += np.asarray(tail, np.int64)
        for number in answer.metrics:
            self._sealed[number] = np.asarray(answer.arrays[f"sealed_{number}"], np.uint8)
            self._commitments[number] = np.asarray(answer.arrays[f"commitments_{number}"], np.uint8)
        self.answered |= answer.metrics.keys()
        return True

    def _part(self, answer: Masked) -> Integers | None:
        """Return an answer's masked vector, in the words of :attr:`total`; None where it is
        none."""
        masked = answer.arrays.get("masked")
        if self._bits is not None:
            try:
                return of_wire(masked, self._bits, len(self.total))
            except UpdateRejected:
                return None
        if masked is None:
            masked = np.zeros(0, np.int64)
        fits = masked.dtype == np.int64 and masked.shape == self.total.shape
        return np.asarray(masked, np.int64) if fits else None

    @property
    def integers(self) -> torch.Tensor:
        """What :attr:`total` stands for [P], int64."""
        if self._bits is None:
            return torch.from_numpy(self.total)
        return widened(self.total, self._bits)

    def _dealt(self, answer: Answer, number: int) -> bool:
        secrets = self._begun.secrets()
        sealed, commitments = (
            answer.arrays.get(f"{name}_{number}") for name in ("sealed", "commitments")
        )
        return (
            sealed is not None
            and sealed.shape == (secrets, secrets * SHARE_BYTES + SEAL_BYTES)
            and commitments is not None
            and commitments.shape == (secrets, 1 + secrets, COMMITMENT_BYTES)
        )

    def open(self, timeout_s: float, tries: int) -> Sums:
        """Have the helpers open the sum over all who answered: :attr:`total` is that of their
        vectors then; return the sums of their figures.

        Raises:
            SecureError: ``secure_unreadable``, ``secure_share``, ``secure_garbage``.
        """
        included = sorted(self.answered)
        opening = Opening(self._begun, frozenset(included), self._commitments)
        waiting, failures = set(included), dict[int, Failure]()
        for _ in range(tries + 1):
            self._ask(opening, waiting, failures, timeout_s)
            waiting = {number for number in included if number not in self.helpers}
            if opening.is_enough or not waiting:
                break
        if opening.liars:
            log.warning(
                "round %d: clients %s opened shares that they were not dealt: they are not used",
                self._number,
                sorted(set(opening.liars)),
            )
        if failures and not opening.is_enough:
            log.warning(
                "round %d: %s",
                self._number,
                "; ".join(f"client {number}: {why}" for number, why in sorted(failures.items())),
            )
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        opening.unmask([self.total, self._tail], threads=threads)
        sums = decode(self._tail, self._names)
        # any total is one of a ring
        too_large = self._bits is None and largest_entry(self.total) >= LIMIT
        if sums[COUNT] != len(included) or too_large:
            raise SecureError(
                "secure_garbage",
                f"the opened sum is not one of {len(included)} updates: a client has sent "
                "something else, or was told something else",
            )
        return sums

    def _ask(
        self,
        opening: Opening,
        helpers: Iterable[int],
        failures: dict[int, Failure],
        timeout_s: float,
    ) -> None:
        """Ask ``helpers`` for their shares until they are enough: nobody waits for stragglers."""
        federation, terms = self._federation, self._begun
        shares = assign_to_nodes(sorted(helpers), federation.hosts, {})
        messages = []
        for node, numbers in shares.items():
            sealed = {f"sealed_{number}": self._sealed_for(number, opening) for number in numbers}
            instruction = Open(
                partitions=tuple(numbers),
                of="train.round" if self._kind == "train.round" else "evaluate.model",
                round=terms.round,
                attempt=terms.attempt,
                included=tuple(sorted(opening.included)),
                arrays=sealed,
            )
            self.bytes_down += sum(array.nbytes for array in sealed.values())
            messages.append(
                federation.message(node, instruction, group=str(self._number), timeout_s=timeout_s)
            )
        most = max(
            (
                sum(len(wanted_of(terms, dealer, opening.included)) for dealer in dealers)
                for number in helpers
                for dealers in [dealers_of(terms, number, opening.included)]
            ),
            default=0,
        )
        replies = federation.grid.send_and_receive(messages, timeout=timeout_s)
        for message in replies:
            asked = shares.get(message.metadata.src_node_id, [])
            reply = federation.read(message, Opened, Asked(asked, {"shares_*": most * SHARE_BYTES}))
            self.bytes_up += reply.num_bytes
            failures.update(
                {
                    number: failure
                    for failure in reply.failures
                    for number in (asked if failure.partition < 0 else [failure.partition])
                }
            )
            for number in reply.metrics:
                opened = reply.answer.arrays.get(f"shares_{number}") if reply.answer else None
                if opened is not None:
                    opening.take(number, np.asarray(opened, np.uint8))
                    self.helpers.add(number)
            if opening.is_enough:
                close = getattr(replies, "close", None)
                if close is not None:
                    close()
                break

    def _sealed_for(self, helper: int, opening: Opening) -> npt.NDArray[np.uint8]:
        terms = self._begun
        rows = [
            self._sealed[dealer][terms.helpers(dealer).index(helper)]
            for dealer in dealers_of(terms, helper, opening.included)
        ]
        return np.stack(rows)

    def said(self, dropped: Sequence[int]) -> dict[str, object]:
        """Return what reports say of it."""
        terms = self._begun
        return {
            "cohort": len(terms.cohort),
            "threshold": terms.threshold,
            "attempt": terms.attempt,
            "masked": len(self.answered),
            "dropped": list(dropped),
            "helpers": len(self.helpers),
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
        }
