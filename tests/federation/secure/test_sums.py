"""The protocol among clients without a federation around them: what opens, and what does not."""

import random
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import (
    ROW_BYTES,
    RunKey,
    agree,
    check_different,
    check_row,
    signer_of,
)
from fedhubert.federation.secure.masks import add_masks
from fedhubert.federation.secure.participant import wanted_of
from fedhubert.federation.secure.shares import join
from fedhubert.federation.secure.terms import (
    SumTerms,
    least_in_sum,
    least_threshold,
    neighbours_of,
)
from tests.federation.secure.cohort import Cohort, drawn


def added(vectors: dict[int, Any], numbers: Any) -> Any:
    return np.sum([vectors[number] for number in numbers], axis=0)


def refusal(code: str) -> Any:
    return pytest.raises(SecureError, match="") if not code else _Refusal(code)


class _Refusal:
    def __init__(self, code: str) -> None:
        self._raises, self._code = pytest.raises(SecureError), code

    def __enter__(self) -> None:
        self._found = self._raises.__enter__()

    def __exit__(self, *details: Any) -> bool:
        caught = bool(self._raises.__exit__(*details))
        assert self._found.value.code == self._code
        return caught


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


def test_an_altered_share_is_told_from_a_right_one_and_its_helper_named() -> None:
    cohort = Cohort(5)
    vectors = drawn(cohort.numbers)
    masked, dealt = cohort.masked(vectors)
    opening = cohort.opening(cohort.numbers, dealt)
    for helper in cohort.numbers:
        shares = cohort.part(helper).open(
            cohort.numbers, cohort.sealed_for(helper, cohort.numbers, dealt)
        )
        if helper == 4:
            shares = shares.copy()
            shares[1, 5] ^= 1
        opening.take(helper, shares)
    total = added(masked, cohort.numbers)
    opening.unmask([total])
    assert opening.liars == [4] and (total == added(vectors, cohort.numbers)).all()


def test_a_helper_with_shares_of_another_shape_is_named() -> None:
    cohort = Cohort(3)
    _, dealt = cohort.masked(drawn(cohort.numbers))
    opening = cohort.opening(cohort.numbers, dealt)
    opening.take(2, np.zeros((1, 33), np.uint8))
    assert opening.liars == [2]


def test_swapped_and_altered_sealed_shares_are_refused() -> None:
    cohort = Cohort(4)
    _, dealt = cohort.masked(drawn(cohort.numbers))
    sealed = cohort.sealed_for(2, cohort.numbers, dealt)
    with refusal("secure_share"):  # two dealers' rows changed places
        cohort.part(2).open(cohort.numbers, sealed[[1, 0, 2, 3]])
    with refusal("secure_share"):  # another helper's
        cohort.part(2).open(cohort.numbers, cohort.sealed_for(4, cohort.numbers, dealt))
    altered = sealed.copy()
    altered[0, 40] ^= 1
    with refusal("secure_share"):
        cohort.part(2).open(cohort.numbers, altered)
    with refusal("secure_share"):
        cohort.part(2).open(cohort.numbers, sealed[:3])
    with refusal("secure_share"):  # of an earlier attempt
        cohort.part(2, attempt=1).open(cohort.numbers, sealed)


def test_a_dealer_whose_shares_are_of_no_secret_is_named() -> None:
    cohort = Cohort(3)
    masked, dealt = cohort.masked(drawn(cohort.numbers))
    dealt[0].commitments.setflags(write=True) if dealt[0].commitments.flags.owndata else None
    wrong = dealt[0].commitments.copy()
    wrong[0, 0, 0] ^= 1
    opening = cohort.opening(cohort.numbers, dealt)
    opening.commitments = {**opening.commitments, 0: wrong}
    for helper in cohort.numbers:
        opening.take(
            helper,
            cohort.part(helper).open(
                cohort.numbers, cohort.sealed_for(helper, cohort.numbers, dealt)
            ),
        )
    with refusal("secure_share"):
        opening.unmask([added(masked, cohort.numbers)])


def test_masks_by_pairs_alone_cancel_when_all_answer_and_are_the_same_again() -> None:
    cohort = Cohort(5)
    vectors = drawn(cohort.numbers)
    total: Any = 0
    for number, vector in vectors.items():
        first, second = vector.copy(), vector.copy()
        cohort.part(number).mask([first], alone=True)
        cohort.part(number).mask([second], alone=True)
        assert (first == second).all() and (first != vector).all()
        total = total + first
    assert (total == added(vectors, cohort.numbers)).all()


