"""Which characters the sites' transcripts have: a vocabulary that is agreed on from sums of counts,
before a run of ``task=ctc``."""

from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt

from fedhubert.data.texts import CODES, vocabulary_of
from fedhubert.errors import FederationError
from fedhubert.federation.phases.asking import ask_all
from fedhubert.federation.phases.secure_counts import sum_over_all
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.secure.figures import CHARACTER_FIGURES
from fedhubert.federation.wire.messages.characters import CharacterCounts, CountCharacters
from fedhubert.federation.wire.protocol import Reply

Counts = npt.NDArray[np.int64]
_MOST = 2**40
"""More characters than any site has."""


def agreed_characters(federation: Federation) -> str:
    """Return the characters that passed suppression at a site, in the order of their code points.

    Raises:
        FederationError: a client that cannot take part; or none passed anywhere.
    """
    if federation.config.secure.enabled:
        totals = sum_over_all(
            federation,
            CountCharacters(),
            {"counts": (CODES,)},
            CHARACTER_FIGURES,
            lambda number: _MOST,
        )
        counts = totals.arrays["counts"]
    else:
        counts = reduce(add, ask_all(federation, CountCharacters(), CharacterCounts, _read))
    found = vocabulary_of(counts)
    if not found:
        raise FederationError(
            "no character occurs often enough at any site (targets.min_frames, min-frames there): "
            "give task.vocabulary",
            setting="task.vocabulary",
        )
    return found


def _read(reply: Reply[CharacterCounts]) -> Counts:
    """Return a reply's counts [codes]; raises :class:`FederationError` for what are none."""
    assert reply.answer is not None
    counts = np.asarray(reply.answer.arrays.get("counts", np.zeros(0)), np.int64)
    if counts.shape != (CODES,) or (counts < 0).any() or (counts > _MOST).any():
        raise FederationError(
            f"counts of characters should be int64[{CODES}] of at least 0", setting="version"
        )
    return counts
