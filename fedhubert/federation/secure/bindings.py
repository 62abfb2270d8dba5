"""Over whom a sum may be, in all runs: what a client remembers of the sums that it has opened.

Two sums of the same thing over sites, or under settings, that differ in one site's part tell that
part. So what was summed once is summed again only over the same cohort, opened over the same set,
and under the same settings (rule 5 of README.md here).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import signer_of
from fedhubert.federation.secure.terms import SumTerms, digest_of

_CHUNK = 2**20


@dataclass(frozen=True)
class Subject:
    """What a client's part of a sum depends on, but for its cohort.

    Attributes:
        model: Digest of the model, decoded (:func:`model_digest`).
        settings: Digest of the job, and of all fields of the message that bear on the part.
        seed: The job's: which batches there are.
        places: Digest of the round, and of everyone's positions and kept states in it.
        start: Own batch position; None where nothing is trained.
        own: What the part depends on at the site: its kept state, its data and settings.
    """

    model: str
    settings: str
    seed: int
    places: str
    start: int | None = None
    own: str = ""

    @property
    def pinned(self) -> str:
        """Digest of what stays as it is over all attempts of a round."""
        return digest_of(self.model, self.settings, str(self.start), self.own)

    def bound(self, terms: SumTerms) -> dict[str, str]:
        """Return what is bound when the sum is opened: digest of what two sums could have in common
        -> digest of what they have to have in common then."""
        named = {
            # a train.round scores its model, too
            f"model {self.model}": "",
            f"{terms.kind} {self.seed} {self.model}": self.settings,
        }
        if self.start is not None:
            named[f"batches {self.seed} {self.start}"] = f"{self.settings} {self.places}"
        return {digest_of(name): digest_of(parties(terms), alike) for name, alike in named.items()}


def parties(terms: SumTerms) -> str:
    """Return the digest of a cohort: numbers and, with a roster, the long-term keys behind them. In
    another roster a number may be another site's, and the sums of the two differ by one part."""
    keys = [signer_of(row) for row in terms.keys] if terms.roster else []
    return digest_of(terms.cohort, *keys)


class Bound(BaseModel):
    """Digests of how something was asked for, and of whose sum of it was opened."""

    model_config = ConfigDict(extra="forbid")

    asked: str
    included: str


class Models(BaseModel):
    """What has been opened, in all runs: a digest of :meth:`Subject.bound` -> how."""

    model_config = ConfigDict(extra="forbid")

    bound: dict[str, Bound] = {}

    def check(self, asked: Mapping[str, str], included: tuple[int, ...] | None = None) -> None:
        """Raise :class:`SecureError` (``secure_model``) where any of it was opened in another way;
        ``included``: over whom it is to be now, where that is known yet."""
        over = None if included is None else digest_of(included)
        for name, how in asked.items():
            known = self.bound.get(name)
            if known and (known.asked != how or over not in (None, known.included)):
                raise SecureError(
                    "secure_model",
                    "a sum of this model, or of these batches, was opened over other clients, or "
                    "under other settings: the difference of two "
                    "could be one client's; ask the same clients for the same, or begin with "
                    "another seed=... (a model of init_from: with the "
                    "same clients)",
                    setting="seed",
                )

    def bind(self, asked: Mapping[str, str], included: tuple[int, ...]) -> None:
        """Remember it; raises :class:`SecureError` as :meth:`check`."""
        self.check(asked, included)
        over = digest_of(included)
        self.bound.update({name: Bound(asked=how, included=over) for name, how in asked.items()})


def model_digest(vector: npt.NDArray[np.float32]) -> str:
    """Return the SHA-256 over the values of a model [P], in hexadecimal: the same for -0.0 and 0.0,
    and however they travelled."""
    digest = hashlib.sha256()
    for start in range(0, len(vector), _CHUNK):
        digest.update((vector[start : start + _CHUNK] + np.float32(0.0)).tobytes())
    return digest.hexdigest()
