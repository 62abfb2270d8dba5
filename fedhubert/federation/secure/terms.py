"""What all who take part in a secure sum have to have been told alike: its terms, and the digest of
them that every mask depends on.

Sites that were told different things get masks that do not cancel, without a word between them:
another model for one of them (Pasquini et al. 2022, "Eluding Secure Aggregation in Federated
Learning via Model Inconsistency") gives noise.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedhubert.config.secure import LEAST_COHORT as LEAST_SITES
from fedhubert.config.secure import least_in_cohort, least_threshold
from fedhubert.federation.secure.errors import SecureError

COMPLETE_UP_TO = 50
"""Up to so many clients each has a mask with every other."""
NEIGHBOURS = 62
"""Of a client among more than that: with 1 000 clients, of which 5 % collude and 5 % drop out, a
client is unprotected, or a round lost, with a probability of at most 2**-40."""


@dataclass(frozen=True)
class SumTerms:
    """The terms of one secure sum.

    Attributes:
        kind: Of the message that asks for it.
        run, roster: The run's key, and the fingerprint of the roster ("" for a throw-away one).
        round, attempt: Which sum of the run.
        cohort: Who is asked, in ascending order.
        threshold: Helpers who suffice to open.
        neighbours: With how many others each has a mask: all, or an even number.
        keys: The signed run key of each of the cohort, in its order.
        said: Names and digests of everything else that was said to all.
    """

    kind: str
    run: str
    roster: str
    round: int
    attempt: int
    cohort: tuple[int, ...]
    threshold: int
    neighbours: int
    keys: tuple[bytes, ...]
    said: Mapping[str, str]

    @cached_property
    def context(self) -> bytes:
        """SHA-256 over all of it."""
        digest = hashlib.sha256(b"fedhubert secure sum 2\0")
        for field in self._fields():
            digest.update(len(field).to_bytes(8) + field)
        return digest.digest()

    def _fields(self) -> Iterator[bytes]:
        for text in (self.kind, self.run, self.roster):
            yield text.encode()
        for number in (self.round, self.attempt, self.threshold, self.neighbours):
            yield str(number).encode()
        yield ",".join(map(str, self.cohort)).encode()
        yield from self.keys
        for name, said in sorted(self.said.items()):
            yield f"{name}={said}".encode()

    @cached_property
    def _keys(self) -> dict[int, bytes]:
        return dict(zip(self.cohort, self.keys, strict=True))

    def key_of(self, number: int) -> bytes:
        """Return the signed run key of a client of the cohort."""
        return self._keys[number]

    @property
    def is_complete(self) -> bool:
        """Whether each has a mask with every other."""
        return self.neighbours >= len(self.cohort) - 1

    @cached_property
    def _ring(self) -> list[int]:
        """The cohort in a random order, drawn from all run keys."""
        everyone = hashlib.sha256(b"".join(self.keys)).digest()
        return sorted(
            self.cohort,
            key=lambda number: hashlib.sha256(everyone + str(number).encode()).digest(),
        )

    @cached_property
    def _places(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self._ring)}

    def partners(self, number: int) -> list[int]:
        """Return with whom ``number`` has masks, in ascending order."""
        if self.is_complete:
            return [other for other in self.cohort if other != number]
        ring, place, half = self._ring, self._places[number], self.neighbours // 2
        around = [*range(-half, 0), *range(1, half + 1)]
        return sorted(ring[(place + step) % len(ring)] for step in around)

    def helpers(self, number: int) -> list[int]:
        """Return who holds shares of the secrets of ``number``: its partners and itself, in
        ascending order."""
        return sorted([*self.partners(number), number])

    def secrets(self) -> int:
        """Return how many secrets each deals: its own mask's seed, and one with each partner."""
        return 1 + min(self.neighbours, len(self.cohort) - 1)

    def check(self) -> None:
        """Raise :class:`SecureError` for terms that nobody should take part under."""
        count = len(self.cohort)
        if count < LEAST_SITES:
            raise SecureError(
                "secure_cohort", f"a sum of {count} clients, fewer than {LEAST_SITES}"
            )
        if list(self.cohort) != sorted(set(self.cohort)) or len(self.keys) != count:
            raise SecureError(
                "secure_cohort", "a cohort that names a client twice, or keys of others"
            )
        if not self.is_complete and (self.neighbours % 2 or self.neighbours < LEAST_SITES - 1):
            raise SecureError("secure_cohort", f"masks with {self.neighbours} neighbours")
        helpers = self.secrets()
        if not least_threshold(helpers) <= self.threshold <= helpers:
            raise SecureError(
                "secure_threshold",
                f"{self.threshold} of {helpers} helpers are to suffice: {least_threshold(helpers)} "
                "at least, and no more than there are",
                setting="secure.threshold",
            )


def neighbours_of(count: int, wanted: int | None = None) -> int:
    """Return with how many others each of ``count`` clients has a mask: ``wanted``, or all of up to
    50 and else 62."""
    most = count - 1
    if wanted is None:
        wanted = most if count <= COMPLETE_UP_TO else NEIGHBOURS
    return most if wanted >= most else wanted


def least_in_sum(terms: SumTerms, min_sites: int) -> int:
    """Return the fewest clients that a sum may be of."""
    return max(least_in_cohort(len(terms.cohort), min_sites), terms.threshold)


def digest_of(*parts: str | bytes | Sequence[int]) -> str:
    """Return the SHA-256 over ``parts``, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part
            if isinstance(part, bytes)
            else part.encode()
            if isinstance(part, str)
            else ",".join(map(str, part)).encode()
        )
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
