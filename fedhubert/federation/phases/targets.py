"""Pseudo-labels before the first round: federated k-means (sums and counts travel, never features),
then labelling on each site."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fedhubert import live
from fedhubert.config.target_sets import of_set
from fedhubert.federation.phases.asking import ask_all, failed_of
from fedhubert.federation.phases.counts import Counts, count_shapes, read_counts, sizes_of
from fedhubert.federation.phases.delivery import (
    deliver,
    extractor_transfer,
    failures_of,
    go_on_without,
)
from fedhubert.federation.phases.kmeans import KMeansProgress, fit
from fedhubert.federation.phases.secure_counts import sum_over_all
from fedhubert.federation.roster.bounds import label_frames
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.secure.figures import LABEL_FIGURES
from fedhubert.federation.wire.messages.message import Arrays, Failure
from fedhubert.federation.wire.messages.targets import Label, LabelCounts
from fedhubert.targets.agreement import Agreement, agreement
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.kmeans import Centroids, targets_key
from fedhubert.targets.labels import most_frequent_share, unigram_entropy_nats
from fedhubert.targets.layers import LayerFeatures
from fedhubert.targets.mfcc import MFCC
from fedhubert.targets.sets import mfcc_source

log = logging.getLogger("fedhubert")

PRECOMPUTED = "precomputed"


@dataclass(frozen=True)
class Targets:
    """The run's pseudo-labels.

    Attributes:
        key: Names them on the sites: the hash of the centroids, with that of the extractor.
        centroids: float32[K, D] of each set; none for precomputed labels.
        train_counts, validation_counts: Over all clients, of the first set [K].
        source: What the centroids are of.
        extractor: The model that ``source`` runs, if any.
        agreement: Of the first set with the labels of ``targets.label_column``, if any were found.
    """

    key: str
    centroids: Centroids
    train_counts: npt.NDArray[np.int64]
    validation_counts: npt.NDArray[np.int64]
    source: FeatureSource = MFCC
    extractor: Extractor | None = None
    agreement: Agreement | None = None

    def instruction(self) -> Label:
        """Return what has sites make the labels."""
        arrays: Arrays = {
            of_set("centroids", place): of_one for place, of_one in enumerate(self.centroids)
        }
        return Label(
            targets=self.key,
            extractor="" if self.extractor is None else self.extractor.key,
            arrays=arrays,
        )

    def lineage(self) -> dict[str, str]:
        """Return what checkpoints say of where the labels are from: the hash that names them, and
        that of the model whose layer was clustered."""
        return {"key": self.key} | (
            {} if self.extractor is None else {"extractor": self.extractor.key}
        )

    def event(self) -> dict[str, object]:
        """Return what ``metrics.jsonl`` says of the labels: frames, entropy and most frequent share
        of each split."""
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


def no_targets(num_clusters: int) -> Targets:
    """Return what a task without pseudo-labels has in their place."""
    return Targets("", (), np.zeros(num_clusters, np.int64), np.zeros(num_clusters, np.int64))


def prepare_targets(
    federation: Federation,
    centroids: Centroids,
    progress: KMeansProgress,
    on_event: Callable[[dict[str, object]], None],
) -> Targets:
    """Find the centroids (unless a resumed run brings them) and have every site label its audio.

    Raises:
        FederationError: a client that cannot take part; every client's frames count in the
            clustering, so none may be missing.
        FedhubertError: nothing usable at ``targets.checkpoint``.
    """
    settings = federation.config.targets
    extractor = Extractor.of(settings)
    source: FeatureSource = (  # the server's own evaluation computes them too
        mfcc_source(settings)
        if extractor is None
        else LayerFeatures.of(extractor, federation.config.data, torch.device("cpu"))
    )
    if extractor is not None:
        delivery = deliver(
            federation,
            extractor_transfer(extractor),
            federation.hosts,
            on_event,
            federation.config.federated.round_timeout_s,
        )
        go_on_without(federation, delivery, "the extractor's delivery")
    if settings.kind == "kmeans" and not centroids:
        centroids = fit(
            federation, "" if extractor is None else extractor.key, source, progress, on_event
        )
    key = targets_key(centroids, source.key) if centroids else PRECOMPUTED
    live.doing("labelling every client's audio")
    log.info(
        "labelling every client's audio%s",
        f" with {' + '.join(str(len(of_one)) for of_one in centroids)} clusters"
        if centroids
        else "",
    )
    counts = {name: np.zeros(settings.num_clusters, np.int64) for name in ("train", "validation")}
    table = np.zeros((settings.num_clusters, len(settings.label_values)), np.int64)
    targets = Targets(key, centroids, counts["train"], counts["validation"], source, extractor)
    for labelled in _label_counts(federation, targets.instruction()):
        for name in counts:
            counts[name] += labelled[name]
        if settings.label_column:
            table += labelled["contingency"]
    found = agreement(table)
    if settings.label_column:
        _say_agreement(settings.label_column, found)
    return replace(targets, agreement=found)


def _label_counts(federation: Federation, instruction: Label) -> list[Mapping[str, Counts]]:
    """Return the clients' label counts, in parts that are to be added up."""
    if not federation.config.secure.enabled:
        return [
            *ask_all(
                federation, instruction, LabelCounts, lambda reply: read_counts(federation, reply)
            )
        ]
    config = federation.config

    def most(partition: int) -> int:
        about = federation.partitions[partition]
        return sum(label_frames(config, about, split) for split in ("train", "validation"))

    shapes = count_shapes(federation)
    return [sum_over_all(federation, instruction, shapes, LABEL_FIGURES, most).arrays]


def label_newcomers(
    federation: Federation,
    targets: Targets,
    shares: Mapping[int, Sequence[int]],
    on_event: Callable[[dict[str, object]], None],
    timeout_s: float,
) -> list[Failure]:
    """Have nodes that join later label their audio; returns what went wrong."""
    failures: list[Failure] = []
    if targets.extractor is not None:
        transfer = extractor_transfer(targets.extractor)
        delivery = deliver(federation, transfer, shares, on_event, timeout_s)
        failures = failures_of(delivery, shares)
        shares = {node: hosted for node, hosted in shares.items() if node not in delivery.failed}
    instruction, sizes = targets.instruction(), sizes_of(federation, LabelCounts)
    if federation.config.secure.enabled:  # counts of one alone do not leave it
        instruction = instruction.model_copy(update={"counted": False})
    for reply in federation.ask(
        instruction, LabelCounts, shares, timeout_s=timeout_s, num_bytes=sizes
    ):
        failures += failed_of(reply, shares[reply.node_id])
    return failures


def _say_agreement(column: str, found: Agreement | None) -> None:
    if found is None:
        log.warning(
            "no client has labels of targets.label_values in the column %s: no purity, no PNMI",
            column,
        )
        return
    log.info(
        "targets against %s: label purity %.3f (one cluster: %.3f), cluster purity %.3f, PNMI %.3f "
        "over %d frames",
        column,
        found.label_purity,
        found.chance_purity,
        found.cluster_purity,
        found.pnmi,
        found.frames,
    )
