"""How evenly a model serves the clients."""

import math
from collections.abc import Sequence

HIGHER_IS_BETTER = ("masked_accuracy", "accuracy", "macro_f1")
"""Figures of which more is better."""
COMPARED = ("loss", "masked_accuracy", "accuracy", "wer")
"""Figures by which clients are held against each other: by the first but the loss that there is."""


def fairness(values: Sequence[float], *, higher_is_better: bool = True) -> dict[str, float | int]:
    """Return, over clients that count the same however much audio they have: ``mean``,
    ``worst_decile`` (mean of the worst tenth, at least of one client), ``spread`` (standard
    deviation) and ``clients`` of one figure per client; empty without any."""
    if not values:
        return {}
    ordered = sorted(values, reverse=not higher_is_better)
    worst = ordered[: max(1, round(len(ordered) / 10))]
    mean = math.fsum(ordered) / len(ordered)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / len(ordered))
    return {
        "mean": mean,
        "worst_decile": math.fsum(worst) / len(worst),
        "spread": spread,
        "clients": len(ordered),
    }
