"""What came of a round."""

from dataclasses import dataclass, field
from typing import Any

from fedhubert.clients import Metrics
from fedhubert.federation.wire.protocol import Failure


@dataclass
class RoundOutcome:
    """What happened in a round: per-partition metrics of the clients whose updates were folded, and who failed and why.

    ``bytes_up_fp32`` and ``bytes_down_fp32`` are what the same arrays would have taken in float32. ``drift`` is
    :func:`~fedhubert.federation.rounds.aggregate.drift_of`'s (not where the strategy looks at every update) with the cosines to the mean, which stand
    in ``clients``, too; empty with differential privacy: it would tell of the sum without its noise.
    ``privacy`` is empty without differential privacy.
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
