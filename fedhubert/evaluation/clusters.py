"""Clusters of frames, to be compared with labels (see :mod:`fedhubert.targets.agreement`)."""

import numpy as np
import numpy.typing as npt

from fedhubert.evaluation.sklearn_extra import require_sklearn
from fedhubert.targets.agreement import Agreement, agreement

Ids = npt.NDArray[np.int64]


def compare(clusters_F: Ids, labels_F: Ids) -> Agreement:
    """Compare two labellings of the same frames; raises ``ValueError`` for none, or for another
    number of frames."""
    if len(clusters_F) != len(labels_F):
        raise ValueError(f"{len(clusters_F)} clusters for {len(labels_F)} labels")
    counts_KL = np.zeros((int(clusters_F.max()) + 1, int(labels_F.max()) + 1), np.int64)
    np.add.at(counts_KL, (clusters_F, labels_F), 1)
    found = agreement(counts_KL)
    assert found is not None  # there is a frame
    return found


def cluster_frames(features_FD: npt.NDArray[np.float32], num_clusters: int, seed: int) -> Ids:
    """Return the clusters of mini-batch k-means with the settings of fairseq's ``learn_kmeans.py``
    (but 5 initialisations, not 20)."""
    require_sklearn()
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

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
    with threadpool_limits(1):  # as for probes
        return np.asarray(solver.fit_predict(features_FD), dtype=np.int64)
