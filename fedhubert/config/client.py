"""Local training, and failures to rehearse with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedhubert.config.base import Count, Fraction, Model, NonNegative, Positive, PositiveInt, Probability


class ClientConfig(Model):
    """Local training on one client."""

    local_steps: Annotated[int, Field(ge=1)] | None = None
    local_epochs: PositiveInt = 1
    max_seconds: Positive | None = None
    accumulate: PositiveInt = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    optimizer_policy: Literal["reset", "keep"] = "reset"
    lr: Positive = 5e-4
    momentum: Probability = 0.0
    betas: tuple[Probability, Probability] = (0.9, 0.98)
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.01
    warmup_fraction: Fraction = 0.08
    schedule: Literal["linear", "constant"] = "linear"
    grad_clip_norm: NonNegative = 10.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    validation_batches: Count = 0
    state_dir: str | None = None
    state_max_gb: Positive | None = 100.0

    def steps_per_round(self, num_batches: int) -> int:
        """Return the optimiser steps of a round for a client whose epoch has ``num_batches`` micro-batches."""
        return self.local_steps or max(1, num_batches // self.accumulate) * self.local_epochs

    @property
    def sgd_momentum(self) -> float:
        """The momentum that FedNova has to know of; AdamW's counts as none."""
        return self.momentum if self.optimizer == "sgd" else 0.0


class BaselineConfig(Model):
    """What training without federation takes instead of ``client``'s (None: the same): a server optimiser's clients may need another optimiser."""

    optimizer: Literal["adamw", "sgd"] | None = None
    lr: Positive | None = None
    schedule: Literal["linear", "constant"] | None = None
    warmup_fraction: Fraction | None = None
    weight_decay: NonNegative | None = None

    def of(self, client: ClientConfig) -> ClientConfig:
        """Return the settings of ``client`` with these in their place."""
        return client.model_copy(update=self.model_dump(exclude_none=True))


class FaultsConfig(Model):
    """Failures to rehearse with: each client of each round draws, from the run's seed, whether it fails and how.

    Attributes:
        crash: Probability that the node dies instead of answering (a node that hosts several clients loses all of them).
        delay_s: Up to this long a client waits before it answers.
        nan: Probability of an update with a value that is not a number.
        truncate: Probability of an update that is cut short.
    """

    crash: Fraction = 0.0
    delay_s: NonNegative = 0.0
    nan: Fraction = 0.0
    truncate: Fraction = 0.0
