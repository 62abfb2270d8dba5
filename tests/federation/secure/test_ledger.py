"""What a client has masked and opened, over restarts and between two processes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedhubert.federation.secure.bindings import model_digest
from fedhubert.federation.secure.ledger import MOST_TRIES
from tests.federation.secure.cohort import Cohort
from tests.federation.secure.refusals import refusal

from .ledgers import ALL, COHORT, KIND, Site, about, site

__all__ = ["site"]  # fixtures

FEWER: dict[str, Any] = {
    "cohort": ALL[:4],
    "keys": COHORT.terms.keys[:4],
    "neighbours": 3,
    "threshold": 3,
}


def test_rounds_go_forward(site: Site) -> None:
    site.round(1)
    assert site.open(1).context == replace(COHORT.terms, round=1).context
    site.round(2, start=4)
    with refusal("secure_replay"):
        site.round(2, start=4)
    site.round(2, attempt=3, start=4)
    with refusal("secure_replay"):
        site.round(2, attempt=2, start=4)
    with refusal("secure_replay"):  # never asked for, and later ones were
        site.round(0)


def test_a_round_that_was_not_opened_may_have_another_cohort(site: Site) -> None:
    site.round(1)
    site.round(1, attempt=1, **FEWER)
    site.open(1, 1, ALL[:4])


def test_an_opened_round_is_repeated_with_the_same_cohort_and_model_alone(site: Site) -> None:
    site.round(1)
    site.open(1)
    with refusal("secure_cohort"):
        site.round(1, attempt=1, **FEWER)
    with refusal("secure_replay"):
        site.round(1, attempt=1, model="another")
    with refusal("secure_replay"):
        site.round(1, attempt=1, start=4)
    site.round(2, start=4)
    site.round(1, attempt=1)  # as a resumed run does
    site.open(1, 1)
    site.round(2, attempt=1, start=4)


@pytest.mark.parametrize("opened", [True, False])
def test_a_repeated_round_has_as_many_batches_as_before(site: Site, opened: bool) -> None:
    site.round(1)
    if opened:
        site.open(1)
    terms = replace(COHORT.terms, attempt=1)
    assert site.ledger.enter(terms, about()) == 4
    with refusal("secure_replay"):
        site.ledger.answered(terms, 3)
    site.ledger.answered(terms, 4)


@pytest.mark.parametrize("helped", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"settings": "another weight limit, clip norm, scale, job"},
        {"start": 4},
        {"own": "another kept state, other data"},
        {"model": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_repeated_round_is_the_same_but_for_its_cohort_whoever_helped_to_open_it(
    site: Site, helped: bool, change: dict[str, Any]
) -> None:
    """Else one site's part differs between two sums that the others have the same part in: a lower weight limit for the heaviest, other
    batches for one that was not asked to open the first."""
    site.round(1)
    if helped:
        site.open(1)
    with refusal("secure_replay"):
        site.round(1, attempt=1, **{"model": "model 1"} | change)
    site.round(1, attempt=1)


def test_what_a_site_has_to_refuse_it_is_not_asked_over_and_over(site: Site) -> None:
    """Each refusal tells a bit of its update: a norm above a limit, a weight above a scale."""
    for attempt in range(MOST_TRIES):
        site.ledger.enter(replace(COHORT.terms, attempt=attempt), about())
    with refusal("secure_replay"):
        site.ledger.enter(replace(COHORT.terms, attempt=MOST_TRIES), about())
    site.round(2)
    for attempt in range(
        1, 3 * MOST_TRIES
    ):  # the same again, as after interruptions, tells nothing
        site.round(2, attempt=attempt)


def test_a_round_is_opened_once(site: Site) -> None:
    site.round(1)
    site.open(1, included=ALL[:4])
    site.open(1, included=ALL[:4][::-1])
    with refusal("secure_opened"):
        site.open(1, included=ALL)
    site.round(1, attempt=1)
    with refusal("secure_opened"):
        site.open(1, 1, included=ALL)
    site.open(1, 1, included=ALL[:4])


@pytest.mark.parametrize(
    "included", [ALL[:3], ALL[1:], (0, 2, 4, 99), (0, 0, 0, 2, 2), ()], ids=str
)
def test_too_few_strangers_or_others_alone_are_not_opened(
    site: Site, included: tuple[int, ...]
) -> None:
    site.round(1)
    with refusal("secure_opened"):
        site.open(1, included=included)


def test_the_rosters_least_number_of_sites_holds_for_what_is_opened(site: Site) -> None:
    site.round(1)
    with refusal("secure_opened"):
        site.ledger.open(KIND, 1, 0, 0, ALL[:4], 5)


def test_a_sum_is_of_as_many_as_the_threshold_that_was_told(site: Site) -> None:
    site.round(1, threshold=5)
    with refusal("secure_opened"):
        site.open(1, included=ALL[:4])
    site.open(1)


def test_only_the_last_sum_is_opened_and_only_if_it_was_answered(site: Site) -> None:
    with refusal("secure_opened"):
        site.open(1)
    site.ledger.enter(replace(COHORT.terms, round=1), about())
    with refusal("secure_opened"):  # its training failed
        site.open(1)
    site.round(1, attempt=1)
    with refusal("secure_opened"):
        site.open(1, 0)
    site.round(2)
    with refusal("secure_opened"):
        site.open(1, 1)


def test_a_model_is_not_summed_over_two_cohorts_also_not_in_two_runs(site: Site) -> None:
    site.round(1, model="one")
    site.open(1)
    with refusal("secure_model"):
        site.round(2, model="one", start=4, **FEWER)
    site.round(2, model="one", start=4)  # as after a round that could not be read
    other = site.in_run("other")
    with refusal("secure_model"):
        other.round(1, model="one", **FEWER)
    other.round(1, model="one")


def test_a_number_that_is_another_site_in_another_roster_is_another_cohort(site: Site) -> None:
    """The one who came for it knows its own part, and so what the one before had sent."""
    old: dict[str, Any] = {"roster": "old"}
    site.round(1, **old)
    site.open(1)
    keys = (*COHORT.terms.keys[:4], Cohort(5).terms.keys[4])
    later = site.in_run("later")
    with refusal("secure_model"):
        later.round(1, roster="new", keys=keys)
    later.round(1, roster="new")  # the same sites under another name
    later.open(1)
    once = replace(COHORT.terms, **old, kind="train.label", run="labels")
    site.ledger.answer_once(once, "counts")
    with refusal("secure_cohort"):
        site.ledger.answer_once(replace(once, roster="new", keys=keys), "counts")


def test_a_model_is_not_opened_over_two_sets_of_one_cohort(site: Site) -> None:
    """The difference of the two would be who is in one alone: in another run, or in the next round after one that was skipped."""
    site.round(1, model="one")
    site.open(1)
    site.round(2, model="one", start=4)
    with refusal("secure_model"):
        site.open(2, included=ALL[:4])
    site.open(2)
    other = site.in_run("other")
    other.round(1, model="one")
    with refusal("secure_model"):
        other.open(1, included=ALL[:4])
    other.open(1)


def test_a_score_and_a_round_of_one_model_are_over_the_same_set(site: Site) -> None:
    """A round scores its model, too."""
    score = {"kind": "evaluate.model", "start": None, "model": "one"}
    site.round(1, **score)
    site.ledger.open("evaluate.model", 1, 0, 0, ALL, 3)
    with refusal("secure_model"):
        site.round(2, **score, **FEWER)
    site.round(2, **score)
    with refusal("secure_model"):
        site.ledger.open("evaluate.model", 2, 0, 0, ALL[:4], 3)
    with refusal("secure_model"):
        site.round(1, model="one", **FEWER)
    site.round(1, model="one")
    with refusal("secure_model"):
        site.open(1, included=ALL[:4])


def test_a_score_is_not_repeated_under_settings_that_one_site_would_answer_otherwise(
    site: Site,
) -> None:
    score = {"kind": "evaluate.model", "start": None, "model": "one"}
    site.round(1, **score)
    site.ledger.open("evaluate.model", 1, 0, 0, ALL, 3)
    with refusal("secure_model"):
        site.round(2, **score, settings="utterances up to a second longer")


@pytest.mark.parametrize(
    "change",
    [FEWER, {"settings": "a lower weight limit"}, {"places": "one at 1"}],
    ids=lambda change: next(iter(change)),
)
def test_batches_of_one_seed_are_summed_again_as_before_or_not_at_all(
    site: Site, change: dict[str, Any]
) -> None:
    """A model that differs by its last bit is another model; the batches are the same."""
    site.round(1)
    site.open(1)
    other = site.in_run("other")
    with refusal("secure_model"):
        other.round(1, model="a bit off", **change)
    other.round(2, model="a bit off")
    with refusal("secure_model"):
        other.open(2, included=ALL[:4])
    other.open(2)
    site.in_run("third").round(1, model="of another seed", seed=1, **change)


def test_a_model_is_known_by_its_values() -> None:
    values = np.array([0.0, 1.5, -2.0], np.float32)
    other = np.array([-0.0, 1.5, -2.0], np.float32)
    assert values.tobytes() != other.tobytes() and model_digest(values) == model_digest(other)
    assert model_digest(values) != model_digest(np.nextafter(values, np.float32(9)))


def test_batches_are_not_gone_back_to(site: Site) -> None:
    site.round(1, start=0)
    site.open(1)
    with refusal("secure_positions"):
        site.round(2, start=3)
    site.round(2, start=4)
    site.round(3, start=4)  # round 2 did without this client
    with refusal("secure_positions"):
        site.round(4, start=0)


def test_sums_of_one_message_are_of_one_cohort(site: Site) -> None:
    terms = replace(COHORT.terms, kind="train.kmeans_step", said={"centroids": "c"})
    other = replace(terms, said={"centroids": "with one entry -0.0, or rows in another order"})
    site.ledger.answer_once(terms, "sums")
    site.ledger.answer_once(terms, "sums")
    for again in (terms, other, replace(terms, kind="train.label")):
        with refusal("secure_cohort"):
            site.ledger.answer_once(replace(again, **FEWER), "sums")
    site.ledger.answer_once(other, "sums")


def test_masks_by_pairs_alone_hide_one_thing(site: Site) -> None:
    """They are the same again: of two things behind them the difference could be seen."""
    terms = replace(COHORT.terms, kind="train.label")
    site.ledger.answer_once(terms, "counts")
    with refusal("secure_replay"):
        site.ledger.answer_once(terms, "counts by another column of the manifest")
    site.ledger.answer_once(terms, "counts")
