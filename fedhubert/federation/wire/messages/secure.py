"""Secure aggregation: the terms of a sum, the parts of it that are masked, and what opens it."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedhubert.federation.wire.messages.message import (
    MAX_PARTITIONS,
    Answer,
    Count,
    Instruction,
    Key,
    Partitions,
    PerPartition,
    Slot,
    Table,
)
from fedhubert.federation.wire.messages.nodes import Has

_MASKED_TAIL = Slot(("int64",), 1)


class SecureTerms(BaseModel):
    """What makes an instruction one for a secure sum, beside ``run_keys`` [N, 128], the signed run
    keys of the cohort in its order (:mod:`fedhubert.federation.secure`).

    Attributes:
        attempt: How often this sum has been begun before.
        cohort: Who is asked for it, in ascending order.
        threshold: Helpers who suffice to open it.
        neighbours: With how many others each has a mask.
        roster: Fingerprint of the roster; empty for a throw-away one.
        positions, steps, site_rounds: Of all the cohort, as in :class:`Train`.
        scale: No weight is larger; a power of two.
        norm: About the norm of an update, by earlier rounds; a power of two.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    attempt: Count
    cohort: Partitions
    threshold: Count
    neighbours: Count
    roster: Key = ""
    positions: PerPartition = {}
    steps: PerPartition | None = None
    site_rounds: PerPartition = {}
    scale: Annotated[int, Field(ge=1, lt=2**40)] = 1
    norm: Annotated[float, Field(gt=0.0)] = 1.0


class Summing(Instruction):
    """What may be answered by a part of a secure sum."""

    secure: SecureTerms | None = None


class Open(Instruction):
    """Help to open a secure sum: send your shares of what it takes.

    ``sealed_n`` [dealers, S] of each partition n: what every client of ``included`` that has dealt
    shares to it has sealed for it.

    Attributes:
        of: Kind of the message that asked for the sum.
        round, attempt: Which sum.
        included: Who is in it.
    """

    KIND = "query.open"
    SLOTS: ClassVar[Mapping[str, Slot]] = {"sealed_*": Slot(("uint8",), 2)}
    MAX_ARRAYS = MAX_PARTITIONS
    of: Literal["train.round", "evaluate.model"]
    round: Count
    attempt: Count
    included: Partitions


class Close(Instruction):
    """The run is over: delete its run keys."""

    KIND = "query.close"


class Masked(Answer):
    """The partitions' part of a secure sum that is opened later: ``masked`` [P] (none of a score)
    and ``tail`` (figures), added up over them.

    ``sealed_n`` [helpers, S] and ``commitments_n`` [secrets, 1 + helpers, 16]: what partition n
    deals (:class:`fedhubert.federation.secure.participant.Dealt`).
    """

    OPTIONAL = frozenset({"train_micro_batches", "train_steps"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "masked": Slot(("int64", "int32", "int16", "uint8"), 1),
        "tail": _MASKED_TAIL,
        "sealed_*": Slot(("uint8",), 2),
        "commitments_*": Slot(("uint8",), 3),
    }
    MAX_ARRAYS = 2 * MAX_PARTITIONS
    round: Count
    attempt: Count
    layout: Key


class MaskedCounts(Answer):
    """The partitions' part of a secure sum that all of the cohort answer: ``masked``, all arrays of
    the plain answer one after the other, and ``tail`` (figures)."""

    OPTIONAL = frozenset({"label_rate_hz", "num_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {"masked": Slot(("int64",), 1), "tail": _MASKED_TAIL}


class Opened(Answer):
    """``shares_n`` [N, 33]: the shares that partition n, a helper, opens."""

    SLOTS: ClassVar[Mapping[str, Slot]] = {"shares_*": Slot(("uint8",), 2)}
    MAX_ARRAYS = MAX_PARTITIONS


ANSWERS: Table = {Open: Opened, Close: Has}
