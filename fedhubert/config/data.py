"""Which audio, whose it is, and how it is cut into batches."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Count, Model, Positive, PositiveInt


class PartitionConfig(Model):
    """How one manifest becomes the clients' data (simulation; a real site's manifest is its own partition)."""

    kind: Literal["random", "speaker", "column", "dirichlet"] = "random"
    column: str | None = None
    alpha: Positive = 0.5
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2

    @model_validator(mode="after")
    def _column_given(self) -> Self:
        if self.kind in ("column", "dirichlet") and not self.column:
            raise ValueError(f"kind={self.kind} needs `column`, the manifest column to split by")
        return self


class DataConfig(Model):
    """Where the audio is and how batches are cut from it."""

    manifest: str | None = None
    root: str | None = None
    sample_rate_hz: Literal[16000] = 16000
    min_seconds: Annotated[float, Field(ge=0.25)] = 2.0
    max_seconds: Positive = 15.625
    batch_seconds: Positive = 87.5
    num_workers: Count = 1
    prefetch_batches: PositiveInt = 4
    partition: PartitionConfig = PartitionConfig()

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError("min_seconds is larger than max_seconds")
        if self.batch_seconds < self.max_seconds:
            raise ValueError("batch_seconds is smaller than max_seconds, so the longest crop fits no batch")
        return self
