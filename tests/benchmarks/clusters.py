"""What the first pseudo-labels cost: MFCC, k-means and labels beside fairseq's ``simple_kmeans``, on the speech that FEDHUBERT_CORPUS names.

fairseq's way: ``torchaudio.compliance.kaldi.mfcc`` and deltas for each utterance, scikit-learn's MiniBatchKMeans with the recipe's settings, nearest
centroids by one matrix product. Ours: the same features, Lloyd's algorithm over clients whose frames stay apart, labels that do not depend on the
batch. ``python -m tests.benchmarks.clusters`` prints one JSON line per figure.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from torchaudio.compliance import kaldi

from fedhubert.config import TargetsConfig
from fedhubert.data.audio import read_audio
from fedhubert.data.manifest import Manifest
from fedhubert.targets.assignment import assign
from fedhubert.targets.kmeans import FederatedKMeans, KMeansStatistics, accumulate, local_seeds
from fedhubert.targets.mfcc import FEATURE_RATE_HZ, Features, mfcc_features
from tests.benchmarks.figures import figure, in_turn, run

Waveform = npt.NDArray[np.float32]


def peer_features(waveform: Waveform) -> Features:
    """fairseq's ``MfccFeatureReader``."""
    mfcc = kaldi.mfcc(torch.from_numpy(waveform)[None], sample_frequency=16000, use_energy=False).T
    deltas = torchaudio.functional.compute_deltas(mfcc)
    features: Features = (
        torch.cat([mfcc, deltas, torchaudio.functional.compute_deltas(deltas)])
        .T.contiguous()
        .numpy()
    )
    return features


def ours(clients: Sequence[Features], targets: TargetsConfig) -> Features:
    """Cluster frames that stay with their clients, as the sites and the server do."""
    kmeans = FederatedKMeans(targets.num_clusters, 0, targets.max_iterations, targets.tolerance)
    seeds = [
        local_seeds(
            frames[: targets.seed_frames_per_client],
            targets.num_clusters,
            0,
            number,
            targets.min_frames,
        )[:2]
        for number, frames in enumerate(clients)
    ]
    kmeans.seed(seeds)
    while True:
        assert kmeans.centroids is not None
        parts = [
            accumulate(frames, kmeans.centroids).without_few(targets.min_frames)[0]
            for frames in clients
        ]
        if kmeans.step(functools.reduce(KMeansStatistics.__add__, parts)):
            return kmeans.centroids


def peer(frames: Features, num_clusters: int) -> Features:
    """fairseq's ``learn_kmeans`` on the pooled frames."""
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(
        num_clusters,
        init="k-means++",
        batch_size=10_000,
        max_iter=100,
        tol=0.0,
        max_no_improvement=100,
        n_init=20,
        reassignment_ratio=0.0,
        random_state=0,
    )
    centroids: Features = kmeans.fit(frames).cluster_centers_.astype(np.float32)
    return centroids


def peer_assign(frames: Features, centroids: Features) -> npt.NDArray[np.int64]:
    """fairseq's ``ApplyKmeans``."""
    x_FD, centroids_DK = torch.from_numpy(frames), torch.from_numpy(centroids.T.copy())
    distances_FK = (
        x_FD.pow(2).sum(1, keepdim=True) - 2 * x_FD @ centroids_DK + centroids_DK.pow(2).sum(0)
    )
    return distances_FK.argmin(dim=1).numpy()


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return call(), time.process_time() - started


def compare(
    waveforms: Sequence[Waveform], num_clients: int, targets: TargetsConfig, repeats: int
) -> None:
    """Print CPU seconds of features, clustering and labels, and the inertia of both clusterings on all frames."""
    features = [mfcc_features(waveform) for waveform in waveforms]
    hours = sum(map(len, features)) / FEATURE_RATE_HZ / 3600
    pooled = np.concatenate(features)
    clients = [np.concatenate(features[number::num_clients]) for number in range(num_clients)]
    centroids, took = timed(lambda: ours(clients, targets))
    theirs, their_took = timed(lambda: peer(pooled, targets.num_clusters))
    sides: dict[str, Callable[[], object]] = {
        "features": lambda: [mfcc_features(waveform) for waveform in waveforms],
        "peer features": lambda: [peer_features(waveform) for waveform in waveforms],
        "labels": lambda: [assign(frames, centroids) for frames in features],
        "peer labels": lambda: [peer_assign(frames, centroids) for frames in features],
    }
    by_the_hour = in_turn(sides, repeats)
    for what in ("features", "labels"):
        figure(
            f"k-means: CPU per hour of audio, {what}",
            by_the_hour[what] / hours,
            by_the_hour[f"peer {what}"] / hours,
            "s",
        )
    about = f"{len(pooled)} frames, {targets.num_clusters} clusters"
    figure(
        f"k-means: CPU, {about}, {num_clients} clients, beside MiniBatchKMeans",
        took,
        their_took,
        "s",
    )
    inertia, their_inertia = (
        float(assign(pooled, points)[1].mean()) for points in (centroids, theirs)
    )
    figure(
        f"k-means: inertia per frame, {about}, beside MiniBatchKMeans",
        inertia,
        their_inertia,
        "squared distance",
    )


def speech(manifest: Manifest, minutes: float) -> list[Waveform]:
    """Return every n-th utterance of a manifest, about ``minutes`` in all."""
    step = max(1, int(manifest.lengths().sum() / (60 * 16000) / minutes))
    return [read_audio(manifest.audio_path(row)) for row in range(0, len(manifest), step)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)

    def from_corpus(given: argparse.Namespace) -> None:
        manifest = Manifest.read(Path(os.environ["FEDHUBERT_CORPUS"]) / "manifest.csv")
        compare(
            speech(manifest, given.minutes),
            given.clients,
            TargetsConfig(num_clusters=given.clusters),
            given.repeats,
        )

    run(parser, lambda: None, from_corpus)


if __name__ == "__main__":
    main()
