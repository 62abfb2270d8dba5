"""Opens a secure sum: checks the helpers' shares, puts the seeds together, and takes the masks that
are left off the total."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.masks import Integers, add_masks
from fedhubert.federation.secure.participant import Bytes, dealers_of, wanted_of
from fedhubert.federation.secure.shares import SHARE_BYTES, commitment, join, weights_of
from fedhubert.federation.secure.terms import SumTerms


@dataclass
class Opening:
    """The opening of the sum of ``terms`` over ``included``.

    Attributes:
        commitments: Dealer -> what it has committed to (:class:`Dealt`).
        liars: Helpers whose shares are not those that they were dealt.
    """

    terms: SumTerms
    included: Collection[int]
    commitments: Mapping[int, Bytes]
    liars: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._shares: dict[tuple[int, int], dict[int, bytes]] = {
            (dealer, secret): {}
            for dealer in self.included
            for secret in wanted_of(self.terms, dealer, self.included)
        }

    def take(self, helper: int, opened: Bytes) -> None:
        """Take the shares of ``helper``; one that is not the one committed to is left out, and its
        helper named in :attr:`liars`."""
        wanted = [
            (dealer, secret)
            for dealer in dealers_of(self.terms, helper, self.included)
            for secret in wanted_of(self.terms, dealer, self.included)
        ]
        if opened.shape != (len(wanted), SHARE_BYTES):
            self.liars.append(helper)
            return
        wrong = False
        for (dealer, secret), row in zip(wanted, opened, strict=True):
            place, share = self.terms.helpers(dealer).index(helper), row.tobytes()
            if commitment(share) == self.commitments[dealer][secret, 1 + place].tobytes():
                self._shares[dealer, secret][place] = share
            else:
                wrong = True
        if wrong:
            self.liars.append(helper)

    @property
    def is_enough(self) -> bool:
        """Whether every seed has as many shares as it takes."""
        return all(len(shares) >= self.terms.threshold for shares in self._shares.values())

    def unmask(self, parts: Collection[Integers], *, threads: int = 1) -> None:
        """Take the masks off the totals ``parts``, in place.

        Raises:
            SecureError: ``secure_unreadable`` where there are too few shares; ``secure_share``
                where a dealer's are of no secret, or of another than it committed to.
        """
        if not self.is_enough:
            least = min(len(shares) for shares in self._shares.values())
            raise SecureError(
                "secure_unreadable",
                f"{least} helpers have opened, and it takes {self.terms.threshold}",
                setting="secure.threshold",
            )
        plus, minus = list[bytes](), list[bytes]()
        for (dealer, secret), seed in self._seeds().items():
            other = self.terms.partners(dealer)[secret - 1] if secret else None
            (plus if other is not None and other < dealer else minus).append(seed)
        for part, vector in enumerate(parts):
            add_masks(vector, plus, minus, part=part, threads=threads)

    def _seeds(self) -> dict[tuple[int, int], bytes]:
        weights: dict[tuple[int, ...], list[int]] = {}
        seeds: dict[tuple[int, int], bytes] = {}
        for (dealer, secret), shares in self._shares.items():
            places = tuple(sorted(shares)[: self.terms.threshold])
            if places not in weights:
                weights[places] = weights_of(places)
            seed = join({place: shares[place] for place in places}, weights[places])
            if seed is None or commitment(seed) != self.commitments[dealer][secret, 0].tobytes():
                raise SecureError("secure_share", f"client {dealer} has dealt shares of no secret")
            seeds[dealer, secret] = seed
        return seeds


_CHUNK = 2**16
"""Entries that stay in the processor's cache for a second look."""


def largest_entry(vector: Integers) -> int:
    """Return the largest magnitude in a vector, exactly, in one pass over it."""
    parts = [vector[start : start + _CHUNK] for start in range(0, len(vector), _CHUNK)]
    return max((max(-int(part.min()), int(part.max())) for part in parts), default=0)


LIMIT = 2**61
"""No total is as large: one that is was not opened, or is garbage."""
