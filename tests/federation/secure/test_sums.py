"""The protocol among clients without a federation around them: what opens, and what does not."""

import random
from typing import Any

import numpy as np
import pytest

from fedhubert.federation.secure.keys import agree
from fedhubert.federation.secure.masks import add_masks
from fedhubert.federation.secure.participant import wanted_of
from fedhubert.federation.secure.shares import join
from fedhubert.federation.secure.terms import least_threshold
from tests.federation.secure.cohort import Cohort, drawn
from tests.federation.secure.refusals import added, refusal


@pytest.mark.parametrize("size", [3, 4, 5, 10])
def test_the_opened_sum_is_that_of_the_vectors(size: int) -> None:
    cohort = Cohort(size)
    vectors = drawn(cohort.numbers)
    masked, dealt = cohort.masked(vectors)
    opened = cohort.opened(masked, dealt, cohort.numbers)
    assert (opened == added(vectors, cohort.numbers)).all()
    assert all((masked[number] != vectors[number]).all() for number in cohort.numbers)


def test_same_bits_in_random_cohorts_with_random_dropouts() -> None:
    draw = random.Random(1)
    for trial in range(100):
        size = draw.randint(3, 9)
        cohort = Cohort(size)
        threshold = cohort.terms.threshold
        vectors = drawn(cohort.numbers, 7, trial)
        # some never mask, some mask and come too late, some of the others do not help
        answered = draw.sample(cohort.numbers, draw.randint(threshold, size))
        masked, dealt = cohort.masked({number: vectors[number] for number in answered})
        included = sorted(draw.sample(answered, draw.randint(threshold, len(answered))))
        helpers = draw.sample(included, draw.randint(threshold, len(included)))
        opened = cohort.opened(masked, dealt, included, helpers)
        assert (opened == added(vectors, included)).all(), (size, included, helpers)


@pytest.mark.parametrize(
    ("size", "threshold", "survived", "colluding"),
    [(3, 3, 0, 1), (4, 3, 1, 1), (5, 4, 1, 2), (10, 7, 3, 3), (50, 34, 16, 17)],
)
def test_thresholds_are_those_of_the_table(
    size: int, threshold: int, survived: int, colluding: int
) -> None:
    found = least_threshold(size)
    assert (found, size - found, min(2 * found - size - 1, size - 2)) == (
        threshold,
        survived,
        colluding,
    )


def test_fewer_helpers_than_the_threshold_open_nothing() -> None:
    cohort = Cohort(5)
    vectors = drawn(cohort.numbers)
    masked, dealt = cohort.masked(vectors)
    with refusal("secure_unreadable"):
        cohort.opened(masked, dealt, cohort.numbers, cohort.numbers[:3])


def test_colluding_clients_below_the_threshold_cannot_put_a_seed_together() -> None:
    """Of four clients two and the server: what they hold of the other's mask fits any seed."""
    cohort = Cohort(4)
    _, dealt = cohort.masked(drawn(cohort.numbers))
    victim, colluding = cohort.numbers[0], cohort.numbers[1:3]
    shares = {}
    for helper in colluding:
        place = cohort.terms.helpers(victim).index(helper)
        row = cohort.sealed_for(helper, (victim,), dealt)
        # a lying helper reads what it can: its own share
        shares[place] = cohort.part(helper).open([victim], row)[0].tobytes()
    assert len(shares) < cohort.terms.threshold
    guess = join(shares)
    own = dealt[victim].commitments[0, 0].tobytes()
    from fedhubert.federation.secure.shares import commitment

    assert guess is None or commitment(guess) != own


def test_nobody_opens_both_secrets_of_a_client() -> None:
    """A client is in the sum (its own mask opens) or dropped (those of its pairs do)."""
    cohort = Cohort(5)
    included = cohort.numbers[:4]
    dropped = cohort.numbers[4]
    opened = {
        (dealer, secret)
        for dealer in included
        for secret in wanted_of(cohort.terms, dealer, included)
    }
    assert {dealer for dealer, secret in opened if secret == 0} == set(included)
    for dealer, secret in opened:
        if secret:
            assert cohort.terms.partners(dealer)[secret - 1] == dropped


def test_a_late_update_stays_masked_and_with_single_masks_it_would_not() -> None:
    cohort = Cohort(5)
    vectors = drawn(cohort.numbers)
    masked, dealt = cohort.masked(vectors)
    included, late = cohort.numbers[:4], cohort.numbers[4]
    opening = cohort.opening(included, dealt)
    for helper in included:
        opening.take(
            helper,
            cohort.part(helper).open(included, cohort.sealed_for(helper, included, dealt)),
        )
    total = added(masked, included)
    opening.unmask([total])
    assert (total == added(vectors, included)).all()
    # what the server now knows of the late one's pairs, taken off its late update
    pairs = {dealer: seed for (dealer, secret), seed in opening._seeds().items() if secret}
    single, double = vectors[late].copy(), masked[late].copy()
    plus = [pairs[other] for other in included if other > late]
    minus = [pairs[other] for other in included if other < late]
    add_masks(single, plus, minus)  # the protocol with single masks: this is what would arrive
    assert (single != vectors[late]).all()
    for update in (single, double):
        add_masks(update, minus, plus)
    assert (single == vectors[late]).all()
    assert (double != vectors[late]).all()


@pytest.mark.parametrize(
    "told",
    [
        {"said": {"model": "another"}},
        {"said": {"model": "m", "job": "another"}},
        {"round": 2},
        {"attempt": 1},
        {"roster": "another"},
        {"threshold": 5},
        {"run": "another"},
    ],
)
def test_clients_that_were_told_different_things_give_noise(told: dict[str, Any]) -> None:
    cohort = Cohort(5)
    vectors = drawn(cohort.numbers)
    masked, dealt = cohort.masked(vectors, {cohort.numbers[2]: told})
    with refusal("secure_share"):
        cohort.opened(masked, dealt, cohort.numbers)
    # and if its shares were left alone: masks that do not cancel
    for number in cohort.numbers:
        others = [
            agree(cohort.keys[number], cohort.terms, number, other).mask
            for other in cohort.numbers
            if other != number
        ]
        assert len(set(others)) == 4
    total = added(masked, cohort.numbers)
    assert (np.abs(total.astype(float)) > 2.0**50).mean() > 0.9


def test_a_cohort_told_to_one_alone_gives_noise() -> None:
    cohort = Cohort(5)
    masked, dealt = cohort.masked(drawn(cohort.numbers))
    one = cohort.numbers[0]
    fewer = {"cohort": cohort.numbers[:4], "keys": cohort.terms.keys[:4], "neighbours": 3}
    alone, _ = cohort.masked({one: drawn([one])[one]}, {one: {**fewer, "threshold": 3}})
    masked[one] = alone[one]
    total = cohort.opened(
        masked, dealt, cohort.numbers, [number for number in cohort.numbers if number != one]
    )
    assert (np.abs(total.astype(float)) > 2.0**50).mean() > 0.9
