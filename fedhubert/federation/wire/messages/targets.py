"""Pseudo-labels: the steps of k-means, and what is counted of the labels."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from fedhubert.config.target_sets import MAX_SETS, of_set
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
_WITHHELD = frozenset(of_set("withheld_clusters", place) for place in range(1, MAX_SETS))


def of_sets(slots: Mapping[str, Slot]) -> dict[str, Slot]:
    """Return the slots of arrays that every set of pseudo-labels has."""
    return {of_set(name, place): slot for name, slot in slots.items() for place in range(MAX_SETS)}


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
    """Send sums, counts and inertia of the partitions' features under ``centroids`` [K, D], those
    of other sets than the first by their places (:func:`~fedhubert.config.target_sets.of_set`); a
    set that has none is not asked for."""

    KIND = "train.kmeans_step"
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        **of_sets({"centroids": _CENTROIDS}),
        "run_keys": RUN_KEYS,
    }
    MAX_ARRAYS = MAX_SETS + 1
    extractor: Key = ""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.arrays.keys() - {"run_keys"}:
            raise ValueError("no array 'centroids'")
        return self


class Label(Summing):
    """Label the partitions' audio, under ``centroids`` [K, D] of each set (none: precomputed labels
    are checked); ``targets`` names the labels. Not ``counted``: and send no counts."""

    KIND = "train.label"
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        **of_sets({"centroids": _CENTROIDS}),
        "run_keys": RUN_KEYS,
    }
    MAX_ARRAYS = MAX_SETS + 1
    targets: Key
    counted: bool = True
    extractor: Key = ""


class Seeds(Answer):
    """``centroids_n`` [k, D] and ``weights_n`` [k] of each partition n; of the set at place s
    ``centroids_s_n`` and ``weights_s_n``."""

    COLUMNS = frozenset({"frames", "withheld_clusters"})
    OPTIONAL = _WITHHELD
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        f"{name}_*": slot
        for name, slot in of_sets(
            {"centroids": Slot(("float32", "float64"), 2), "weights": Slot(("int64",), 1)}
        ).items()
    }
    MAX_ARRAYS = 2 * MAX_PARTITIONS


class Statistics(Answer):
    """``sums`` [K, D], ``counts`` [K] and ``inertia`` [K] over the partitions, of each set that was
    asked for."""

    COLUMNS = frozenset({"frames", "withheld_clusters"})
    OPTIONAL = _WITHHELD
    SLOTS: ClassVar[Mapping[str, Slot]] = of_sets(
        {
            "sums": Slot(("int64",), 2),
            "counts": Slot(("int64",), 1),
            "inertia": Slot(("int64",), 1),
        }
    )
    MAX_ARRAYS = 3 * MAX_SETS


class LabelCounts(Answer):
    """Frames by cluster of the first set, of both splits [K] over the partitions, and by cluster
    and label [K, L] where labels were asked for."""

    COLUMNS = frozenset({"frames", "label_rate_hz", "num_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "train": Slot(("int64",), 1),
        "validation": Slot(("int64",), 1),
        "contingency": Slot(("int64",), 2),
    }


class Moments(Answer):
    """``counts`` [1], ``sums`` [D] and ``products`` [D, D] over the partitions, of each set."""

    COLUMNS = frozenset({"frames"})
    SLOTS: ClassVar[Mapping[str, Slot]] = of_sets(
        {
            "counts": Slot(("int64",), 1),
            "sums": Slot(("int64",), 1),
            "products": Slot(("int64",), 2),
        }
    )
    MAX_ARRAYS = 3 * MAX_SETS


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
