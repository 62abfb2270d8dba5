"""Pseudo-labels: the steps of k-means, and what is counted of the labels."""

from collections.abc import Mapping
from typing import ClassVar

from fedhubert.federation.wire.messages.message import (
    MAX_PARTITIONS,
    RUN_KEYS,
    Answer,
    Instruction,
    Key,
    Slot,
    Table,
)
from fedhubert.federation.wire.messages.secure import MaskedCounts, Summing

_CENTROIDS = Slot(("float32",), 2)


class MomentsKMeans(Summing):
    """Send the sums of the partitions' features, and of their products with each other."""

    KIND = "train.kmeans_moments"
    SLOTS: ClassVar[Mapping[str, Slot]] = {"run_keys": RUN_KEYS}
    extractor: Key = ""


class SeedKMeans(Instruction):
    """Send weighted local centroids of the partitions' features; ``extractor`` names the model that
    gives them, empty for MFCC."""

    KIND = "train.kmeans_seed"
    extractor: Key = ""


class StepKMeans(Summing):
    """Send sums, counts and inertia of the partitions' features under ``centroids`` [K, D]."""

    KIND = "train.kmeans_step"
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "centroids": Slot(("float32",), 2, required=True),
        "run_keys": RUN_KEYS,
    }
    extractor: Key = ""


class Label(Summing):
    """Label the partitions' audio, under ``centroids`` [K, D] (none: precomputed labels are
    checked); ``targets`` names the labels. Not ``counted``: and send no counts."""

    KIND = "train.label"
    SLOTS: ClassVar[Mapping[str, Slot]] = {"centroids": _CENTROIDS, "run_keys": RUN_KEYS}
    targets: Key
    counted: bool = True
    extractor: Key = ""


class Seeds(Answer):
    """``centroids_n`` [k, D] and ``weights_n`` [k] of each partition n."""

    COLUMNS = frozenset({"frames", "withheld_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "centroids_*": Slot(("float32", "float64"), 2),
        "weights_*": Slot(("int64",), 1),
    }
    MAX_ARRAYS = 2 * MAX_PARTITIONS


class Statistics(Answer):
    """``sums`` [K, D], ``counts`` [K] and ``inertia`` [K] over the partitions."""

    COLUMNS = frozenset({"frames", "withheld_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "sums": Slot(("int64",), 2),
        "counts": Slot(("int64",), 1),
        "inertia": Slot(("int64",), 1),
    }


class LabelCounts(Answer):
    """Frames by cluster of both splits [K] over the partitions, and by cluster and label [K, L]
    where labels were asked for."""

    COLUMNS = frozenset({"frames", "label_rate_hz", "num_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "train": Slot(("int64",), 1),
        "validation": Slot(("int64",), 1),
        "contingency": Slot(("int64",), 2),
    }


class Moments(Answer):
    """``counts`` [1], ``sums`` [D] and ``products`` [D, D] over the partitions."""

    COLUMNS = frozenset({"frames"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "counts": Slot(("int64",), 1),
        "sums": Slot(("int64",), 1),
        "products": Slot(("int64",), 2),
    }


ANSWERS: Table = {
    SeedKMeans: Seeds,
    MomentsKMeans: Moments,
    StepKMeans: Statistics,
    Label: LabelCounts,
}
MASKED: Table = {
    MomentsKMeans: MaskedCounts,
    StepKMeans: MaskedCounts,
    Label: MaskedCounts,
}
