"""How much privacy a run has spent: epsilon of the rounds released so far, by ``dp-accounting``
(Google's library; extra ``privacy``).

A round is one Gaussian mechanism on a Poisson sample of the clients; data sets are neighbours when
one has one client more. Rounds compose by their privacy loss distributions, whose discretisation
errs upwards: the epsilon is an upper bound.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    # twice what to expect of a round; where it is huge, coarser steps tell as much
    losses = [noise**-2 for _, noise, _ in spent]
    run = sum(loss * rounds for loss, (_, _, rounds) in zip(losses, spent, strict=True))
    coarser = max(1.0, run / _WIDE_RUN, max(losses, default=0.0) / _WIDE_ROUND)
    interval = _INTERVAL * 2.0 ** math.ceil(math.log2(coarser))
    parts = [
        _one_round(sampling, noise, interval).self_compose(rounds)
        for sampling, noise, rounds in spent
    ]
    return (
        float(
            functools.reduce(lambda left, right: left.compose(right), parts).get_epsilon_for_delta(
                delta
            )
        )
        if parts
        else 0.0
    )


@functools.lru_cache(maxsize=32)
def _one_round(sampling: float, noise: float, interval: float) -> Any:
    """Return the privacy loss distribution of one round on a grid of ``interval``."""
    try:
        from dp_accounting import NeighboringRelation
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError:
        raise ConfigError(
            "privacy.mechanism=central needs dp-accounting: pip install 'fedhubert[privacy]'",
            setting="privacy.mechanism",
        ) from None
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        value_discretization_interval=interval,
        sampling_prob=sampling,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


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
