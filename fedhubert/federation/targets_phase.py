"""Pseudo-labels before the first round: federated k-means (sums and counts travel, never features), then labelling on each site."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.arrays import HeldArray
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

    def arrays(self) -> dict[str, Array] | None:
        """Return what sites need to make the labels."""
        return None if self.centroids is None else {"centroids": HeldArray(self.centroids)}

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


class KMeansProgress(Protocol):
    """Where the clustering of an interrupted run left off, and where it is kept."""

    def load(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the solver's state, empty or None where there is none."""

    def save(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Keep the solver's state."""


def prepare_targets(
    federation: Federation,
    centroids: npt.NDArray[np.float32] | None,
    progress: KMeansProgress,
    on_event: Callable[[dict[str, Any]], None],
) -> Targets:
    """Find the centroids (unless a resumed run brings them) and have every site label its audio.

    Raises:
        FederationError: a client that cannot take part; every client's frames count in the clustering, so none may be missing.
    """
    if federation.config.targets.kind == "kmeans" and centroids is None:
        centroids = _fit(federation, progress, on_event)
    key = PRECOMPUTED if centroids is None else centroids_hash(centroids)
    log.info("labelling every client's audio%s", "" if centroids is None else f" with {len(centroids)} clusters")
    counts = {name: np.zeros(federation.config.targets.num_clusters, np.int64) for name in ("train", "validation")}
    targets = Targets(key, centroids, counts["train"], counts["validation"])
    for reply in _ask_all(federation, protocol.LABEL, targets.arrays(), {"targets": key}):
        for name in counts:
            if name in reply.arrays:
                counts[name] += reply.arrays[name]
    return targets


def label_newcomers(federation: Federation, targets: Targets, shares: dict[int, list[int]]) -> list[Failure]:
    """Have nodes that join later label their audio; returns what went wrong."""
    timeout_s = federation.config.federated.round_timeout_s
    replies = federation.ask(protocol.LABEL, shares, timeout_s=timeout_s, arrays=targets.arrays(), task={"targets": targets.key})
    return [failure for reply in replies for failure in reply.failures]


def _fit(federation: Federation, progress: KMeansProgress, on_event: Callable[[dict[str, Any]], None]) -> npt.NDArray[np.float32]:
    settings = federation.config.targets
    solver = FederatedKMeans(settings.num_clusters, federation.config.seed, settings.max_iterations, settings.tolerance)
    log.info("k-means: %d clusters over %s of %d clients", settings.num_clusters, settings.source, len(federation.connected))
    state = progress.load()
    if state:
        solver.load_state_dict(state)
        log.info("k-means: going on after iteration %d", len(solver.history))
    else:
        solver.seed(_seeds(federation))
        progress.save(solver.state_dict())
    while not solver.done:
        statistics = None
        assert solver.centroids is not None
        for reply in _ask_all(federation, protocol.KMEANS_STEP, {"centroids": HeldArray(solver.centroids)}, {}):
            if reply.metrics:
                part = KMeansStatistics.from_arrays(reply.arrays, settings.num_clusters, NUM_FEATURES)
                statistics = part if statistics is None else statistics + part
        assert statistics is not None
        solver.step(statistics)
        iteration, inertia = len(solver.history), solver.history[-1]
        log.info("k-means: iteration %d/%d, inertia per frame %.4f", iteration, settings.max_iterations, inertia)
        on_event({"event": "kmeans", "iteration": iteration, "inertia_per_frame": inertia, "frames": statistics.num_frames})
        progress.save(solver.state_dict())
    assert solver.centroids is not None
    return solver.centroids


def _seeds(federation: Federation) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    seeds: dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    for reply in _ask_all(federation, protocol.KMEANS_SEED, None, {}):
        for partition in reply.metrics:
            seeds[partition] = (reply.arrays[f"centroids_{partition}"], reply.arrays[f"weights_{partition}"])
    return [seeds[partition] for partition in sorted(seeds)]


def _ask_all(federation: Federation, kind: str, arrays: Mapping[str, Array] | None, task: dict[str, Any]) -> list[Reply]:
    """Ask every connected client, those that fail once more up to ``federated.round_retries`` times; raises :class:`FederationError`."""
    federated = federation.config.federated
    shares = federation.everyone()
    replies = []
    for attempt in range(federated.round_retries + 1):
        heard: set[int] = set()
        failures: list[Failure] = []
        for reply in federation.ask(kind, shares, timeout_s=federated.round_timeout_s, arrays=arrays, task=task):
            replies.append(reply)
            heard |= set(reply.metrics)
            failures += reply.failures
        shares = {node: left for node, asked in shares.items() if (left := [number for number in asked if number not in heard])}
        if not shares:
            return replies
        if attempt < federated.round_retries:
            log.warning("%s failed: %s; asking again", kind, describe_failures(failures))
    setting = next((failure.setting for failure in failures if failure.setting), "")
    raise FederationError(f"{kind} failed: {describe_failures(failures)} (the site's log says more)", setting=setting)
