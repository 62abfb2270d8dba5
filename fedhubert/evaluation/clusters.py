"""How well clusters of frames agree with labels: purity and phone-normalised mutual information (Hsu et al. 2021, section IV-F)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedhubert.evaluation.sklearn_extra import require_sklearn

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """Of clusters z and labels y over frames.

    Attributes:
        label_purity: Share of frames whose label is the most frequent of their cluster ("phone purity").
        cluster_purity: Share of frames whose cluster is the most frequent of their label.
        pnmi: I(y; z) / H(y), the share of the label's uncertainty that the cluster removes; 0 where all labels are equal.
        clusters: Clusters in use.
        frames: Frames counted.
    """

    label_purity: float
    cluster_purity: float
    pnmi: float
    clusters: int
    frames: int


def agreement(clusters_F: Ids, labels_F: Ids) -> Agreement:
    """Compare two labellings of the same frames; raises ``ValueError`` for none, or for another number of frames."""
    if len(clusters_F) != len(labels_F) or not len(labels_F):
        raise ValueError(f"{len(clusters_F)} clusters for {len(labels_F)} labels")
    counts_KL = np.zeros((int(clusters_F.max()) + 1, int(labels_F.max()) + 1))
    np.add.at(counts_KL, (clusters_F, labels_F), 1)
    joint = counts_KL / len(labels_F)
    cluster, label = joint.sum(axis=1), joint.sum(axis=0)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / np.outer(cluster, label)[seen])).sum())
    entropy = float(-(label[label > 0] * np.log(label[label > 0])).sum())
    return Agreement(
        float(joint.max(axis=1).sum()),
        float(joint.max(axis=0).sum()),
        max(0.0, information) / entropy if entropy > 0 else 0.0,
        int((cluster > 0).sum()),
        len(labels_F),
    )


def cluster_frames(features_FD: npt.NDArray[np.float32], num_clusters: int, seed: int) -> Ids:
    """Return the clusters of mini-batch k-means with the settings of fairseq's ``learn_kmeans.py`` (but 5 initialisations, not 20)."""
    require_sklearn()
    from sklearn.cluster import MiniBatchKMeans

    solver = MiniBatchKMeans(
        n_clusters=min(num_clusters, len(features_FD)),
        batch_size=10_000,
        max_iter=100,
        n_init=5,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        random_state=seed % 2**32,
    )
    return np.asarray(solver.fit_predict(features_FD), dtype=np.int64)
