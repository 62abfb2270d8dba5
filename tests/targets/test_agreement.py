"""Purity and PNMI against scikit-learn and by hand, and contingency counts per utterance and per frame."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import homogeneity_score
from sklearn.metrics.cluster import contingency_matrix

from fedhubert.data.manifest import Manifest
from fedhubert.targets.agreement import agreement, contingency
from fedhubert.targets.labels import LabelStore


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 6))
def test_figures_are_scikit_learns(seed: int, clusters: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = rng.integers(0, clusters, 200), rng.integers(0, labels, 200)
    found[:100] = truth[:100] % clusters
    figures = agreement(contingency_matrix(found, truth).astype(np.int64))
    assert figures is not None
    assert figures.pnmi == pytest.approx(
        homogeneity_score(truth, found), abs=1e-9
    )  # I(labels; clusters) / H(labels)
    assert (
        figures.label_purity
        == sum(np.bincount(truth[found == k]).max() for k in np.unique(found)) / 200
    )
    assert (
        figures.cluster_purity
        == sum(np.bincount(found[truth == k]).max() for k in np.unique(truth)) / 200
    )
    assert figures.chance_purity <= figures.label_purity + 1e-12


def test_by_hand() -> None:
    figures = agreement(np.array([[3, 1], [0, 4]]))
    assert figures is not None
    assert (
        figures.label_purity,
        figures.cluster_purity,
        figures.chance_purity,
        figures.frames,
    ) == (7 / 8, 7 / 8, 5 / 8, 8)
    one = agreement(np.array([[5], [3]]))
    assert one is not None and one.pnmi == 0.0
    assert agreement(np.zeros((3, 2), np.int64)) is None


def test_a_cell_is_a_label_or_a_label_per_frame(caplog: pytest.LogCaptureFixture) -> None:
    cells = [
        "aa",
        "aa " * 5 + "bb " * 5,
        "aa " * 10 + "bb " * 10,
        "aa bb " * 2 + "cc",
        "zz",
        "aa bb",
        "north west",
    ]
    count = len(cells)
    columns = {"phones": cells}
    manifest = Manifest(
        Path("."),
        [f"u{n}.wav" for n in range(count)],
        ["s"] * count,
        np.full(count, 3600),
        np.full(count, 16000),
        columns,
    )
    ids = np.tile(
        np.arange(10, dtype=np.int16) // 5, count
    )  # ten frames each: five of cluster 0, five of cluster 1
    store = LabelStore(ids, {row: (10 * row, 10 * row + 10) for row in range(count)}, 50, 3)
    values = ("bb", "aa", "north west")

    def table(row: int) -> list[list[int]]:
        return contingency(store, np.array([row]), manifest, "phones", values).tolist()

    assert table(0) == [[0, 5, 0], [0, 5, 0], [0, 0, 0]]
    assert table(1) == table(2) == [[0, 5, 0], [5, 0, 0], [0, 0, 0]]
    assert table(3) == [[2, 3, 0], [2, 1, 0], [0, 0, 0]]  # 25 Hz: aa aa bb bb aa | aa bb bb cc cc
    assert table(4) == np.zeros((3, 3)).tolist()
    assert not caplog.records
    assert table(5) == np.zeros((3, 3)).tolist() and "u5.wav" in caplog.text
    assert table(6) == [[0, 0, 5], [0, 0, 5], [0, 0, 0]]
    assert (
        contingency(store, np.array([0]), manifest, "words", values).sum() == 0
        and "words" in caplog.text
    )
