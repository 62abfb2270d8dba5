"""How well pseudo-labels agree with labels that people gave: contingency counts, purity and PNMI
(HuBERT, section IV-F)."""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.errors import DataError
from fedhubert.targets.labels import TOLERANCE_FRAMES, LabelStore

log = logging.getLogger("fedhubert.site")

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """Figures of a contingency table.

    Attributes:
        label_purity: Share of frames whose label is the most frequent one of their cluster (phone
            purity in the paper).
        cluster_purity: Share of frames whose cluster is the most frequent one of their label.
        pnmi: Mutual information of clusters and labels over the labels' entropy.
        chance_purity: Label purity of a single cluster: the share of the most frequent label.
        frames: Frames counted.
    """

    label_purity: float
    cluster_purity: float
    pnmi: float
    chance_purity: float
    frames: int


def contingency(
    store: LabelStore, rows: Rows, manifest: Manifest, column: str, values: tuple[str, ...]
) -> Counts:
    """Count frames by cluster and label [K, L]; a label is known by its place in ``values``, others
    are not counted.

    A cell is one label for the whole utterance, or a label per frame, separated by spaces, at the
    store's rate, twice or half of it. Cells that are neither are left out and named in the site's
    log; so is the whole table (all 0) when the manifest has no such column.
    """
    counts = np.zeros((store.num_clusters, len(values)), np.int64)
    try:
        cells = manifest.column(column)
    except DataError as error:
        log.warning("targets.label_column: %s", error)
        return counts
    place = {value: number for number, value in enumerate(values)}
    for row in rows.tolist():
        clusters = store.first(row)
        labels = _labels(cells[row], len(clusters), place)
        if labels is None:
            log.warning(
                "%s: column %s holds neither one label nor one per frame",
                manifest.paths[row],
                column,
            )
            continue
        known = labels >= 0
        np.add.at(counts, (clusters[known], labels[known]), 1)
    return counts


def agreement(counts_KL: Counts) -> Agreement | None:
    """Return the figures of a contingency table, or None if it is empty."""
    total = int(counts_KL.sum())
    if total == 0:
        return None
    joint = counts_KL / total
    cluster, label = joint.sum(axis=1), joint.sum(axis=0)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / np.outer(cluster, label)[seen])).sum())
    entropy = float(-(label[label > 0] * np.log(label[label > 0])).sum())
    return Agreement(
        int(counts_KL.max(axis=1).sum()) / total,
        int(counts_KL.max(axis=0).sum()) / total,
        information / entropy if entropy > 0 else 0.0,
        int(counts_KL.sum(axis=0).max()) / total,
        total,
    )


def _labels(cell: str, frames: int, place: dict[str, int]) -> npt.NDArray[np.int64] | None:
    """Return the place of each frame's label (-1: not among the values), or None for a cell that
    does not fit."""
    tokens = [cell] if cell in place else cell.split()
    if len(tokens) <= 1:
        return np.full(frames, place.get(cell, -1))
    for ratio in (1.0, 2.0, 0.5):  # labels per frame
        if abs(len(tokens) / ratio - frames) <= TOLERANCE_FRAMES:
            found = np.array([place.get(token, -1) for token in tokens])
            return found[np.minimum((np.arange(frames) * ratio).astype(np.int64), len(tokens) - 1)]
    return None
