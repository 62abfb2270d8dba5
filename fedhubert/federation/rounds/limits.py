"""What is believed of a round's replies: bounds of what a client says, and the norms that its
update may have.

From the ninth accepted update on an update may be ``federated.max_norm_ratio`` times as long as the
median of those accepted before. In the rounds until then the median is over those *and the round's
own*: the longest updates of such a round (:data:`HELD_BACK` of them) are kept out of its sum until
all replies are in; then those that are longer than so many medians are dropped, the median is taken
over the rest, and so on until none is. Which those are depends on the round's set of norms alone:
not on the order of arrival, and not on who was dropped, so a replay of the round with the clients
that it accepted accepts all of them. The sum of a node's clients is held by the longest of them;
where one of them is dropped the others are asked again. Memory: :data:`HELD_BACK` updates (4 bytes
a parameter) or sums (8 bytes), in the first rounds only.
"""

import heapq
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from fedhubert.clients import Metrics
from fedhubert.config import Config
from fedhubert.federation.roster.bounds import (
    check_sums,
    median_client,
    training_bounds,
    weight_limit,
)
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.journal import Entry
from fedhubert.federation.rounds.metrics import check_metrics
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.updates.codecs import num_bytes
from fedhubert.federation.updates.exact_sum import Magnitude, UpdateRejected, magnitude_of
from fedhubert.federation.updates.ring import RING_BITS
from fedhubert.federation.updates.sketches import sketch_width
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Scored
from fedhubert.federation.wire.protocol import Asked, Reply
from fedhubert.objectives.spec import ObjectiveSpec, spec_of
from fedhubert.training.parameters import ParameterLayout

HELD_BACK = 4
"""Updates, or sums of a node's, of a round that are kept out of its sum until the round's median is
known."""
_FEWEST_NORMS = 3
"""A median of fewer says nothing of any of them."""


@dataclass(frozen=True)
class RoundLimits:
    """What a round's replies are held against.

    Attributes:
        config: The run's.
        partitions: What the clients' sites described.
        weight: The most that an update weighs; None: what its client's data allows.
        norm: Updates longer than this are dropped as they arrive; None: earlier rounds do not tell
            yet.
        momentum: The same of what they do to the momentum that clients share.
        norms: Norms accepted in earlier rounds.
        most_held: Updates that may be held back in a round that has no ``norm``.
    """

    config: Config
    partitions: Mapping[int, Metrics]
    weight: int | None = None
    norm: float | None = None
    momentum: float | None = None
    norms: tuple[float, ...] = ()
    most_held: int = HELD_BACK

    @property
    def objective(self) -> ObjectiveSpec:
        """What the clients train, and score."""
        return spec_of(self.config.task)

    @property
    def holds_back(self) -> bool:
        """Whether the round's own median decides; never with differential privacy, where nobody
        decides of another's update."""
        return (
            self.norm is None
            and bool(self.config.federated.max_norm_ratio)
            and not self.config.privacy.enabled
        )

    def check(self, partition: int, metrics: Metrics) -> None:
        """Raise :class:`UpdateRejected` where a client says more of its round than its data
        allows."""
        about = self.partitions.get(partition)
        if about is None:
            raise UpdateRejected("partition")
        bounds = training_bounds(self.config, about, self.weight)
        if not 1 <= int(metrics["weight"]) <= bounds.weight or metrics["weight"] != int(
            metrics["weight"]
        ):
            raise UpdateRejected("weight")
        if not 1 <= int(metrics["train_steps"]) <= bounds.steps:
            raise UpdateRejected("steps")
        if not 1 <= int(metrics["train_micro_batches"]) <= bounds.micro_batches:
            raise UpdateRejected("steps")
        if not 0.0 <= metrics["train_audio_s"] <= bounds.audio_s or metrics["update_norm"] < 0.0:
            raise UpdateRejected("metrics")
        try:
            check_metrics(metrics, self.objective)
            check_sums(self.config, sums_of(metrics, "train_"), float(metrics["train_audio_s"]))
            self.check_scores(partition, metrics)
        except ValueError:
            raise UpdateRejected("metrics") from None
        if self.norm is not None and metrics["update_norm"] > self.norm:
            raise UpdateRejected("norm")

    def check_momenta(self, update: torch.Tensor, layout: ParameterLayout) -> Metrics:
        """Return the norm of what an ``update`` [P] does to the momenta that clients share, if they
        do; raises :class:`UpdateRejected` where it is too long.

        A limit of its own: beside the parameters they are short, and Muon makes directions of them
        however long they are.
        """
        if not layout.num_momenta:
            return {}
        norm = magnitude_of(update[-layout.num_momenta :]).norm
        if self.momentum is not None and norm > self.momentum:
            raise UpdateRejected("norm")
        return {"momentum_norm": norm}

    def check_scores(self, partition: int, metrics: Metrics) -> None:
        """Raise ``ValueError`` where a client's validation figures are out of range, or over more
        audio than it has."""
        check_sums(
            self.config,
            sums_of(metrics, "validation_"),
            float(self.partitions[partition].get("validation_audio_s", 0.0)),
        )

    def longest(self, norms: Iterable[float]) -> float | None:
        """Return the longest update to accept in a round of these ``norms``; None where they are
        too few to tell."""
        pool = [*self.norms, *norms]
        return (
            self.config.federated.max_norm_ratio * statistics.median(pool)
            if len(pool) >= _FEWEST_NORMS
            else None
        )


