"""Shares that were altered, swapped or never dealt, and rings of masks."""

import random
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhubert.federation.secure.keys import (
    ROW_BYTES,
    RunKey,
    agree,
    check_different,
    check_row,
    signer_of,
)
from fedhubert.federation.secure.terms import SumTerms, least_in_sum, neighbours_of
from tests.federation.secure.cohort import Cohort, drawn
from tests.federation.secure.refusals import added, refusal


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
