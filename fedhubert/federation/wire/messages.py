"""The wire: every message that server and sites send each other, both ways. What is not in here
does not cross.

A server sends an :class:`Instruction`, a site answers it with the :class:`Answer` that belongs to
it, or with :class:`Failure` codes. Fields, columns and arrays are closed lists with types and
bounds: a message that holds anything else is refused. No audio, path, text, speaker or
per-utterance value has a place in them.

Shapes: P parameters, K clusters, D features wide, L labels, N partitions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from fedhubert.clients import Metrics
from fedhubert.config import ModelConfig

PROTOCOL_VERSION = 4

NDArray = npt.NDArray[np.generic]
Arrays = Mapping[str, NDArray]

MAX_PARTITIONS = 2**20
"""More clients than any federation has."""
MAX_JSON_BYTES = 2**26
"""The most that a message's fields take, written as JSON."""
MAX_ARRAY_BYTES = 2**36
"""The most that one array takes: 8 bytes for each of 8.6 billion parameters."""
MAX_FIGURES = 64
"""The most figures that an objective has of one client."""
MAX_MAGNITUDE = 2.0**63
"""No number of a client is as large."""

Count = Annotated[int, Field(ge=0, lt=2**40)]
Partition = Annotated[int, Field(ge=0, lt=2**31)]
Partitions = Annotated[tuple[Partition, ...], Field(max_length=MAX_PARTITIONS)]
PerPartition = Annotated[dict[Partition, Count], Field(max_length=MAX_PARTITIONS)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,128}$")]
"""Hashes and names of runs; they become parts of file names."""
Stated = Annotated[str, Field(max_length=128)]
Rounds = Annotated[tuple[Count, ...], Field(max_length=16)]
Norm = Annotated[float, Field(ge=0.0)]


@dataclass(frozen=True)
class Failure:
    """Why a partition, or a whole node (partition -1), did not answer: a code and a setting's name,
    both single words."""

    partition: int
    code: str
    setting: str = ""

    def __str__(self) -> str:
        return f"{self.code} (see {self.setting})" if self.setting else self.code


@dataclass(frozen=True)
class Slot:
    """An array that a message may carry.

    Attributes:
        dtypes: NumPy's names of the types that it may have.
        ndim: Its number of dimensions; None: any up to 4 (a model's tensors).
        required: A message without it is refused.
    """

    dtypes: tuple[str, ...]
    ndim: int | None
    required: bool = False

    def refuses(self, array: NDArray) -> str:
        """Return what is wrong with ``array``, or an empty string."""
        if str(array.dtype) not in self.dtypes:
            return f"is {array.dtype}, not {' or '.join(self.dtypes)}"
        if array.ndim > 4 if self.ndim is None else array.ndim != self.ndim:
            return f"has {array.ndim} dimensions"
        return "is too large" if prod(array.shape) * array.dtype.itemsize > MAX_ARRAY_BYTES else ""


class Message(BaseModel):
    """Fields and arrays of a message.

    Attributes:
        SLOTS: The arrays it may carry, by name; a name that ends in ``*`` stands for many.
        MAX_ARRAYS: How many it may carry.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    SLOTS: ClassVar[Mapping[str, Slot]] = {}
    MAX_ARRAYS: ClassVar[int] = 8

    arrays: Arrays = Field(default={}, exclude=True, repr=False)

    @model_validator(mode="after")
    def _check_arrays(self, info: ValidationInfo) -> Self:
        if info.context:  # fields come as JSON, and arrays beside it
            object.__setattr__(self, "arrays", info.context)
        if len(self.arrays) > self.MAX_ARRAYS:
            raise ValueError(f"{len(self.arrays)} arrays, at most {self.MAX_ARRAYS} are sent")
        for name, array in self.arrays.items():
            slot = slot_of(self.SLOTS, name)
            reason = "is not asked for" if slot is None else slot.refuses(array)
            if reason:
                raise ValueError(f"the array {name[:64]!r} {reason}")
        missing = [
            name for name, slot in self.SLOTS.items() if slot.required and name not in self.arrays
        ]
        if missing:
            raise ValueError(f"no array {missing[0]!r}")
        return self


def slot_of(slots: Mapping[str, Slot], name: str) -> Slot | None:
    """Return the slot that an array called ``name`` has among ``slots``, None where there is
    none."""
    many = next(
        (
            slot
            for key, slot in slots.items()
            if key.endswith("*") and re.fullmatch(re.escape(key[:-1]) + r"[\w.]*", name)
        ),
        None,
    )
    return slots.get(name, many)


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


_RUN_KEYS = Slot(("uint8",), 2)
_MASKED_TAIL = Slot(("int64",), 1)
_MODEL = Slot(("float32", "int16"), 1, required=True)  # bfloat16 travels as int16
_CENTROIDS = Slot(("float32",), 2)
_TENSORS = {"*": Slot(("float32", "int64"), None)}


# ---------------------------------------------------------------- what a server asks


class Instruction(Message):
    """What a server asks of a node: to do something with some of its partitions."""

    KIND: ClassVar[str]

    partitions: Partitions = ()


class Describe(Instruction):
    """Say who you are and how much audio the partitions have."""

    KIND = "query.describe"


class HasExtractor(Instruction):
    """Is the model whose layer gives features, named by its content, here and whole?"""

    KIND = "query.extractor"
    extractor: Key


class SendExtractor(Instruction):
    """Keep this model for features."""

    KIND = "train.extractor"
    SLOTS, MAX_ARRAYS = _TENSORS, 4096
    extractor: Key
    model: ModelConfig


class HasTeacher(Instruction):
    """Is the teacher of the job's distillation here and whole?"""

    KIND = "query.teacher"
    teacher: Key


