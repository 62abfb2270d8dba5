"""Epsilon against formulas that need no accountant, and against dp-accounting's other one."""

import functools
import math
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedhubert.federation.privacy.accounting import Ledger, epsilon_of
from fedhubert.federation.rounds.journal import Entry, Journal

DELTA = 1e-5


def gaussian_epsilon(noise: float) -> float:
    """Of one Gaussian mechanism without sampling, by the closed form of its delta (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        lost = (
            norm.logcdf(-0.5 / noise - epsilon * noise) + epsilon
        )  # as a logarithm: e**epsilon alone can be too large
        return float(norm.cdf(0.5 / noise - epsilon * noise) - math.exp(lost) - DELTA)

    return float(brentq(excess, 0.0, 0.5 / noise**2 + 10.0 / noise))


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (0.7, 3), (4.0, 100), (0.05, 7)])
def test_without_sampling_rounds_are_one_gaussian_with_less_noise(
    noise: float, rounds: int
) -> None:
    """n releases with noise z are exactly one with z / sqrt(n)."""
    exact = gaussian_epsilon(noise / math.sqrt(rounds))
    ours = epsilon_of(((1.0, noise, rounds),), DELTA)
    assert exact <= ours <= exact * 1.001 + 1e-3


@pytest.mark.parametrize(
    ("sampling", "noise", "rounds"), [(0.5, 1.0, 20), (0.1, 0.8, 100), (0.01, 1.0, 1000)]
)
def test_with_sampling_it_is_below_what_renyi_accounting_guarantees_and_not_by_much(
    sampling: float, noise: float, rounds: int
) -> None:
    renyi = RdpAccountant(list(range(2, 64)))
    renyi.compose(
        dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise)), rounds
    )
    ours = epsilon_of(((sampling, noise, rounds),), DELTA)
    assert 0.7 * renyi.get_epsilon(DELTA) < ours < renyi.get_epsilon(DELTA)
    assert ours < gaussian_epsilon(noise / math.sqrt(rounds))


def test_rounds_of_several_kinds_add_up_as_their_loss_distributions_do() -> None:
    """Each kind's distribution composed with itself, then with the others', by hand; also where coarser steps are taken."""
    for spent, interval in (
        (((0.5, 1.0, 4), (0.5, 1.0 / math.sqrt(2.0), 1), (0.2, 3.0, 7)), 1e-4),
        (((0.5, 0.1, 50),), 1e-4 * 32),
    ):
        parts = [
            from_gaussian_mechanism(
                noise, value_discretization_interval=interval, sampling_prob=sampling
            ).self_compose(rounds)
            for sampling, noise, rounds in spent
        ]
        together = functools.reduce(lambda left, right: left.compose(right), parts)
        expected = together.get_epsilon_for_delta(DELTA)
        assert epsilon_of(spent, DELTA) == pytest.approx(expected, abs=5e-6, rel=1e-9)


def test_one_sampled_round_has_the_delta_that_its_two_densities_give() -> None:
    """delta(epsilon) of q N(1, z) + (1 - q) N(0, z) against N(0, z), both ways round, by numerical integration."""
    import numpy as np

    sampling, noise = 0.3, 1.0
    epsilon = epsilon_of(((sampling, noise, 1),), DELTA)
    x = np.linspace(-12.0, 13.0, 2_000_001)
    without = np.exp(-0.5 * (x / noise) ** 2)
    taking_part = (1 - sampling) * without + sampling * np.exp(-0.5 * ((x - 1.0) / noise) ** 2)
    scale = (x[1] - x[0]) / (noise * math.sqrt(2.0 * math.pi))
    deltas = [
        float(np.maximum(one - math.exp(epsilon) * other, 0.0).sum() * scale)
        for one, other in ((taking_part, without), (without, taking_part))
    ]
    assert max(deltas) == pytest.approx(DELTA, rel=1e-2)


def test_clipping_alone_has_no_epsilon() -> None:
    assert epsilon_of(((0.5, 1.0, 3), (0.5, 0.0, 1)), DELTA) == math.inf
    assert epsilon_of((), DELTA) == 0.0


def test_the_ledger_counts_a_replayed_round_once_and_another_outcome_of_it_twice(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    for number, tag in ((1, "aa"), (2, "bb"), (3, "cc"), (3, "cc"), (2, "dd")):
        journal.write(Entry(number, [0], {0: 1}, release=tag))
    ledger = Ledger(0.5, 1.0, [(0.25, 2.0, 7)], 0, Journal(tmp_path).releases)
    twice = 1.0 / math.sqrt(2.0)
    assert ledger.through(1) == ((0.25, 2.0, 7), (0.5, 1.0, 1))
    assert ledger.through(4) == ((0.25, 2.0, 7), (0.5, 1.0, 3), (0.5, twice, 1))
    assert ledger.through(4, again=4) == ((0.25, 2.0, 7), (0.5, 1.0, 2), (0.5, twice, 2))
    assert ledger.newest(1) == 3 and ledger.newest(9) == 9
    assert Ledger(0.5, 1.0, [(0.25, 2.0, 7)], 10).through(12) == ((0.25, 2.0, 7), (0.5, 1.0, 2))