def test_several_parts_are_masked_each_by_its_own_stream() -> None:
    cohort = Cohort(3)
    vectors, tails = drawn(cohort.numbers), drawn(cohort.numbers, 5, seed=1)
    masked = {number: (vectors[number].copy(), tails[number].copy()) for number in cohort.numbers}
    dealt = {number: cohort.part(number).mask(masked[number]) for number in cohort.numbers}
    opening = cohort.opening(cohort.numbers, dealt)
    for helper in cohort.numbers:
        opening.take(
            helper,
            cohort.part(helper).open(
                cohort.numbers, cohort.sealed_for(helper, cohort.numbers, dealt)
            ),
        )
    totals = [
        np.sum([masked[number][part] for number in cohort.numbers], axis=0) for part in (0, 1)
    ]
    opening.unmask(totals)
    assert (totals[0] == added(vectors, cohort.numbers)).all()
    assert (totals[1] == added(tails, cohort.numbers)).all()


def test_on_a_ring_each_has_masks_with_its_neighbours_alone() -> None:
    cohort = Cohort(30, neighbours=6)
    terms = cohort.terms
    for number in cohort.numbers:
        assert len(terms.partners(number)) == 6
        assert all(number in terms.partners(other) for other in terms.partners(number))
    vectors = drawn(cohort.numbers, 5)
    masked, dealt = cohort.masked(vectors)
    included = [number for number in cohort.numbers if number not in (4, 40)]
    opened = cohort.opened(masked, dealt, included)
    assert (opened == added(vectors, included)).all()


@pytest.mark.slow
def test_a_thousand_clients_on_a_ring() -> None:
    cohort = Cohort(1000, neighbours=neighbours_of(1000))
    assert cohort.terms.neighbours == 62
    vectors = drawn(cohort.numbers, 3)
    draw = random.Random(2)
    gone = set(draw.sample(cohort.numbers, 50))
    included = [number for number in cohort.numbers if number not in gone]
    masked, dealt = cohort.masked({number: vectors[number] for number in included})
    opened = cohort.opened(masked, dealt, included)
    assert (opened == added(vectors, included)).all()


def test_no_sum_is_of_two_clients_and_none_opens_below_the_threshold() -> None:
    cohort = Cohort(5)

    def terms(**changes: Any) -> SumTerms:
        return cohort.part(0, **changes).terms

    for count in (1, 2):
        with refusal("secure_cohort"):
            terms(cohort=cohort.numbers[:count], keys=cohort.terms.keys[:count]).check()
    with refusal("secure_cohort"):
        terms(cohort=(0, 0, 2, 4, 6)).check()
    with refusal("secure_cohort"):
        terms(keys=cohort.terms.keys[:4]).check()
    with refusal("secure_cohort"):
        terms(neighbours=3).check()
    for threshold in (3, 6, 0):
        with refusal("secure_threshold"):
            terms(threshold=threshold).check()
    terms(threshold=5).check()
    assert least_in_sum(cohort.terms, 2) == 4 and least_in_sum(cohort.terms, 5) == 5


def test_forged_swapped_repeated_and_strange_keys_are_refused() -> None:
    cohort = Cohort(3)
    row, key = cohort.rows[2], cohort.keys[2]
    roster = signer_of(row)
    check_row(row, "run", "", 2, roster)
    attempts = {
        "of another client": (row, "run", "", 4, None),
        "of another run": (row, "other", "", 2, roster),
        "of another roster": (row, "run", "f", 2, roster),
        "of a stranger": (cohort.rows[4], "run", "", 4, roster),
        "cut short": (row[:-1], "run", "", 2, roster),
        "another run key": (roster + cohort.rows[4][32:64] + row[64:], "run", "", 2, roster),
        "no key at all": (bytes(ROW_BYTES), "run", "", 2, None),
    }
    for what, (shown, run, fingerprint, number, expected) in attempts.items():
        with refusal("secure_keys"):
            check_row(shown, run, fingerprint, number, expected)
            pytest.fail(what)
    check_different(list(cohort.rows.values()))
    for rows in ([row, row], [row, RunKey(key.exchange, cohort.keys[4].signing).row("run", "", 4)]):
        with refusal("secure_keys"):
            check_different(rows)


def test_a_run_key_that_lies_in_a_small_group_is_refused() -> None:
    cohort = Cohort(3)
    signing = cohort.keys[2].signing
    row = signing.public_key().public_bytes_raw() + bytes(32) + bytes(64)
    bad = cohort.part(0, keys=(cohort.rows[0], row, cohort.rows[4])).terms
    with refusal("secure_keys"):
        agree(RunKey(X25519PrivateKey.generate(), signing), bad, 0, 2)