class SendTeacher(Instruction):
    """Keep this teacher."""

    KIND = "train.teacher"
    SLOTS, MAX_ARRAYS = _TENSORS, 4096
    teacher: Key
    model: ModelConfig


class Summing(Instruction):
    """What may be answered by a part of a secure sum."""

    secure: SecureTerms | None = None


class MomentsKMeans(Summing):
    """Send the sums of the partitions' features, and of their products with each other."""

    KIND = "train.kmeans_moments"
    SLOTS: ClassVar[Mapping[str, Slot]] = {"run_keys": _RUN_KEYS}
    extractor: Key = ""


class SeedKMeans(Instruction):
    """Send weighted local centroids of the partitions' features; ``extractor`` names the model that
    gives them, empty for MFCC."""

    KIND = "train.kmeans_seed"
    extractor: Key = ""


class StepKMeans(Summing):
    """Send sums, counts and inertia of the partitions' features under ``centroids`` [K, D]."""

    KIND = "train.kmeans_step"
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "centroids": Slot(("float32",), 2, required=True),
        "run_keys": _RUN_KEYS,
    }
    extractor: Key = ""


class Label(Summing):
    """Label the partitions' audio, under ``centroids`` [K, D] (none: precomputed labels are
    checked); ``targets`` names the labels. Not ``counted``: and send no counts."""

    KIND = "train.label"
    SLOTS: ClassVar[Mapping[str, Slot]] = {"centroids": _CENTROIDS, "run_keys": _RUN_KEYS}
    targets: Key
    counted: bool = True
    extractor: Key = ""


class WithModel(Summing):
    """What comes with the global model [P].

    Attributes:
        positions: Partition -> micro-batches that it has consumed in this run.
        layout: Fingerprint of the parameters' names and shapes.
        targets: Names the labels.
        budget_s: Seconds after which nothing new is begun.
    """

    SLOTS: ClassVar[Mapping[str, Slot]] = {"model": _MODEL, "run_keys": _RUN_KEYS}
    round: Count
    positions: PerPartition = {}
    layout: Key
    targets: Key = ""
    broadcast_codec: Literal["fp32", "bf16"] = "fp32"
    budget_s: Annotated[float, Field(gt=0.0)] | None = None


