"""What a round hands to the next, and to a resumed run."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedhubert.clients.state import STATE_MISSING
from fedhubert.federation.rounds.outcome import RoundOutcome

_NORMS_KEPT, _NORMS_NEEDED = 64, 8


@dataclass
class RoundState:
    """What a round hands to the next besides the model and the server optimiser; kept in
    checkpoints.

    Attributes:
        positions: Partition -> micro-batches consumed so far.
        site_rounds: Partition -> the last round whose update of it was accepted: the version of its
            site's state to go on from.
        norms: Norms of the updates accepted last, oldest first.
        momentum_norms: The same of what they did to the momentum that clients share, where each
            came by itself.
        median_client: Medians of what the clients of the first round were described to have: what
            weights are limited by for the rest of the run, whoever comes and goes.
        largest_weight: The most that one of them can weigh, which a ring codec counts on; 0: not
            needed yet.
        secure_cohort: Who was asked for a secure sum that was opened and could not be read: over
            nobody else may the same model be summed.
        secure_included: Those of them over whom it was opened.
    """

    positions: dict[int, int] = field(default_factory=dict)
    site_rounds: dict[int, int] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    momentum_norms: list[float] = field(default_factory=list)
    median_client: dict[str, float] = field(default_factory=dict)
    largest_weight: int = 0
    secure_cohort: tuple[int, ...] = ()
    secure_included: tuple[int, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        positions = {str(partition): count for partition, count in self.positions.items()}
        return {
            "positions": positions,
            "site_rounds": {str(p): r for p, r in self.site_rounds.items()},
            "norms": list(self.norms),
            **({"momentum_norms": list(self.momentum_norms)} if self.momentum_norms else {}),
            "median_client": dict(self.median_client),
            **({"largest_weight": self.largest_weight} if self.largest_weight else {}),
            **({"secure_cohort": list(self.secure_cohort)} if self.secure_cohort else {}),
            **({"secure_included": list(self.secure_included)} if self.secure_included else {}),
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "RoundState":
        """Inverse of :meth:`to_plain`."""
        positions = {int(partition): int(count) for partition, count in values["positions"].items()}
        return cls(
            positions,
            {int(p): int(r) for p, r in values["site_rounds"].items()},
            [float(norm) for norm in values["norms"]],
            median_client={
                str(name): float(value) for name, value in values.get("median_client", {}).items()
            },
            momentum_norms=[float(norm) for norm in values.get("momentum_norms", ())],
            largest_weight=int(values.get("largest_weight", 0)),
            secure_cohort=tuple(int(partition) for partition in values.get("secure_cohort", ())),
            secure_included=tuple(
                int(partition) for partition in values.get("secure_included", ())
            ),
        )

    def accept(self, outcome: RoundOutcome) -> None:
        """Book a round whose model has been accepted."""
        for partition in sorted(outcome.clients):
            metrics = outcome.clients[partition]
            self.positions[partition] = self.positions.get(partition, 0) + int(
                metrics["train_micro_batches"]
            )
            self.site_rounds[partition] = outcome.number
            if not outcome.pooled:
                self.norms.append(float(metrics["update_norm"]))
            if "momentum_norm" in metrics:
                self.momentum_norms.append(float(metrics["momentum_norm"]))
        if outcome.pooled:  # one norm a round: the mean
            self.norms.append(outcome.pooled["weighted_norm"] / outcome.pooled["weight"])
        self.secure_cohort = self.secure_included = ()
        for failure in outcome.failures:
            if failure.code == STATE_MISSING:
                # it has lost its state: next time it begins afresh
                self.site_rounds[failure.partition] = 0
        del self.norms[:-_NORMS_KEPT], self.momentum_norms[:-_NORMS_KEPT]

    def versions(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return which version of its state each of ``partitions`` goes on from; 0: none."""
        return {partition: self.site_rounds.get(partition, 0) for partition in partitions}

    def skip(self, cohort: Sequence[int], micro_batches: Mapping[int, int]) -> None:
        """Book a round whose sum over the clients of ``micro_batches``, of those of ``cohort``, was
        opened and could not be read: they go on from where they are."""
        for partition, count in micro_batches.items():
            self.positions[partition] = self.positions.get(partition, 0) + count
        self.secure_cohort = self.secure_cohort or tuple(cohort)
        self.secure_included = self.secure_included or tuple(sorted(micro_batches))

    def norm_limit(self, ratio: float) -> float | None:
        """Return the longest update to accept: ``ratio`` times the median of those accepted before;
        None without enough of them."""
        return _limit(self.norms, ratio)

    def momentum_limit(self, ratio: float) -> float | None:
        """Return the same of what an update does to the shared momentum."""
        return _limit(self.momentum_norms, ratio)


def _limit(norms: Sequence[float], ratio: float) -> float | None:
    enough = ratio and len(norms) >= _NORMS_NEEDED
    return ratio * statistics.median(norms) if enough else None
