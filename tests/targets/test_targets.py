"""Pseudo-labels: features as Kaldi's, federated k-means as pooled Lloyd, labels that fit their audio."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.compliance.kaldi as kaldi
import torchaudio.functional
from sklearn.cluster import KMeans

from fedhubert.data.audio import read_audio
from fedhubert.data.manifest import Manifest
from fedhubert.errors import TargetsError
from fedhubert.targets import kmeans
from fedhubert.targets.features import fitting_features
from fedhubert.targets.labels import (
    assigned_labels,
    cached_labels,
    most_frequent_share,
    precomputed_labels,
    unigram_entropy_nats,
)
from fedhubert.targets.mfcc import mfcc_features, stream_features


@pytest.fixture(scope="module")
def manifest(tone_folder: Path) -> Manifest:
    paths = sorted(path.relative_to(tone_folder).as_posix() for path in tone_folder.rglob("*.wav"))
    infos = [soundfile.info(tone_folder / path) for path in paths]
    samples = np.array([info.frames for info in infos], np.int64)
    rates = np.array([info.samplerate for info in infos], np.int32)
    return Manifest(tone_folder, paths, [path.split("/")[0] for path in paths], samples, rates, {})


ROWS = np.arange(12)


def real_features(corpus: Path, frames: int = 12_000) -> np.ndarray:
    manifest = Manifest.read(corpus / "manifest.csv")
    return fitting_features(manifest, np.arange(0, len(manifest), 9), frames, seed=0, partition=0)


def test_mfcc_are_kaldis_with_deltas(manifest: Manifest) -> None:
    for row in (0, 3, 7):
        waveform = read_audio(manifest.audio_path(row))
        ours = mfcc_features(waveform)
        cepstra = kaldi.mfcc(
            torch.from_numpy(waveform)[None], sample_frequency=16000, use_energy=False
        ).T
        deltas = torchaudio.functional.compute_deltas(cepstra)
        theirs = torch.cat(
            [cepstra, deltas, torchaudio.functional.compute_deltas(deltas)]
        ).T.numpy()
        assert ours.shape == theirs.shape == ((len(waveform) - 400) // 160 + 1, 39)
        np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=1e-4)


def test_too_short_audio_is_named() -> None:
    with pytest.raises(TargetsError):
        mfcc_features(np.zeros(399, np.float32))


def test_streaming_is_in_order_whatever_the_threads(manifest: Manifest) -> None:
    inline, threaded = (list(stream_features(manifest, [5, 1, 9], workers)) for workers in (0, 2))
    assert [row for row, _, _ in threaded] == [5, 1, 9]
    for (_, _, left), (_, _, right) in zip(inline, threaded, strict=True):
        assert np.array_equal(left, right)


def test_fitting_features_are_bounded_and_of_the_seed(manifest: Manifest) -> None:
    features = fitting_features(manifest, ROWS, 500, seed=0, partition=0)
    assert 300 < len(features) <= 500
    assert np.array_equal(features, fitting_features(manifest, ROWS, 500, seed=0, partition=0))
    assert not np.array_equal(
        features[:100], fitting_features(manifest, ROWS, 500, seed=1, partition=0)[:100]
    )
    assert len(fitting_features(manifest, ROWS, 20, seed=0, partition=0)) == 20


def blobs(count: int = 3000, clusters: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 20, (clusters, 39))
    return (centers[rng.integers(0, clusters, count)] + rng.normal(0, 1, (count, 39))).astype(
        np.float32
    )


def run_federated(
    parts: list[np.ndarray], clusters: int, iterations: int, order: list[int]
) -> kmeans.FederatedKMeans:
    solver = kmeans.FederatedKMeans(clusters, seed=3, max_iterations=iterations, tolerance=0.0)
    solver.seed([kmeans.local_seeds(parts[i], clusters, 3, i, 20)[:2] for i in range(len(parts))])
    done = False
    while not done:
        assert solver.centroids is not None
        total = None
        for index in order:
            part = kmeans.accumulate(parts[index], solver.centroids)
            total = part if total is None else total + part
        assert total is not None
        done = solver.step(total)
    return solver


def test_federated_is_pooled_lloyd_bit_for_bit_in_any_order_and_split() -> None:
    features = blobs()
    parts = np.array_split(features, [100, 1500, 1501])
    solver = run_federated(parts, 8, 6, [0, 1, 2, 3])
    shuffled = run_federated(parts, 8, 6, [2, 0, 3, 1])
    assert (
        np.array_equal(solver.centroids, shuffled.centroids) and solver.history == shuffled.history
    )
    pooled = kmeans.FederatedKMeans(8, seed=3, max_iterations=6, tolerance=0.0)
    pooled.seed([kmeans.local_seeds(parts[i], 8, 3, i, 20)[:2] for i in range(4)])
    while not pooled.step(kmeans.accumulate(features, pooled.centroids)):
        pass
    assert np.array_equal(solver.centroids, pooled.centroids)
    reseeded = all((np.diff(solver.history) <= 1e-9 * solver.history[0]).tolist())
    assert reseeded, solver.history


def test_a_step_is_lloyds_by_hand() -> None:
    features = np.array([[0.0], [1.0], [10.0], [11.0], [12.0]], np.float32)
    centroids = np.array([[0.0], [10.0]], np.float32)
    statistics = kmeans.accumulate(features, centroids)
    assert statistics.counts_K.tolist() == [2, 3]
    assert statistics.inertia == pytest.approx(0 + 1 + 0 + 1 + 4)
    moved, _ = kmeans.update_centroids(statistics, centroids, np.random.default_rng(0))
    assert moved.ravel().tolist() == pytest.approx([0.5, 11.0])


def test_assignment_is_the_nearest_and_the_same_in_any_chunk() -> None:
    features, centroids = blobs(999), blobs(40)
    ids, distances = kmeans.assign(features, centroids)
    exact = ((features[:, None].astype(np.float64) - centroids[None]) ** 2).sum(-1)
    assert np.array_equal(ids, exact.argmin(1))
    np.testing.assert_allclose(distances, exact.min(1), rtol=1e-6, atol=1e-6)
    for cut in (1, 7, 500):
        pieces = [kmeans.assign(piece, centroids)[0] for piece in np.array_split(features, cut)]
        assert np.array_equal(np.concatenate(pieces), ids)


def test_empty_clusters_are_filled() -> None:
    features = blobs(500, clusters=3)
    centroids = np.concatenate([features[:3], np.full((2, 39), 1e3, np.float32)])
    rng = np.random.default_rng(0)
    for _ in range(5):
        centroids, _ = kmeans.update_centroids(
            kmeans.accumulate(features, centroids), centroids, rng
        )
    assert (kmeans.accumulate(features, centroids).counts_K > 0).all()


@pytest.mark.parametrize("change", ["shape", "dtype", "negative", "huge", "missing"])
def test_statistics_from_outside_are_checked(change: str) -> None:
    arrays = kmeans.accumulate(blobs(100), blobs(4)).to_arrays()
    if change == "shape":
        arrays["sums"] = arrays["sums"][:-1]
    elif change == "dtype":
        arrays["counts"] = arrays["counts"].astype(np.float64)
    elif change == "negative":
        arrays["counts"] = -arrays["counts"]
    elif change == "huge":
        arrays["sums"] = np.full_like(arrays["sums"], 2**62)
    else:
        del arrays["inertia"]
    with pytest.raises(TargetsError):
        kmeans.KMeansStatistics.from_arrays(arrays, 4, 39)


def test_real_speech_is_clustered_as_well_as_scikit_learn_does(corpus: Path) -> None:
    features = real_features(corpus)
    parts = np.array_split(features, 4)
    solver = run_federated(parts, 50, 15, [0, 1, 2, 3])
    ours = kmeans.accumulate(features, solver.centroids).inertia
    theirs = KMeans(50, n_init=1, max_iter=15, random_state=0).fit(features).inertia_
    assert ours < 1.02 * theirs


def test_labels_are_cached_by_centroids_and_audio_and_a_damaged_cache_is_rebuilt(
    manifest: Manifest, tmp_path: Path
) -> None:
    centroids = kmeans.local_seeds(fitting_features(manifest, ROWS, 2000, 0, 0), 6, 0, 0, 1)[0]
    key = kmeans.centroids_hash(centroids)
    builds: list[int] = []

    def build() -> object:
        builds.append(1)
        return assigned_labels(manifest, ROWS, (centroids,), num_workers=2)

    first = cached_labels(tmp_path, manifest, ROWS, key, build)
    again = cached_labels(tmp_path, manifest, ROWS, key, None)
    assert len(builds) == 1 and isinstance(again.ids, np.memmap)
    expected = kmeans.assign(mfcc_features(read_audio(manifest.audio_path(4))), centroids)[0]
    assert np.array_equal(again.labels(4), expected) and np.array_equal(first.labels(4), expected)
    counts = again.counts(ROWS)
    assert counts.sum() == again.num_frames == len(first.ids)
    assert most_frequent_share(counts) == counts.max() / counts.sum()
    with pytest.raises(TargetsError, match="no labels for this run"):
        cached_labels(tmp_path, manifest, ROWS, "other", None)
    with pytest.raises(TargetsError, match="no labels for this run"):
        cached_labels(tmp_path, manifest, ROWS[:-1], key, None)
    (path,) = tmp_path.glob("labels-*.npy")
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    rebuilt = cached_labels(tmp_path, manifest, ROWS, key, build)
    assert len(builds) == 2 and np.array_equal(rebuilt.ids, first.ids)


def test_unigram_entropy() -> None:
    assert unigram_entropy_nats(np.array([5, 5, 0, 5, 5])) == pytest.approx(np.log(4))
    assert unigram_entropy_nats(np.array([0, 9])) == 0.0


def km(path: Path, lines: list[int], value: int = 1) -> str:
    path.write_text("".join(" ".join([str(value)] * count) + "\n" for count in lines))
    return str(path)


def test_precomputed_labels_are_checked_by_utterance(manifest: Manifest, tmp_path: Path) -> None:
    samples = manifest.lengths()
    at_100 = ((samples - 400) // 160 + 1).tolist()
    at_50 = ((samples - 400) // 320 + 1).tolist()
    store = precomputed_labels(manifest, ROWS, km(tmp_path / "good.km", at_100), 100, 4)
    assert [len(store.labels(row)) for row in range(12)] == at_100
    with pytest.raises(
        TargetsError,
        match=r"utterance0\.wav: \d+ labels for \d+ frames at 100 Hz; they look like 50 Hz",
    ):
        precomputed_labels(manifest, ROWS, km(tmp_path / "slow.km", at_50), 100, 4)
    with pytest.raises(TargetsError, match="11 lines, the manifest 12 utterances"):
        precomputed_labels(manifest, ROWS, km(tmp_path / "few.km", at_100[:-1]), 100, 4)
    with pytest.raises(TargetsError, match="label 4, but targets.num_clusters is 4"):
        precomputed_labels(manifest, ROWS, km(tmp_path / "high.km", at_100, value=4), 100, 4)
    wrong = [*at_100[:5], at_100[5] - 30, *at_100[6:]]
    with pytest.raises(TargetsError, match=manifest.paths[5]):
        precomputed_labels(manifest, ROWS, km(tmp_path / "short.km", wrong), 100, 4)
