"""A client's part in a secure sum: its masks, the shares that it deals, and the shares that it
opens.

y_i = x_i + PRG(b_i) + sum over j > i of PRG(h_ij) - sum over j < i of PRG(h_ij), modulo the size of
the words. h_ij cancels when both are in the sum, and is opened where one is not; b_i is opened
where i is in the sum, and covers an update that comes late, when its h_ij are open already
(Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning").
Unlike there, the seeds of one sum are shared, and never the run key, which would unmask all others
too.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import PairSecrets, RunKey, agree, seal, unseal
from fedhubert.federation.secure.masks import SEED_BYTES, Integers, add_masks
from fedhubert.federation.secure.shares import COMMITMENT_BYTES, SHARE_BYTES, commitment, split
from fedhubert.federation.secure.terms import SumTerms

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Dealt:
    """What a client deals beside its masked vector.

    Attributes:
        sealed: A row for each helper, in their order, that it alone can read: a share of every
            secret of the client's (:func:`secrets_of`).
        commitments: [secrets, 1 + helpers, 16]: to each secret, and to each helper's share of it.
    """

    sealed: Bytes
    commitments: Bytes


@dataclass(frozen=True)
class Participant:
    """Client ``number`` in the sum of ``terms``, with its run key."""

    terms: SumTerms
    number: int
    key: RunKey

    @cached_property
    def _pairs(self) -> Mapping[int, PairSecrets]:
        return {
            other: agree(self.key, self.terms, self.number, other)
            for other in self.terms.helpers(self.number)
        }

    def mask(self, parts: Collection[Integers], *, threads: int = 1, alone: bool = False) -> Dealt:
        """Mask ``parts``, vectors that go together, in place; return what is dealt.

        Args:
            alone: By the pairs' masks only, where all of the cohort have to answer: nothing is
                dealt, and the same again gives the same. Else a mask of its own, drawn anew, goes
                on top.
        """
        own = secrets.token_bytes(SEED_BYTES)
        partners = self.terms.partners(self.number)
        seeds = {other: self._pairs[other].mask for other in partners}
        plus = [seeds[other] for other in partners if other > self.number]
        minus = [seeds[other] for other in partners if other < self.number]
        for part, vector in enumerate(parts):
            add_masks(vector, plus if alone else [own, *plus], minus, part=part, threads=threads)
        none = np.zeros(0, np.uint8)
        return Dealt(none, none) if alone else self._deal([own, *seeds.values()])

    def _deal(self, seeds: list[bytes]) -> Dealt:
        helpers = self.terms.helpers(self.number)
        shares = [split(seed, self.terms.threshold, len(helpers)) for seed in seeds]
        sealed = [
            seal(self._pairs[helper].to_other, b"".join(of_seed[place] for of_seed in shares))
            for place, helper in enumerate(helpers)
        ]
        commitments = b"".join(
            commitment(value)
            for seed, of_seed in zip(seeds, shares, strict=True)
            for value in (seed, *of_seed)
        )
        shape = (len(seeds), 1 + len(helpers), COMMITMENT_BYTES)
        return Dealt(
            np.frombuffer(b"".join(sealed), np.uint8).reshape(len(helpers), -1),
            np.frombuffer(commitments, np.uint8).reshape(shape),
        )

    def open(self, included: Collection[int], sealed: Bytes) -> Bytes:
        """Return this helper's shares [N, 33] of what opens the sum over ``included``: of each
        dealer (:func:`dealers_of`) that of its own mask, then those of its pairs' with who is not
        included.

        Args:
            sealed: Its row from each dealer.

        Raises:
            SecureError: ``secure_share`` for rows that are not for it, or of another sum.
        """
        dealers = dealers_of(self.terms, self.number, included)
        if len(sealed) != len(dealers):
            raise SecureError(
                "secure_share", f"{len(sealed)} rows of shares of {len(dealers)} clients"
            )
        opened = []
        for dealer, row in zip(dealers, sealed, strict=True):
            shares = unseal(self._pairs[dealer].from_other, row.tobytes())
            if len(shares) != SHARE_BYTES * self.terms.secrets():
                raise SecureError("secure_share", f"client {dealer} has dealt too few shares")
            opened += [
                shares[SHARE_BYTES * place : SHARE_BYTES * (place + 1)]
                for place in wanted_of(self.terms, dealer, included)
            ]
        return np.frombuffer(b"".join(opened), np.uint8).reshape(-1, SHARE_BYTES)


def dealers_of(terms: SumTerms, helper: int, included: Collection[int]) -> list[int]:
    """Return of whom ``helper`` opens shares, in ascending order."""
    return [dealer for dealer in terms.helpers(helper) if dealer in included]


def wanted_of(terms: SumTerms, dealer: int, included: Collection[int]) -> list[int]:
    """Return which secrets of ``dealer`` open the sum over ``included``: 0, its own mask's seed;
    place + 1, that with its partner at ``place`` who is not in it. Never both of one client's."""
    partners = terms.partners(dealer)
    return [0, *(1 + place for place, other in enumerate(partners) if other not in included)]
