"""Nearest centroids, with the same answer for a frame whatever frames stand beside it.

A matrix product may round differently with another block size, thread count or BLAS, so a frame
between two centroids could fall either way. Here the product only rules out the centroids that are
farther by more than its error bound; those that remain (nearly always one) are compared through
distances that are computed elementwise in float64 with a summation order set by the dimension
alone.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.errors import TargetsError

Features = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float64]

_BLOCK_ENTRIES = 2**18  # of the score matrix: 2 MB, which stay in the cache
_CHECKED = 2**14  # frames
_ROUNDING = 2.0**-53


def assign(
    features_FD: Features, centroids_KD: Features, block_frames: int | None = None
) -> tuple[Ids, Distances]:
    """Return the nearest centroid of each frame (the lowest id among equals) and the squared
    distance to it.

    Args:
        features_FD: float32 frames.
        centroids_KD: float32 centroids.
        block_frames: Frames per matrix product; sets the memory used, never the result.

    Raises:
        TargetsError: shapes that do not fit, or values that are not finite.
    """
    check_features(features_FD, centroids_KD)
    ids = np.empty(len(features_FD), dtype=np.int64)
    distances = np.empty(len(features_FD), dtype=np.float64)
    for start, block_ids, block_distances in assign_blocks(features_FD, centroids_KD, block_frames):
        ids[start : start + len(block_ids)] = block_ids
        distances[start : start + len(block_ids)] = block_distances
    return ids, distances


def check_features(features_FD: Features, centroids_KD: Features) -> None:
    """Raise :class:`TargetsError` unless both are finite and of one width."""
    if (
        features_FD.ndim != 2
        or centroids_KD.ndim != 2
        or features_FD.shape[1] != centroids_KD.shape[1]
        or not len(centroids_KD)
    ):
        raise TargetsError(
            f"features of shape {features_FD.shape} do not fit centroids of shape "
            f"{centroids_KD.shape}",
            setting="targets.source",
        )
    # features can lie on disk
    blocks = (
        features_FD[start : start + _CHECKED] for start in range(0, len(features_FD), _CHECKED)
    )
    if not (all(np.isfinite(block).all() for block in blocks) and np.isfinite(centroids_KD).all()):
        raise TargetsError("features or centroids are not finite", setting="targets.source")


def assign_blocks(
    features_FD: Features, centroids_KD: Features, block_frames: int | None = None
) -> Iterator[tuple[int, Ids, Distances]]:
    """Yield (first frame, ids, squared distances) of block after block; see :func:`assign`."""
    block_frames = block_frames or max(64, _BLOCK_ENTRIES // len(centroids_KD))
    wide_KD = centroids_KD.astype(np.float64)
    transposed_DK = torch.from_numpy(-2.0 * wide_KD.T)
    norms_K = torch.from_numpy(np.square(wide_KD).sum(axis=1))
    for start in range(0, len(features_FD), block_frames):
        block = features_FD[start : start + block_frames].astype(np.float64)
        yield start, *_assign_block(block, wide_KD, transposed_DK, norms_K)


def _assign_block(
    block_FD: Distances, centroids_KD: Distances, transposed_DK: torch.Tensor, norms_K: torch.Tensor
) -> tuple[Ids, Distances]:
    frames_FD = torch.from_numpy(block_FD)
    # the squared distance less the frame's own norm
    scores_FK = torch.addmm(norms_K, frames_FD, transposed_DK)
    lowest_F, ids_F = scores_FK.min(dim=1)
    # A sum of n products errs by at most n * rounding * the sum of their magnitudes, in any order,
    # with or without fused operations; all the
    # magnitudes are below (|x| + |c|)^2. Two scores and two exact distances err at most four times
    # that; twice that is allowed for here.
    reach_F = torch.linalg.vector_norm(frames_FD, dim=1).add_(norms_K.max().sqrt()).square_()
    limit_F = lowest_F + reach_F * (8.0 * (block_FD.shape[1] + 8) * _ROUNDING)
    near_FK = scores_FK <= limit_F[:, None]
    if int(torch.count_nonzero(near_FK)) == len(block_FD):
        ids = ids_F.numpy()
        return ids, squared_distances(block_FD, centroids_KD[ids])
    return _decide(near_FK.numpy(), block_FD, centroids_KD)


def _decide(
    near_FK: npt.NDArray[np.bool_], block_FD: Distances, centroids_KD: Distances
) -> tuple[Ids, Distances]:
    """Choose among the near centroids of each frame by reproducible distances."""
    frame_P, cluster_P = np.nonzero(near_FK)  # pairs in the order of frames, then clusters
    distance_P = squared_distances(block_FD[frame_P], centroids_KD[cluster_P])
    first_F = np.searchsorted(frame_P, np.arange(len(block_FD)))
    lowest_F = np.minimum.reduceat(distance_P, first_F)
    winner_P = np.flatnonzero(distance_P == lowest_F[frame_P])
    _, first_winner = np.unique(frame_P[winner_P], return_index=True)
    return cluster_P[winner_P[first_winner]], lowest_F


def squared_distances(left_PD: Distances, right_PD: Distances) -> Distances:
    """Squared distances [P] between rows, in float64.

    Columns are added in a tree whose shape depends on D alone, by elementwise additions: a row's
    bits depend on that row alone.
    """
    terms = left_PD - right_PD
    terms *= terms
    while terms.shape[1] > 1:
        half = (terms.shape[1] + 1) // 2
        terms[:, : terms.shape[1] - half] += terms[:, half:]
        terms = terms[:, :half]
    return np.ascontiguousarray(terms[:, 0])
