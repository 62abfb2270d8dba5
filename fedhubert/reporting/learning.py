"""Is anything being learned? Said in words, from the figures of the held-out splits and the two
levels of a model that ignores its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MARGIN_NATS, MARGIN_RATIO = 0.02, 1.1
"""Better than a level by this much: less is noise of some thousand masked frames."""
PATIENCE = 5
"""Rounds without a verdict, and the least after which a plateau is called one."""
PATIENCE_SHARE = 0.1
"""Of all rounds: runs of many short rounds leave the plateau later."""
SEE = 'fedhubert/reporting/README.md, "Is it learning"'


@dataclass(frozen=True)
class Levels:
    """What a model reaches that ignores its input.

    Attributes:
        entropy_nats: Its loss, the entropy of the labels' frequencies.
        most_frequent_share: Its accuracy, the share of the most frequent label.
    """

    entropy_nats: float
    most_frequent_share: float

    @classmethod
    def of(cls, targets: Mapping[str, Any]) -> Levels | None:
        """Return those of the validation splits from a ``targets`` event; None where there are no
        labels, or only one."""
        labels = targets.get("validation_labels", {})
        if not labels.get("entropy_nats"):
            return None
        return cls(labels["entropy_nats"], labels["most_frequent_share"])

    def __str__(self) -> str:
        return f"chance {self.entropy_nats:.4f}, {self.most_frequent_share:.4f}"

    def passed_by(self, figures: Mapping[str, Any]) -> bool:
        """Whether ``figures`` (loss in nats and masked accuracy) are beyond both levels."""
        return bool(
            figures["loss"] <= self.entropy_nats - MARGIN_NATS
            and figures["masked_accuracy"] >= MARGIN_RATIO * self.most_frequent_share
        )


def verdict(
    validations: Sequence[Mapping[str, Any]], levels: Levels | None, num_rounds: int
) -> str:
    """Return in a few words whether the models scored so far have learned; ``""`` while it is too
    early to say, or where there is nothing to compare with.

    Args:
        validations: Figures of each model, in the order of ``model_round``; those without any are
            left out.
        levels: Of the labels.
        num_rounds: Length of the run.
    """
    scored = [each for each in validations if "masked_accuracy" in each and each["model_round"]]
    if levels is None or not scored:
        return ""
    passed = [levels.passed_by(each) for each in scored]
    if passed[-1]:
        since = max((number for number, good in enumerate(passed) if not good), default=-1) + 1
        return f"above chance since round {scored[since]['model_round']}"
    if any(passed):
        last = max(number for number, good in enumerate(passed) if good)
        return f"back at chance, above it last in round {scored[last]['model_round']}: see {SEE}"
    last_round = scored[-1]["model_round"]
    if last_round < max(PATIENCE, PATIENCE_SHARE * num_rounds):
        return ""
    return f"has not left the plateau after {last_round} rounds: see {SEE}"
