"""Which figures of a client go into a secure sum, and in which order: what both ends go by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol

from fedhubert.config.target_sets import of_set
from fedhubert.federation.secure.tail import BITS, COUNT

Metrics = Mapping[str, int | float]
CLEAR = ("train_micro_batches", "train_steps")
"""What is said of each client: the journal and batch positions go by it."""
MOMENT_FIGURES = (COUNT, "frames")
LABEL_FIGURES = (COUNT, "frames")
CHARACTER_FIGURES = (COUNT, "characters")
"""Figures beside moments, statistics, label counts and counts of characters."""
FINER = 2**6
"""Factor on weighted norms before they are squared: weights are below the largest."""
SCORED, LOSS, LOSS_SQUARED = "scored", "score_loss", "score_loss_squared"
"""Clients with a validation split, and their losses there: mean and spread over clients."""
_TRAINED = (
    *("weight", "weighted_norm", "weighted_norm_squared", "weighted_steps", "update_unclipped"),
    *("clipped_entries", "train_audio_s", "train_grad_norm", "train_seconds"),
)


class Objective(Protocol):
    """What is asked of an objective (:class:`fedhubert.objectives.spec.ObjectiveSpec`)."""

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Names of its sums."""

    @property
    def trained_sum_names(self) -> tuple[str, ...]:
        """Names of those that training has, too."""

    def metrics(self, sums: Mapping[str, float]) -> Mapping[str, object]:
        """Figures of its sums."""


def step_figures(num_sets: int) -> tuple[str, ...]:
    """Return the figures beside the statistics of so many sets."""
    withheld = (of_set("withheld_clusters", place) for place in range(num_sets))
    return (COUNT, "frames", *withheld)


def score_names(objective: Objective) -> list[str]:
    """Return the names of what a score adds to a sum."""
    own = [f"validation_{name}" for name in objective.sum_names]
    return [COUNT, SCORED, LOSS, LOSS_SQUARED, *own]


def train_names(objective: Objective) -> list[str]:
    """Return the names of what a trained client adds to a sum."""
    return [
        *score_names(objective),
        *_TRAINED,
        *(f"train_{name}" for name in objective.trained_sum_names),
    ]


def score_figures(metrics: Metrics, objective: Objective) -> dict[str, int | float]:
    """Return what a client's validation sums add."""
    sums = {
        name.removeprefix("validation_"): value
        for name, value in metrics.items()
        if name.startswith("validation_")
    }
    loss = objective.metrics(sums).get("loss") if sums else None
    score = (
        {SCORED: 1, LOSS: loss, LOSS_SQUARED: loss**2}
        if isinstance(loss, int | float) and math.isfinite(loss)
        else {}
    )
    return {COUNT: 1, **score, **{f"validation_{name}": value for name, value in sums.items()}}


def train_figures(
    metrics: Metrics, objective: Objective, *, steps: float, scale: float
) -> dict[str, int | float | Fraction]:
    """Return what a trained client's metrics add.

    Args:
        metrics: What it would have said in the clear.
        steps: Its effective steps (FedNova).
        scale: About the largest weight of the round times the norm of an update.
    """
    weight = int(metrics["weight"])
    length = weight * float(metrics["update_norm"])
    left = {*CLEAR, "weight", "update_norm"}
    return {
        **score_figures(metrics, objective),
        **{
            name: value
            for name, value in metrics.items()
            if name not in left and not name.startswith("validation_")
        },
        "weight": weight,
        "weighted_norm": length,
        "weighted_norm_squared": (FINER * length / scale) ** 2,
        "weighted_steps": Fraction(weight * on_grid(steps), 2**BITS),
    }


def on_grid(value: float) -> int:
    """Return ``value`` in steps of the grid that figures are added on."""
    steps: int = round(value * 2**BITS)
    return steps
