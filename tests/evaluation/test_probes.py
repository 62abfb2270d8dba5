"""Probes, folds and agreement on cases worked out by hand, and against scikit-learn."""

import sys

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from fedhubert.errors import ConfigError, DataError
from fedhubert.evaluation.clusters import cluster_frames, compare
from fedhubert.evaluation.probes import linear_probe, speaker_disjoint_folds, utterance_folds
from fedhubert.evaluation.resampling import ratio_interval


def halves(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    first, second = np.arange(count // 2), np.arange(count // 2, count)
    return [(first, second), (second, first)]


def test_separable_features_are_told_apart_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(4), 100)
    corners = 5.0 * np.eye(4, 8)
    clean = (corners[labels] + 0.1 * rng.standard_normal((400, 8))).astype(np.float32)
    noise = rng.standard_normal((400, 8)).astype(np.float32)
    found = linear_probe(clean, labels, halves(400))
    assert (found.accuracy, found.items, found.classes) == (1.0, 400, 4)
    assert found.fold_accuracies == [1.0, 1.0]
    assert linear_probe(noise, labels, halves(400)).accuracy == pytest.approx(0.25, abs=0.08)


def test_probe_is_linear_and_blind_to_scale() -> None:
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], size=(400, 2))
    features = (signs + 0.1 * rng.standard_normal((400, 2))).astype(np.float32)
    exclusive_or = (signs[:, 0] * signs[:, 1] > 0).astype(np.int64)
    first = (signs[:, 0] > 0).astype(np.int64)
    assert linear_probe(features, exclusive_or, halves(400)).accuracy < 0.65
    assert (
        linear_probe(
            features * np.float32([1e-4, 1e4]) + np.float32(3), first, halves(400)
        ).accuracy
        == 1.0
    )


def test_majority_is_that_of_the_items_fitted_on() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    features = np.arange(8, dtype=np.float32)[:, None]
    fold = [(np.arange(4), np.arange(4, 8))]
    assert linear_probe(features, labels, fold).majority == 0.25


def test_a_single_label_is_refused() -> None:
    with pytest.raises(DataError, match="at least two labels"):
        linear_probe(
            np.zeros((4, 2), np.float32), np.array([0, 0, 1, 1]), [(np.arange(2), np.arange(2, 4))]
        )


def test_no_speaker_is_on_both_sides() -> None:
    speakers = [f"speaker {number % 7}" for number in range(70)]
    folds = speaker_disjoint_folds(speakers, 5)
    assert len(folds) == 5
    for fit, score in folds:
        assert not {speakers[i] for i in fit} & {speakers[i] for i in score}
    assert sorted(np.concatenate([score for _, score in folds]).tolist()) == list(range(70))
    assert len(speaker_disjoint_folds(["a", "a", "b"], 5)) == 2
    with pytest.raises(DataError, match="--train-manifest"):
        speaker_disjoint_folds(["a", "a"], 5)


def test_utterance_folds_have_every_speaker_on_both_sides() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])  # the last speaker has one utterance
    folds = utterance_folds(labels, 5, seed=0)
    assert len(folds) == 3
    for fit, score in folds:
        assert set(labels[fit]) == set(labels[score]) == {0, 1}
        assert not set(fit.tolist()) & set(score.tolist())
    assert sorted(np.concatenate([score for _, score in folds]).tolist()) == list(range(9))
    with pytest.raises(DataError, match="two speakers"):
        utterance_folds(np.array([0, 0, 1]), 5, seed=0)


def test_agreement_of_a_table_by_hand() -> None:
    """Clusters by labels [[3, 1], [0, 4]]: I = 3/8 ln 2 + 1/8 ln(2/5) + 1/2 ln(8/5), worked out on paper."""
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    found = compare(clusters, labels)
    information = 3 / 8 * np.log(2) + 1 / 8 * np.log(2 / 5) + 1 / 2 * np.log(8 / 5)
    entropy = -(3 / 8 * np.log(3 / 8) + 5 / 8 * np.log(5 / 8))
    assert found.pnmi == pytest.approx(information / entropy, rel=1e-12)
    assert (found.label_purity, found.cluster_purity) == (7 / 8, 7 / 8)
    assert (found.chance_purity, found.frames) == (5 / 8, 8)


def test_agreement_at_its_ends_and_against_scikit_learn() -> None:
    labels = np.tile(np.arange(3), 40)
    assert compare(labels + 5, labels).pnmi == pytest.approx(1.0)
    assert compare(np.zeros(120, np.int64), labels).pnmi == 0.0
    assert compare(labels, np.zeros(120, np.int64)).pnmi == 0.0
    rng = np.random.default_rng(2)
    clusters, phones = rng.integers(0, 20, 3000), rng.integers(0, 7, 3000)
    clusters[phones == 3] = 11
    entropy = mutual_info_score(phones, phones)
    assert compare(clusters, phones).pnmi == pytest.approx(
        mutual_info_score(phones, clusters) / entropy, rel=1e-9
    )


def test_clusters_find_separate_clouds() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), 60)
    features = (
        10.0 * rng.standard_normal((5, 6))[labels] + 0.1 * rng.standard_normal((300, 6))
    ).astype(np.float32)
    assert compare(cluster_frames(features, 5, seed=0), labels).pnmi == pytest.approx(1.0)
    assert len(np.unique(cluster_frames(features[:3], 10, seed=0))) == 3


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedhubert\[eval\]'"):
        linear_probe(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), halves(4))


def test_an_accuracys_interval_is_over_speakers() -> None:
    """Two speakers with 3 of 3 and 0 of 1 right: a resample has one of them, or both."""
    found = ratio_interval([1, 1, 1, 0], [1] * 4, ["a", "a", "a", "b"], seed=0)
    assert found == [0.0, 1.0]
    assert ratio_interval([1, 0], [1, 1], ["a", "a"], seed=0) is None
    rng = np.random.default_rng(0)
    right, speakers = rng.random(4000) < 0.8, rng.integers(100, size=4000)
    low, high = ratio_interval(right, np.ones(4000), speakers, seed=0) or [1.0, 0.0]
    # as far as independent draws spread: 1.96 sqrt(0.8 * 0.2 / 4000) = 0.0124
    assert low == pytest.approx(right.mean() - 0.0124, abs=0.004)
    assert high == pytest.approx(right.mean() + 0.0124, abs=0.004)
