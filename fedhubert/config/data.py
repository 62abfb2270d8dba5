"""Which audio, whose it is, and how it is cut into batches."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Count, Fraction, Model, Positive, PositiveInt
from fedhubert.config.keys import key


class PartitionConfig(Model):
    """How one manifest becomes the clients' data (simulation; a real site's manifest is its own
    partition)."""

    kind: Literal["random", "speaker", "column", "dirichlet"] = "random"
    """random: clients alike (IID). speaker: whole speakers. column: a client per value of
    ``column``. dirichlet: uneven shares of its values."""

    column: str | None = None
    """Manifest column that kind=column and kind=dirichlet split by."""

    alpha: Positive = 0.5
    """Of kind=dirichlet: the smaller, the more clients differ; 100 is about even."""

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of each client's utterances that is held out for validation; less of it for large
    corpora."""

    @model_validator(mode="after")
    def _column_given(self) -> Self:
        if self.kind in ("column", "dirichlet") and not self.column:
            raise ValueError(f"kind={self.kind} needs `column`, the manifest column to split by")
        return self


class DataConfig(Model):
    """Where the audio is and how batches are cut from it."""

    manifest: str | None = key(None, site="manifest", path=True)
    """CSV (``fedhubert prepare``) or fairseq .tsv; sample: the speech that ``fedhubert prepare
    sample`` fetched."""

    root: str | None = key(None, site="audio-root", path=True)
    """Folder that the manifest's paths start from; null: the manifest's own folder."""

    sample_rate_hz: Literal[16000] = key(16000, unit="Hz")
    """Of the audio; HuBERT's is fixed."""

    min_seconds: Annotated[float, Field(ge=0.25)] = key(2.0, unit="s")
    """Shorter utterances are left out of training."""

    max_seconds: Positive = key(15.625, unit="s")
    """Longer utterances are cropped at random (15.625 s are 250 000 samples)."""

    batch_seconds: Positive = key(87.5, unit="s")
    """Audio in a micro-batch (87.5 s are 1.4 M samples). Lower it where a GPU's memory does not
    suffice, and raise ``client.accumulate``."""

    num_workers: Count = key(1, unit="threads", resume="free")
    """Threads that decode ahead of training; 0: none. More where a GPU waits for FLAC."""

    prefetch_batches: PositiveInt = key(4, unit="micro-batches", resume="free")
    """How many decoded micro-batches wait for training at most."""

    max_unreadable: Fraction = key(0.01, resume="free")
    """Share of a client's utterances (one in any case) that may turn out to be unreadable: they are
    left out by name on the site and counted to the server. More end its part in the run; 0: one
    does."""

    partition: PartitionConfig = PartitionConfig()
    """How one manifest becomes the clients' data."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError("min_seconds is larger than max_seconds")
        if self.batch_seconds < self.max_seconds:
            raise ValueError(
                "batch_seconds is smaller than max_seconds, so the longest crop fits no batch"
            )
        return self
