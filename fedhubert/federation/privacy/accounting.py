"""How much privacy a run has spent: epsilon of the rounds released so far, by the ``PLDAccountant``
of ``dp-accounting`` (Google's library; extra ``privacy``: only the server of a private run needs
it, and it brings scipy, 110 MB that nothing else here asks for).

A round is one Gaussian mechanism on a Poisson sample of the clients; data sets are neighbours when
one has one client more. Rounds compose by their privacy loss distributions, whose discretisation
errs upwards: the epsilon is an upper bound.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from fedhubert.errors import ConfigError

Spent = tuple[float, float, int]
"""Rounds of one kind: probability with which a client was sampled, noise multiplier, how many."""

Releases = Callable[[], Mapping[int, int]]

_INTERVAL = 1e-4
_WIDE_ROUND, _WIDE_RUN = 4.0, 400.0


@functools.lru_cache(maxsize=256)
def epsilon_of(spent: tuple[Spent, ...], delta: float) -> float:
    """Return epsilon at ``delta`` of all rounds together; infinite where one had no noise.

    Raises:
        ConfigError: ``dp-accounting`` is not installed.
    """
    if not all(noise for _, noise, _ in spent):
        return math.inf
    if not spent:
        return 0.0
    try:
        from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError:
        raise ConfigError(
            "differential privacy needs dp-accounting: pip install 'fedhubert[privacy]'",
            setting="privacy.mechanism",
        ) from None
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, _interval(spent))
    for sampling, noise, rounds in spent:
        accountant.compose(PoissonSampledDpEvent(sampling, GaussianDpEvent(noise)), rounds)
    return float(accountant.get_epsilon(delta))


def _interval(spent: tuple[Spent, ...]) -> float:
    """Return the step of the grid that losses are rounded up to: the accountant's own, or a coarser
    one, which tells as much, where twice what to expect of a round or of the run is huge."""
    losses = [noise**-2 for _, noise, _ in spent]
    run = sum(loss * rounds for loss, (_, _, rounds) in zip(losses, spent, strict=True))
    coarser = max(1.0, run / _WIDE_RUN, max(losses) / _WIDE_ROUND)
    return _INTERVAL * 2.0 ** math.ceil(math.log2(coarser))


class Ledger:
    """What a run has released, by its journal.

    A round that is replayed after an interruption to the same bits is the same release. One that
    comes out differently is a further release of the same cohort, with noise of its own: k releases
    of a round count as one with the noise multiplier divided by sqrt(k).

    Args:
        sampling: Probability with which a client is sampled.
        noise: Noise multiplier of a release.
        before: What was spent before round ``begin`` + 1 by the run that this one was forked from.
        releases: Returns round -> how many different releases of it are written down: the
            journal's, which knows before the model moves.
    """

    def __init__(
        self,
        sampling: float,
        noise: float,
        before: Sequence[Spent] = (),
        begin: int = 0,
        releases: Releases = dict,
    ) -> None:
        self._sampling, self._noise, self._releases = sampling, noise, releases
        self.before, self.begin = tuple(before), begin

    def through(self, number: int, again: int | None = None) -> tuple[Spent, ...]:
        """Return what is spent when rounds up to ``number`` are released, and round ``again`` once
        more."""
        counts = dict(self._releases())
        if again is not None:
            counts[again] = max(1, counts.get(again, 0)) + 1
        kinds = Counter(
            max(1, counts.get(round_number, 0))
            for round_number in range(self.begin + 1, number + 1)
        )
        return (
            *self.before,
            *(
                (self._sampling, self._noise / math.sqrt(count), kinds[count])
                for count in sorted(kinds)
            ),
        )

    def newest(self, number: int) -> int:
        """Return the last round that was released, ``number`` or a later one of before an
        interruption."""
        return max(number, self.begin, *self._releases())