class RingTerms(BaseModel):
    """What a ring codec needs to know (:class:`fedhubert.federation.updates.ring.Ring`): the largest
    entry, how many updates are added up, the largest weight, and room for noise."""

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
        site_rounds: Partition -> the round whose state to go on from, where sites keep state.
        checkpoints: Rounds that a resume may go back to.
    """

    KIND = "train.round"
    attempt: Count = 0
    norm_limit: Norm | None = None
    weight_limit: Annotated[int, Field(ge=1, lt=2**40)] | None = None
    clip_norm: Norm | None = None
    ring: RingTerms | None = None
    steps: PerPartition | None = None
    site_rounds: PerPartition = {}
    checkpoints: Rounds = ()


class Evaluate(WithModel):
    """Score the model on the whole validation split of each partition."""

    KIND = "evaluate.model"


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


# ---------------------------------------------------------------- what a site answers


class Answer(Message):
    """What a node answers: numbers by partition, arrays, and fields of the node's own.

    Attributes:
        COLUMNS: The numbers that every partition has.
        OPTIONAL: Those that it may have.
        FIGURES: What the names of an objective's sums begin with.
        metrics: Partition -> numbers by name; all partitions have the same names.
    """

    COLUMNS: ClassVar[frozenset[str]] = frozenset()
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    FIGURES: ClassVar[tuple[str, ...]] = ()

    metrics: Annotated[
        dict[Partition, Metrics], Field(max_length=MAX_PARTITIONS, exclude=True)
    ] = {}

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        for numbers in self.metrics.values():
            others = numbers.keys() - self.COLUMNS - self.OPTIONAL
            unknown = [
                name
                for name in others
                if not name.startswith(self.FIGURES or ("\0",)) or len(name) > 64
            ]
            if unknown or len(others) > MAX_FIGURES:
                raise ValueError(
                    f"the number {unknown[0][:64]!r} is not asked for"
                    if unknown
                    else f"{len(others)} figures"
                )
            missing = self.COLUMNS - numbers.keys()
            if missing:
                raise ValueError(f"no number {min(missing)!r}")
            if not all(abs(value) < MAX_MAGNITUDE for value in numbers.values()):  # nor NaN
                raise ValueError("numbers out of range")
        return self


class Description(Answer):
    """Who a node is (number ``node`` of ``num_nodes``), and how much audio its partitions have;
    what all sites of a run must have in common. With ``secure``, ``run_keys`` [N, 128]: the signed
    run key of each partition."""

    SLOTS: ClassVar[Mapping[str, Slot]] = {"run_keys": _RUN_KEYS}

    COLUMNS = frozenset(
        {
            *("train_utterances", "validation_utterances", "train_audio_s", "validation_audio_s"),
            *("batches_per_epoch", "data_fingerprint"),
        }
    )
    OPTIONAL = frozenset({"epoch_audio_s"})
    node: Count
    num_nodes: Annotated[int, Field(ge=1, lt=2**31)]
    hosts_all: Annotated[int, Field(ge=0, le=1)]
    layout: Key
    sample_rate_hz: Count
    label_rate_hz: Count
    num_clusters: Count
    centroids_hash: Stated = ""

    @model_validator(mode="after")
    def _check_number(self) -> Self:
        if self.node >= self.num_nodes:
            raise ValueError(f"node {self.node} of {self.num_nodes}")
        return self


class Has(Answer):
    """Whether the model that was named is here."""

    has: Annotated[int, Field(ge=0, le=1)]


class Seeds(Answer):
    """``centroids_n`` [k, D] and ``weights_n`` [k] of each partition n."""

    COLUMNS = frozenset({"frames", "withheld_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "centroids_*": Slot(("float32", "float64"), 2),
        "weights_*": Slot(("int64",), 1),
    }
    MAX_ARRAYS = 2 * MAX_PARTITIONS


class Statistics(Answer):
    """``sums`` [K, D], ``counts`` [K] and ``inertia`` [K] over the partitions."""

    COLUMNS = frozenset({"frames", "withheld_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "sums": Slot(("int64",), 2),
        "counts": Slot(("int64",), 1),
        "inertia": Slot(("int64",), 1),
    }


class LabelCounts(Answer):
    """Frames by cluster of both splits [K] over the partitions, and by cluster and label [K, L]
    where labels were asked for."""

    COLUMNS = frozenset({"frames", "label_rate_hz", "num_clusters"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "train": Slot(("int64",), 1),
        "validation": Slot(("int64",), 1),
        "contingency": Slot(("int64",), 2),
    }


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


class Moments(Answer):
    """``counts`` [1], ``sums`` [D] and ``products`` [D, D] over the partitions."""

    COLUMNS = frozenset({"frames"})
    SLOTS: ClassVar[Mapping[str, Slot]] = {
        "counts": Slot(("int64",), 1),
        "sums": Slot(("int64",), 1),
        "products": Slot(("int64",), 2),
    }


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


class Scored(Answer):
    """The objective's sums on each partition's validation split."""

    FIGURES = ("validation_",)


ANSWERS: Mapping[type[Instruction], type[Answer]] = {
    Describe: Description,
    HasExtractor: Has,
    SendExtractor: Has,
    HasTeacher: Has,
    SendTeacher: Has,
    SeedKMeans: Seeds,
    MomentsKMeans: Moments,
    StepKMeans: Statistics,
    Label: LabelCounts,
    Train: Trained,
    Evaluate: Scored,
    Open: Opened,
    Close: Has,
}
"""The whole wire: each instruction with what answers it."""

MASKED: Mapping[type[Instruction], type[Answer]] = {
    MomentsKMeans: MaskedCounts,
    StepKMeans: MaskedCounts,
    Label: MaskedCounts,
    Train: Masked,
    Evaluate: Masked,
}
"""What answers those that have secure terms."""

INSTRUCTIONS: Mapping[str, type[Instruction]] = {kind.KIND: kind for kind in ANSWERS}
