"""A node's part of one secure sum, as its handlers build it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site
from fedhubert.clients.effective import effective_job
from fedhubert.clients.partitions import Partition
from fedhubert.clients.settings import NodeConfig
from fedhubert.federation.secure.bindings import Subject
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.ledger import SumLedger
from fedhubert.federation.secure.masks import Integers
from fedhubert.federation.secure.noise import Normal, noise_in, share_of_noise
from fedhubert.federation.secure.opening import LIMIT, largest_entry
from fedhubert.federation.secure.participant import Dealt, Participant
from fedhubert.federation.secure.tail import Figures, encode
from fedhubert.federation.secure.terms import SumTerms, digest_of, least_in_sum
from fedhubert.federation.site.bookkeeping import fixed_values
from fedhubert.federation.site.secure import OF_EACH, SecureSite, terms_of
from fedhubert.federation.updates.rejected import UpdateRejected
from fedhubert.federation.updates.ring import to_wire
from fedhubert.federation.wire.messages.message import NDArray
from fedhubert.federation.wire.messages.rounds import Evaluate, Train, WithModel
from fedhubert.federation.wire.messages.secure import Masked, SecureTerms, Summing
from fedhubert.federation.wire.protocol import Request

_ANEW = OF_EACH | {"round", "attempt", "budget_s", "checkpoints", "secure"}
"""Fields of a message that may be others in another attempt, or do not bear on a client's part."""


def subject_of(
    request: Request[Train] | Request[Evaluate], model: str, number: int, own: object = ""
) -> Subject:
    """Return what the part of client ``number`` depends on: the ``model`` by its digest, and
    whatever else the message says; ``own``: what its site says."""
    job, task = request.job, request.task
    terms = task.secure or SecureTerms(attempt=0, cohort=(), threshold=0, neighbours=0)
    return Subject(
        model=model,
        settings=digest_of(
            repr(fixed_values(job)),
            task.model_dump_json(exclude=_ANEW),
            f"{terms.scale} {terms.norm}",
        ),
        seed=job.seed,
        places=digest_of(str(task.round), repr(terms.positions), repr(terms.site_rounds)),
        start=task.positions.get(number, 0) if isinstance(task, Train) else None,
        own=f"{task.site_rounds.get(number)} {own}",
    )


def of_the_site(
    request: Request[WithModel], node_config: NodeConfig, site: Site, partition: Partition
) -> str:
    """Return what a client's part of a sum depends on at its site: its data, and the job as it is
    done there."""
    job = fixed_values(effective_job(request.job, node_config))
    return f"{site.fingerprint(partition, request.run_key)} {job}"


@dataclass
class Masker:
    """A node's part of one secure sum: the masked vectors of its partitions, added up.

    Attributes:
        terms: Of the sum.
        names: Of the figures in its tail.
        alone: Whether all of the cohort answer, and nobody opens it.
    """

    site: SecureSite
    terms: SumTerms
    names: Sequence[str]
    threads: int
    several: bool
    alone: bool = False
    _total: list[Integers] = field(default_factory=list)
    _dealt: dict[int, Dealt] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        request: Request[Summing],
        node_config: NodeConfig,
        names: Sequence[str],
        *,
        alone: bool = False,
    ) -> Masker | None:
        """Return the part of a node in the sum that ``request`` asks for; None where it asks for
        none.

        Raises:
            SecureError: the sum is refused (rules 1 and 8).
        """
        if request.task.secure is None:
            return None
        site = SecureSite.of(request, node_config)
        terms = terms_of(request, request.task.secure)
        site.check(terms, alone=alone)
        threads, several = request.job.client.threads, len(request.task.partitions) > 1
        return cls(site, terms, names, threads, several, alone)

    def enter(self, number: int, subject: Subject) -> int:
        """Write down that client ``number`` takes part, with what its part depends on; return up to
        which batch position it went in an earlier attempt, or -1; raises :class:`SecureError`."""
        return self._ledger(number).enter(self.terms, subject)

    def _ledger(self, number: int) -> SumLedger:
        if number not in self.terms.cohort:
            raise SecureError("secure_cohort", f"client {number} is not in the cohort")
        return self.site.ledger(self.terms.run, number)

    @contextmanager
    def one_code(self) -> Iterator[None]:
        """Refuse by ``secure_garbage`` alone whatever depends on a client's own figures, so that it
        is a bit that the server learns of them, and no more."""
        try:
            yield
        except UpdateRejected as rejected:
            raise SecureError("secure_garbage", f"update rejected: {rejected.reason}") from None

    def add(self, number: int, vector: Integers, figures: Figures, end: int = 0) -> None:
        """Mask the vector of client ``number`` [P], in place, with its figures; add both to what
        leaves.

        Args:
            end: The batch position after it.

        Raises:
            SecureError: ``secure_garbage`` for entries that could overflow the sum; what the ledger
                refuses.
        """
        parts: list[Integers] = [vector, encode(figures, self.names)]
        if any(largest_entry(part) >= LIMIT // len(self.terms.cohort) for part in parts):
            raise SecureError("secure_garbage", "entries that are out of range of a sum")
        if self.alone:
            self._ledger(number).answer_once(
                self.terms, digest_of(*(part.tobytes() for part in parts))
            )
        else:
            self._ledger(number).answered(self.terms, end)
        participant = Participant(self.terms, number, self.site.key(self.terms, number))
        self._dealt[number] = participant.mask(parts, threads=self.threads, alone=self.alone)
        if not self._total:
            # one that is used again for the next must not change below our hands
            self._total = [part.copy() for part in parts] if self.several else list(parts)
        else:
            for total, part in zip(self._total, parts, strict=True):
                total += part

    def noise(
        self,
        number: int,
        values: npt.NDArray[np.int64],
        *,
        multiplier: float,
        clip_norm: float,
        colluding: int,
    ) -> tuple[float, Normal]:
        """Return the standard deviation of the noise that client ``number`` adds to its ``values``
        [P], before they are masked, and what draws it.

        Raises:
            SecureError: nobody's noise might be left.
            ConfigError: the site's secret cannot be used.
        """
        least = least_in_sum(self.terms, self.site.min_sites)
        std = share_of_noise(multiplier, clip_norm, least, colluding)
        return std, noise_in(self.terms, number, values, folder=self.site.folder, std=std)

    def arrays(self) -> dict[str, NDArray]:
        """Return what leaves of the clients that were added."""
        if not self._total:
            return {}
        masked, tail = self._total
        return {
            **({"masked": masked} if len(masked) else {}),
            "tail": tail,
            **{
                name: array
                for number, dealt in self._dealt.items()
                if not self.alone
                for name, array in (
                    (f"sealed_{number}", dealt.sealed),
                    (f"commitments_{number}", dealt.commitments),
                )
            },
        }

    def answer(
        self,
        task: Train | Evaluate,
        metrics: dict[int, Metrics],
        layout: str,
        bits: int | None = None,
    ) -> Masked:
        """Return the answer to ``task``: what leaves of the clients of ``metrics``, on a ring of so
        many bits if that is not None."""
        leaves = dict(self.arrays())
        if bits is not None and "masked" in leaves:
            leaves["masked"] = to_wire(leaves["masked"], bits)
        return Masked(
            metrics=metrics,
            arrays=leaves,
            round=task.round,
            attempt=self.terms.attempt,
            layout=layout,
        )
