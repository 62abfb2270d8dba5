"""Pseudo-labels before the first round: federated k-means (sums and counts travel, never features), then labelling on each site."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array

from fedhubert.config import Config
from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.extractor_phase import distribute, read_extractor
from fedhubert.federation.nodes import Federation, describe_failures
from fedhubert.federation.preflight import check_alike
from fedhubert.federation.protocol import Failure, Reply
from fedhubert.targets.agreement import Agreement, agreement
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.kmeans import FederatedKMeans, KMeansStatistics, scale_of, targets_key
from fedhubert.targets.labels import most_frequent_share, unigram_entropy_nats
from fedhubert.targets.layers import LayerFeatures
from fedhubert.targets.mfcc import MFCC

log = logging.getLogger("fedhubert")

PRECOMPUTED = "precomputed"


@dataclass(frozen=True)
class Targets:
    """The run's pseudo-labels.

    Attributes:
        key: Names them on the sites: the hash of the centroids, with that of the extractor.
        centroids: float32[K, D]; None for precomputed labels.
        train_counts, validation_counts: Over all clients [K].
        source: What the centroids are of.
        agreement: With the labels of ``targets.label_column``, if any were found.
    """

    key: str
    centroids: npt.NDArray[np.float32] | None
    train_counts: npt.NDArray[np.int64]
    validation_counts: npt.NDArray[np.int64]
    source: FeatureSource = MFCC
    agreement: Agreement | None = None

    def event(self) -> dict[str, Any]:
        """Return what ``metrics.jsonl`` says of the labels: frames, entropy and most frequent share of each split."""
        splits = {"train_labels": self.train_counts, "validation_labels": self.validation_counts}
        return {
            "event": "targets",
            "key": self.key,
            "agreement": None if self.agreement is None else asdict(self.agreement),
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
        FedhubertError: nothing usable at ``targets.checkpoint``.
    """
    settings = federation.config.targets
    extractor = read_extractor(federation.config)
    source: FeatureSource = MFCC if extractor is None else _layer_features(federation.config, extractor)
    if extractor is not None:
        distribute(federation, extractor, on_event)
    task = {"extractor": "" if extractor is None else extractor.key}
    if settings.kind == "kmeans" and centroids is None:
        centroids = _fit(federation, task, source, on_event)
    key = PRECOMPUTED if centroids is None else targets_key(centroids, source.key)
    log.info("labelling every client's audio%s", "" if centroids is None else f" with {len(centroids)} clusters")
    arrays = None if centroids is None else {"centroids": Array(centroids)}
    counts = {name: np.zeros(settings.num_clusters, np.int64) for name in ("train", "validation")}
    table = np.zeros((settings.num_clusters, len(settings.label_values)), np.int64)
    for reply in _ask_everyone(federation, protocol.LABEL, arrays, {**task, "targets": key}):
        check_alike(reply.metrics, {"num_clusters": settings.num_clusters, "label_rate_hz": settings.label_rate_hz})
        for name in counts:
            counts[name] += _counts(reply, name, (settings.num_clusters,))
        if settings.label_column:
            table += _counts(reply, "contingency", table.shape)
    found = agreement(table)
    if settings.label_column:
        _say_agreement(settings.label_column, found)
    return Targets(key, centroids, counts["train"], counts["validation"], source, found)


def _counts(reply: Reply, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    found = reply.arrays.get(name)
    if found is None or found.shape != shape or found.dtype != np.int64 or (found < 0).any():
        raise FederationError(f"a site's label counts `{name}` should be int64{list(shape)} of at least 0", setting="version")
    return found


def _layer_features(config: Config, extractor: Extractor) -> LayerFeatures:
    """What the sites compute, for the server's own evaluation."""
    longest = round(config.data.max_seconds * config.data.sample_rate_hz)
    return LayerFeatures(extractor.key, lambda: extractor, longest, torch.device("cpu"))


def _say_agreement(column: str, found: Agreement | None) -> None:
    if found is None:
        log.warning("no client has labels of targets.label_values in the column %s: no purity, no PNMI", column)
        return
    log.info(
        "targets against %s: label purity %.3f (one cluster: %.3f), cluster purity %.3f, PNMI %.3f over %d frames",
        column,
        found.label_purity,
        found.chance_purity,
        found.cluster_purity,
        found.pnmi,
        found.frames,
    )


def _fit(
    federation: Federation, task: dict[str, Any], source: FeatureSource, on_event: Callable[[dict[str, Any]], None]
) -> npt.NDArray[np.float32]:
    settings = federation.config.targets
    solver = FederatedKMeans(settings.num_clusters, federation.config.seed, settings.max_iterations, settings.tolerance)
    log.info(
        "k-means: %d clusters over %s of %d clients",
        settings.num_clusters,
        settings.source,
        federation.config.federated.num_clients,
    )
    seeds: dict[int, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    for reply in _ask_everyone(federation, protocol.KMEANS_SEED, None, task):
        for partition in reply.metrics:
            seeds[partition] = (reply.arrays[f"centroids_{partition}"], reply.arrays[f"weights_{partition}"])
    solver.seed([seeds[partition] for partition in sorted(seeds)])
    done = False
    while not done:
        statistics = None
        assert solver.centroids is not None
        arrays, scale_bits = {"centroids": Array(solver.centroids)}, scale_of(solver.centroids)
        for reply in _ask_everyone(federation, protocol.KMEANS_STEP, arrays, task):
            part = KMeansStatistics.from_arrays(reply.arrays, settings.num_clusters, source.dimension, scale_bits)
            statistics = part if statistics is None else statistics + part
        assert statistics is not None
        done = solver.step(statistics)
        iteration, inertia = len(solver.history), solver.history[-1]
        log.info("k-means: iteration %d/%d, inertia per frame %.4g", iteration, settings.max_iterations, inertia)
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