def limits_of(federation: Federation, state: RoundState, replayed: Entry | None) -> RoundLimits:
    """Return the limits of a round that comes after ``state``, or of one that is ``replayed``."""
    config = federation.config
    if not state.median_client:
        state.median_client = median_client(federation.partitions)
    dropped = [
        failure
        for failure in (replayed.failures if replayed else ())
        if failure.code == "update_norm"
    ]
    return RoundLimits(
        config,
        federation.partitions,
        weight_limit(config, state.median_client),
        state.norm_limit(config.federated.max_norm_ratio),
        state.momentum_limit(config.federated.max_norm_ratio),
        tuple(state.norms),
        HELD_BACK - len(dropped),  # those of the round as it went, which are not asked any more
    )


def usable_scores(
    reply: Reply[Scored], asked: Collection[int], limits: RoundLimits
) -> tuple[dict[int, Metrics], list[Failure]]:
    """Return the scores of a reply's partitions, and which of those asked failed; scores that
    cannot be are ``malformed``."""
    scores, failures = {}, list(reply.failures)
    for partition, metrics in reply.metrics.items():
        if partition not in asked:
            continue
        try:
            check_metrics(metrics, limits.objective)
            limits.check_scores(partition, metrics)
        except (KeyError, ValueError):
            failures.append(Failure(partition, "malformed"))
        else:
            scores[partition] = metrics
    return scores, failures


def sums_of(metrics: Metrics, prefix: str) -> dict[str, float]:
    """Return the figures whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def asked_for(config: Config, layout: ParameterLayout, partitions: list[int]) -> Asked:
    """Return what may come of a node that trains ``partitions``: one update, or the sum of
    several."""
    codec, sketches = (
        config.federated.update_codec,
        4 * len(partitions) * sketch_width(layout.numel),
    )
    arrays = {
        "update": num_bytes(codec, layout.shapes),
        "scales": 4 * sum(shape[0] if shape else 1 for shape in layout.shapes),
    }
    if len(partitions) > 1:
        width = RING_BITS.get(codec, 64) // 8
        arrays = {"sum": width * layout.numel}
    return Asked(partitions, {**arrays, "sketches": sketches})


@dataclass(frozen=True, order=True)
class Contribution:
    """What goes into a round's sum at once: a client's update, or the sum [P] of several clients;
    ``norm``: of the longest of them."""

    norm: float
    partitions: tuple[int, ...]
    values: torch.Tensor = field(compare=False)
    weight: int = field(compare=False)
    magnitude: Magnitude | None = field(compare=False, default=None)


class HeldBack:
    """The contributions of a round that are the longest so far."""

    def __init__(self, most: int) -> None:
        self._most, self._heap = max(0, most), list[Contribution]()

    def push(self, contribution: Contribution) -> Contribution | None:
        """Keep ``contribution``; returns the shortest of those held where they have become too
        many."""
        heapq.heappush(self._heap, contribution)
        return heapq.heappop(self._heap) if len(self._heap) > self._most else None

    def take(self, partitions: Iterable[int]) -> list[Contribution]:
        """Return the contributions that have any of ``partitions`` in them, and hold them no
        more."""
        wanted = set(partitions)
        taken = [item for item in self._heap if wanted & set(item.partitions)]
        self._heap = [item for item in self._heap if not wanted & set(item.partitions)]
        heapq.heapify(self._heap)
        return taken

    def take_all(self) -> list[Contribution]:
        """Return all, in the order of their partitions, and hold none."""
        taken, self._heap = self._heap, []
        return sorted(taken, key=lambda item: item.partitions)
