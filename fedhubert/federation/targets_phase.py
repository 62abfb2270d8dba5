"""Pseudo-labels before the first round: federated k-means (sums and counts travel, never features), then labelling on each site."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.nodes import Federation, describe_failures
from fedhubert.federation.protocol import Failure, Reply
from fedhubert.targets.kmeans import FederatedKMeans, KMeansStatistics, centroids_hash
from fedhubert.targets.labels import most_frequent_share, unigram_entropy_nats
from fedhubert.targets.mfcc import NUM_FEATURES

log = logging.getLogger("fedhubert")

PRECOMPUTED = "precomputed"


@dataclass(frozen=True)
class Targets:
    """The run's pseudo-labels: ``key`` names them on the sites (the centroids' hash), counts are over all clients [K]."""

    key: str
    centroids: npt.NDArray[np.float32] | None
    train_counts: npt.NDArray[np.int64]
    validation_counts: npt.NDArray[np.int64]

    def event(self) -> dict[str, Any]:
        """Return what ``metrics.jsonl`` says of the labels: frames, entropy and most frequent share of each split."""
        splits = {"train_labels": self.train_counts, "validation_labels": self.validation_counts}
        return {
            "event": "targets",
            "key": self.key,
            **{
                name: {
                    "frames": int(counts.sum()),
                    "clusters_used": int((counts > 0).sum()),
                    "entropy_nats": unigram_entropy_nats(counts),
                    "most_frequent_share": most_frequent_share(counts),
                }
                for name, counts in splits.items()
            },
        }


def prepare_targets(
    federation: Federation, centroids: npt.NDArray[np.float32] | None, on_event: Callable[[dict[str, Any]], None]
) -> Targets:
    """Find the centroids (unless a resumed run brings them) and have every site label its audio.

    Raises:
        FederationError: a client that cannot take part; every client's frames count in the clustering, so none may be missing.
    """
    if federation.config.targets.kind == "kmeans" and centroids is None:
        centroids = _fit(federation, on_event)
    key = PRECOMPUTED if centroids is None else centroids_hash(centroids)
    log.info("labelling every client's audio%s", "" if centroids is None else f" with {len(centroids)} clusters")
    arrays = None if centroids is None else {"centroids": Array(centroids)}
    counts = {name: np.zeros(federation.config.targets.num_clusters, np.int64) for name in ("train", "validation")}
    for reply in _ask_everyone(federation, protocol.LABEL, arrays, {"targets": key}):
        for name in counts:
            counts[name] += reply.arrays[name]
    return Targets(key, centroids, counts["train"], counts["validation"])


def _fit(federation: Federation, on_event: Callable[[dict[str, Any]], None]) -> npt.NDArray[np.float32]:
    settings = federation.config.targets
    solver = FederatedKMeans(settings.num_clusters, federation.config.seed, settings.max_iterations, settings.tolerance)
    log.info(
        "k-means: %d clusters over %s of %d clients",
        settings.num_clusters,
        settings.source,
        federation.config.federated.num_clients,
    )
    seeds: dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    for reply in _ask_everyone(federation, protocol.KMEANS_SEED, None, {}):
        for partition in reply.metrics:
            seeds[partition] = (reply.arrays[f"centroids_{partition}"], reply.arrays[f"weights_{partition}"])
    solver.seed([seeds[partition] for partition in sorted(seeds)])
    done = False
    while not done:
        statistics = None
        assert solver.centroids is not None
        arrays = {"centroids": Array(solver.centroids)}
        for reply in _ask_everyone(federation, protocol.KMEANS_STEP, arrays, {}):
            part = KMeansStatistics.from_arrays(reply.arrays, settings.num_clusters, NUM_FEATURES)
            statistics = part if statistics is None else statistics + part
        assert statistics is not None
        done = solver.step(statistics)
        iteration, inertia = len(solver.history), solver.history[-1]
        log.info("k-means: iteration %d/%d, inertia per frame %.4f", iteration, settings.max_iterations, inertia)
        on_event({"event": "kmeans", "iteration": iteration, "inertia_per_frame": inertia, "frames": statistics.num_frames})
    assert solver.centroids is not None
    return solver.centroids


def _ask_everyone(federation: Federation, kind: str, arrays: dict[str, Array] | None, task: dict[str, Any]) -> list[Reply]:
    timeout_s = federation.config.federated.round_timeout_s
    replies = []
    failures: list[Failure] = []
    for reply in federation.ask(kind, federation.everyone(), timeout_s=timeout_s, arrays=arrays, task=task):
        replies.append(reply)
        failures += reply.failures
    if failures:
        setting = next((failure.setting for failure in failures if failure.setting), "")
        raise FederationError(f"{kind} failed: {describe_failures(failures)} (the site's log says more)", setting=setting)
    return replies
