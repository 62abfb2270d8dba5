"""Federated k-means of several sets side by side: each its own, all in the same messages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import TargetsConfig
from fedhubert.config.target_sets import of_set
from fedhubert.targets.assignment import Features
from fedhubert.targets.kmeans import Centroids, FederatedKMeans
from fedhubert.targets.moments import FeatureMoments
from fedhubert.targets.statistics import KMeansStatistics

Candidates = Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""Centroids [k, D] and their weights [k] of each client."""


class SetsKMeans:
    """The server's side of the k-means of all sets of ``targets``; see
    :class:`~fedhubert.targets.kmeans.FederatedKMeans`.

    Attributes:
        solvers: Of each set.
    """

    def __init__(self, targets: TargetsConfig, seed: int) -> None:
        self._sets = targets.label_sets
        self._most = targets.max_iterations
        self.solvers = [
            FederatedKMeans(each.num_clusters, seed, targets.max_iterations, targets.tolerance)
            for each in self._sets
        ]

    def seed(self, candidates: Sequence[Candidates]) -> None:
        """Choose the first centroids of each set; raises :class:`TargetsError`."""
        for solver, of_one in zip(self.solvers, candidates, strict=True):
            solver.seed(of_one)

    @property
    def done(self) -> bool:
        """Whether no set wants a further step."""
        return all(solver.done for solver in self.solvers)

    @property
    def asked(self) -> dict[int, Features]:
        """Centroids [K, D] of the sets that want a further step, by their place."""
        return {
            place: solver.centroids
            for place, solver in enumerate(self.solvers)
            if not solver.done and solver.centroids is not None
        }

    def step(self, statistics: Mapping[int, KMeansStatistics]) -> None:
        """Take the clients' added statistics of the sets that were :attr:`asked` for; raises
        :class:`TargetsError`."""
        for place, of_one in statistics.items():
            self.solvers[place].step(of_one)

    @property
    def iteration(self) -> int:
        """Steps so far."""
        return max(len(solver.history) for solver in self.solvers)

    @property
    def doing(self) -> tuple[str, int, int]:
        """Words for the next step, its number, and how many there are at most."""
        number = self.iteration + 1
        return f"k-means: iteration {number}/{self._most}", number, self._most

    @property
    def centroids(self) -> Centroids:
        """Those of each set."""
        return tuple(solver.centroids for solver in self.solvers if solver.centroids is not None)

    def events(
        self, statistics: Mapping[int, KMeansStatistics], said: Mapping[str, int | float]
    ) -> Iterator[dict[str, object]]:
        """Yield what ``metrics.jsonl`` says of a step, an event for each set, all but the first's
        with its place.

        Args:
            said: What the clients say of their statistics, added up.
        """
        for place, of_one in statistics.items():
            history = self.solvers[place].history
            yield {
                "event": "kmeans",
                **({"set": place} if place else {}),
                "iteration": len(history),
                "inertia_per_frame": history[-1],
                "frames": of_one.num_frames,
                "withheld_frames": int(said["frames"]) - of_one.num_frames,
                "withheld_clusters": int(said[of_set("withheld_clusters", place)]),
            }

    def __str__(self) -> str:
        """Where it stands, in a line."""
        inertia = ", ".join(
            f"{solver.history[-1]:.4g}{f' ({each.kind})' if len(self._sets) > 1 else ''}"
            for each, solver in zip(self._sets, self.solvers, strict=True)
        )
        return f"k-means: iteration {self.iteration}/{self._most}, inertia per frame {inertia}"

    def state_dict(self) -> dict[str, npt.NDArray[np.generic]]:
        """All that :meth:`load_state_dict` needs, as plain arrays."""
        return {
            of_set(name, place): array
            for place, solver in enumerate(self.solvers)
            for name, array in solver.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of :meth:`state_dict`; raises :class:`TargetsError` for another number of
        clusters."""
        for place, solver in enumerate(self.solvers):
            names = solver.state_dict()
            solver.load_state_dict({name: state[of_set(name, place)] for name in names})


def drawn_points(
    moments: Sequence[FeatureMoments], targets: TargetsConfig, seed: int
) -> list[Candidates]:
    """Return points drawn like the pooled frames of each set, each of weight 1; raises
    :class:`TargetsError` where there are no frames."""
    drawn = [
        of_one.points(each.num_clusters, seed)
        for of_one, each in zip(moments, targets.label_sets, strict=True)
    ]
    return [[(points, np.ones(len(points), np.int64))] for points in drawn]


def plain_centroids(centroids: Centroids) -> dict[str, object]:
    """Return what a checkpoint keeps of the centroids: the first set's by the name that they have
    always had, those of others beside them."""
    tensors = [torch.from_numpy(of_one.copy()) for of_one in centroids]
    others = {"other_centroids": tensors[1:]} if tensors[1:] else {}
    return {"centroids": tensors[0] if tensors else None, **others}


def centroids_in(kept: Mapping[str, Any]) -> Centroids:
    """Inverse of :func:`plain_centroids`; none where there are none."""
    if kept.get("centroids") is None:
        return ()
    return tuple(tensor.numpy() for tensor in (kept["centroids"], *kept.get("other_centroids", ())))
