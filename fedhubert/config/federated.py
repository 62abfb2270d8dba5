"""Who takes part in a round, what the server does with the updates, and what of it is private."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedhubert.config import elsewhere
from fedhubert.config.base import Count, Fraction, Model, NonNegative, Positive, PositiveFraction, PositiveInt, Probability


class EarlyStoppingConfig(Model):
    """When a run ends before its last round: no improvement by ``min_delta`` over ``patience`` rounds; off without a patience."""

    monitor: Literal["loss", "masked_accuracy"] = "loss"
    patience: PositiveInt | None = None
    min_delta: NonNegative = 0.0


class FederatedConfig(Model):
    """Who takes part in a round and what the server does with the updates."""

    num_clients: PositiveInt = 10
    num_rounds: PositiveInt = 100
    client_fraction: PositiveFraction = 0.5
    sampling: Literal["random", "reshuffled"] = "random"
    min_clients: PositiveInt | None = None
    over_commit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    strategy: Literal[
        "FedAvg",
        "FedAvgM",
        "FedAdam",
        "FedYogi",
        "FedAdagrad",
        "FedProx",
        "FedNova",
        "FedMedian",
        "FedTrimmedAvg",
        "Krum",
    ] = "FedAdam"
    server_learning_rate: Positive = 1.0
    server_schedule: Literal["linear", "constant"] = "constant"
    server_warmup_fraction: Fraction = 0.0
    server_momentum: Probability = 0.9
    nesterov: bool = False
    proximal_mu: NonNegative = 0.01
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eta: Positive = 0.01
    tau: Positive = 0.001
    bias_correction: Literal["none", "flower"] = "none"
    num_malicious: Count = 1
    trim_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    weight_by: Literal["frames", "utterances", "uniform"] = "frames"
    max_norm_ratio: NonNegative = 10.0
    update_codec: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    broadcast_codec: Literal["fp32", "bf16"] = "fp32"
    client_cosines: bool = True
    round_timeout_s: Positive = 3600.0
    round_retries: Count = 2
    connect_timeout_s: Positive = 300.0
    node_keys: str | None = None
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()

    _known_strategy = field_validator("strategy", mode="wrap")(elsewhere.strategy)

    @property
    def clients_per_round(self) -> int:
        """Updates that make a round: the fraction of all clients, rounded, at least ``min_clients``."""
        return min(self.num_clients, max(self.min_clients or 1, round(self.client_fraction * self.num_clients), 1))

    @property
    def quorum(self) -> int:
        """Updates without which a round does not count: ``min_clients``, or half of those that make a round."""
        return self.min_clients or -(-self.clients_per_round // 2)

    @property
    def expected_cohort(self) -> float:
        """Clients of a round on average, where each is sampled by itself (differential privacy)."""
        return self.client_fraction * self.num_clients

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if self.min_clients is not None and self.min_clients > self.num_clients:
            raise ValueError(f"min_clients {self.min_clients} is larger than num_clients {self.num_clients}")
        return self


class PrivacyConfig(Model):
    """Central differential privacy of the clients (see :mod:`fedhubert.federation.privacy.mechanism`).

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of ``clip_norm``, as it is accounted for; 0 clips only, and protects nothing.
        clip_norm: Longest update; with ``target_quantile``, in the first round.
        target_quantile: Share of the updates to be left as they are, which the norm then follows at ``clip_learning_rate``; None: the norm is fixed.
        count_noise: Standard deviation of the noise on the number of updates left as they are; None: a twentieth of the expected cohort, and at
            least ``noise_multiplier``.
        delta: The probability with which epsilon may fail.
        max_epsilon: The budget: the run ends before the round that would exceed it.
        client_metrics: Whether checkpoints carry the clients' exact figures, which epsilon does not cover.
    """

    mechanism: Literal["none", "central"] = "none"
    noise_multiplier: Annotated[float, Field(ge=0.0, le=1e3)] = 1.0
    clip_norm: Positive = 1.0
    target_quantile: Probability | None = None
    clip_learning_rate: Positive = 0.2
    count_noise: Positive | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    max_epsilon: Positive | None = None
    client_metrics: bool = False

    @property
    def enabled(self) -> bool:
        return self.mechanism == "central"

    @property
    def hides_figures(self) -> bool:
        """Whether the clients' exact figures stay out of checkpoints."""
        return self.enabled and not self.client_metrics

    def largest_clip_norm(self, num_clients: int) -> float:
        """Return the norm up to which the sum of all clients' updates and its noise stay within the exact sum's integers."""
        return 2.0**27 / max(num_clients, 16.0 * self.noise_multiplier)

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.count_noise is not None and 2.0 * self.count_noise <= self.noise_multiplier:
            raise ValueError(
                f"count_noise={self.count_noise} must be more than half of noise_multiplier={self.noise_multiplier}, which covers the count, too"
            )
        if self.max_epsilon is not None and self.noise_multiplier == 0.0:
            raise ValueError(
                "noise_multiplier=0 has an infinite epsilon, and max_epsilon would allow no round: leave one of them out"
            )
        return self
