"""A node's part of one secure sum, as its handlers build it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedhubert.clients import Metrics
from fedhubert.clients.settings import NodeConfig
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.ledger import SumLedger
from fedhubert.federation.secure.masks import Integers
from fedhubert.federation.secure.noise import Normal, noise_in, share_of_noise
from fedhubert.federation.secure.opening import LIMIT, largest_entry
from fedhubert.federation.secure.participant import Dealt, Participant
from fedhubert.federation.secure.tail import Figures, encode
from fedhubert.federation.secure.terms import SumTerms, digest_of, least_in_sum
from fedhubert.federation.site.secure import SecureSite, terms_of
from fedhubert.federation.updates.ring import to_wire
from fedhubert.federation.wire.messages import Evaluate, Masked, NDArray, Summing, Train
from fedhubert.federation.wire.protocol import Request


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
            SecureError: the sum is refused (rule 1).
        """
        if request.task.secure is None:
            return None
        site = SecureSite.of(request, node_config)
        terms = terms_of(request, request.task.secure)
        site.check(terms)
        threads, several = request.job.client.threads, len(request.task.partitions) > 1
        return cls(site, terms, names, threads, several, alone)

    @cached_property
    def subject(self) -> str:
        """Digest of what the sum is of: the model, the centroids."""
        return digest_of(
            *(
                f"{name} {said}"
                for name, said in sorted(self.terms.said.items())
                if name not in ("job", "task")
            )
        )

    def enter(self, number: int, start: int = 0) -> None:
        """Write down that client ``number`` takes part, from batch position ``start`` on; raises
        :class:`SecureError`."""
        if number not in self.terms.cohort:
            raise SecureError("secure_cohort", f"client {number} is not in the cohort")
        self._ledger(number).enter(self.terms, self.subject, start)

    def enter_once(self, number: int, subject: str) -> None:
        """The same for a sum that nobody opens."""
        if number not in self.terms.cohort:
            raise SecureError("secure_cohort", f"client {number} is not in the cohort")
        self._ledger(number).enter_once(self.terms, subject)

    def _ledger(self, number: int) -> SumLedger:
        return self.site.ledger(self.terms.run, number)

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
        if not self.alone:
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
