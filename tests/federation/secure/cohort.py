"""A cohort of clients that have keys and vectors, without a federation around them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhubert.federation.secure.keys import RunKey
from fedhubert.federation.secure.opening import Opening
from fedhubert.federation.secure.participant import Dealt, Participant, dealers_of
from fedhubert.federation.secure.terms import SumTerms, least_threshold

Vector = np.ndarray[Any, Any]


@dataclass
class Cohort:
    """``size`` clients, numbers 0, 2, 4, ..., in one sum."""

    size: int
    neighbours: int | None = None
    run: str = "run"

    def __post_init__(self) -> None:
        self.numbers = tuple(range(0, 2 * self.size, 2))
        self.keys = {
            number: RunKey(X25519PrivateKey.generate(), Ed25519PrivateKey.generate())
            for number in self.numbers
        }
        self.rows = {number: key.row(self.run, "", number) for number, key in self.keys.items()}
        neighbours = self.size - 1 if self.neighbours is None else self.neighbours
        self.terms = SumTerms(
            kind="train.round",
            run=self.run,
            roster="",
            round=1,
            attempt=0,
            cohort=self.numbers,
            threshold=least_threshold(1 + neighbours),
            neighbours=neighbours,
            keys=tuple(self.rows.values()),
            said={"model": "m"},
        )

    def part(self, number: int, **changes: Any) -> Participant:
        """A client's part, under terms that may be told to it alone."""
        return Participant(replace(self.terms, **changes), number, self.keys[number])

    def masked(
        self, vectors: Mapping[int, Vector], told: Mapping[int, dict[str, Any]] | None = None
    ) -> tuple[dict[int, Vector], dict[int, Dealt]]:
        """Mask copies of the clients' vectors; ``told``: what differs in the terms of some."""
        masked, dealt = {}, {}
        for number, vector in vectors.items():
            masked[number] = vector.copy()
            dealt[number] = self.part(number, **(told or {}).get(number, {})).mask([masked[number]])
        return masked, dealt

    def sealed_for(
        self, helper: int, included: Collection[int], dealt: Mapping[int, Dealt]
    ) -> Vector:
        """What a server passes on to a helper."""
        dealers = dealers_of(self.terms, helper, included)
        rows = [
            dealt[dealer].sealed[self.terms.helpers(dealer).index(helper)] for dealer in dealers
        ]
        return np.stack(rows)

    def opening(self, included: Collection[int], dealt: Mapping[int, Dealt]) -> Opening:
        return Opening(
            self.terms, included, {number: dealt[number].commitments for number in included}
        )

    def opened(
        self,
        masked: Mapping[int, Vector],
        dealt: Mapping[int, Dealt],
        included: Collection[int],
        helpers: Iterable[int] | None = None,
    ) -> Vector:
        """The sum over ``included``, opened with the help of ``helpers``."""
        opening = self.opening(included, dealt)
        for helper in included if helpers is None else helpers:
            sealed = self.sealed_for(helper, included, dealt)
            opening.take(helper, self.part(helper).open(included, sealed))
        total = np.sum([masked[number] for number in included], axis=0)
        opening.unmask([total])
        return np.asarray(total)


def drawn(numbers: Iterable[int], length: int = 50, seed: int = 0) -> dict[int, Vector]:
    """Vectors as updates are: small beside 2**64."""
    rng = np.random.default_rng(seed)
    return {number: rng.integers(-(2**40), 2**40, length) for number in numbers}
