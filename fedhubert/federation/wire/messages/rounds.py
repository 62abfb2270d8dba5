"""What comes with the global model: training and evaluation."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedhubert.federation.wire.messages.message import (
    MAX_PARTITIONS,
    RUN_KEYS,
    Answer,
    Count,
    Key,
    Norm,
    PerPartition,
    Rounds,
    Slot,
    Table,
)
from fedhubert.federation.wire.messages.secure import Masked, Summing

_MODEL = Slot(("float32", "int16"), 1, required=True)  # bfloat16 travels as int16


class WithModel(Summing):
    """What comes with the global model [P].

    Attributes:
        positions: Partition -> micro-batches that it has consumed in this run.
        layout: Fingerprint of the parameters' names and shapes.
        targets: Names the labels.
        site_rounds: Partition -> the round whose state to go on from, where sites keep state.
        budget_s: Seconds after which nothing new is begun.
    """

    SLOTS: ClassVar[Mapping[str, Slot]] = {"model": _MODEL, "run_keys": RUN_KEYS}
    round: Count
    positions: PerPartition = Field(default={})
    layout: Key
    targets: Key = ""
    site_rounds: PerPartition = Field(default={})
    broadcast_codec: Literal["fp32", "bf16"] = "fp32"
    budget_s: Annotated[float, Field(gt=0.0)] | None = None


class RingTerms(BaseModel):
    """What a ring codec needs to know (:class:`fedhubert.federation.updates.ring.Ring`): the
    largest entry, how many updates are added up, the largest weight, and room for noise."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    clip: Annotated[float, Field(gt=0.0, lt=2.0**64)]
    summands: Annotated[int, Field(ge=1, le=MAX_PARTITIONS)]
    max_weight: Annotated[int, Field(ge=1, le=2**28)]
    headroom: Annotated[float, Field(ge=0.0, lt=2.0**64)] = 0.0


class Train(WithModel):
    """Score the model on each partition, train it there, and send the updates.

    Attributes:
        attempt: How often the round has been asked for before.
        norm_limit: Updates longer than this are not wanted.
        weight_limit: No update weighs more.
        clip_norm: Scale updates down to this norm (differential privacy).
        ring: Of a codec that has one.
        steps: Partition -> optimiser steps, where a round is replayed.
        checkpoints: Rounds that a resume may go back to.
    """

    KIND = "train.round"
    attempt: Count = 0
    norm_limit: Norm | None = None
    weight_limit: Annotated[int, Field(ge=1, lt=2**40)] | None = None
    clip_norm: Norm | None = None
    ring: RingTerms | None = None
    steps: PerPartition | None = None
    checkpoints: Rounds = ()


class Evaluate(WithModel):
    """Score the model on the whole validation split of each partition."""

    KIND = "evaluate.model"


class Trained(Answer):
    """One partition's ``update`` [P] (int8, float16: with ``scales``; ring24: [3 P]), or the exact
    ``sum`` [P] of several (on a ring: as its updates).

    ``sketches`` [N, S]: see :mod:`fedhubert.federation.updates.sketches`.
    """

    COLUMNS = frozenset(
        {"weight", "update_norm", "train_micro_batches", "train_steps", "train_audio_s"}
    )
    OPTIONAL = frozenset({"update_unclipped", "clipped_entries"})
    FIGURES = ("train_", "validation_")
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "update": Slot(("float32", "float16", "int32", "int16", "int8", "uint8"), 1),
        "scales": Slot(("float32",), 1),
        "sum": Slot(("int64", "int32", "int16", "uint8"), 1),
        "sketches": Slot(("float32",), 2),
    }
    round: Count
    layout: Key


class Scored(Answer):
    """The objective's sums on each partition's validation split."""

    FIGURES = ("validation_",)


ANSWERS: Table = {Train: Trained, Evaluate: Scored}
MASKED: Table = {Train: Masked, Evaluate: Masked}
