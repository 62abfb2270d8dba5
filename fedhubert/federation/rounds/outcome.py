"""What came of a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedhubert.clients import Metrics
from fedhubert.federation.wire.messages.message import Failure

_BYTES = ("bytes_down", "bytes_up", "bytes_down_fp32", "bytes_up_fp32")


@dataclass
class RoundOutcome:
    """What happened in a round: per-partition metrics of the clients whose updates were folded, and
    who failed and why.

    ``bytes_up_fp32`` and ``bytes_down_fp32`` are what the same arrays would have taken in float32.
    ``drift`` is :func:`~fedhubert.federation.rounds.drift.drift_of`'s (not where the strategy
    looks at every update) with the cosines to the mean, which stand in ``clients``, too; empty with
    differential privacy: it would tell of the sum without its noise. ``privacy`` is empty without
    differential privacy.

    With secure sums ``clients`` have steps and micro-batches alone; ``pooled`` has the sums of all
    else over them (:mod:`fedhubert.federation.secure.figures`), and ``secure`` what was masked,
    dropped and opened. Both are empty without.
    """

    number: int
    asked: list[int]
    clients: dict[int, Metrics] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_down_fp32: int = 0
    bytes_up_fp32: int = 0
    drift: dict[str, float] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pooled: dict[str, int | float] = field(default_factory=dict)
    secure: dict[str, Any] = field(default_factory=dict)

    def byte_counts(self) -> dict[str, int]:
        """Return the bytes of the round's arrays, by the names of the fields."""
        return {name: getattr(self, name) for name in _BYTES}

    def count_bytes_as(self, counts: Mapping[str, int]) -> None:
        """Take over what :meth:`byte_counts` gave before an interruption."""
        for name in _BYTES:
            setattr(self, name, counts.get(name, 0))
