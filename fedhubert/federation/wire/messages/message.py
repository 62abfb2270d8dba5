"""What every message has: fields and arrays with types and bounds, and what refuses the others."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from fedhubert.clients import Metrics

PROTOCOL_VERSION = 5

NDArray = npt.NDArray[np.generic]
Arrays = Mapping[str, NDArray]

MAX_PARTITIONS = 2**20
"""More clients than any federation has."""
MAX_JSON_BYTES = 2**26
"""The most that a message's fields take, written as JSON."""
MAX_ARRAY_BYTES = 2**36
"""The most that one array takes: 8 bytes for each of 8.6 billion parameters."""
MAX_FIGURES = 1200
"""The most figures that an objective has of one client: counts of 32 labels taken for each
other."""
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


class Instruction(Message):
    """What a server asks of a node: to do something with some of its partitions."""

    KIND: ClassVar[str]

    partitions: Partitions = ()


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


RUN_KEYS = Slot(("uint8",), 2)
"""Of several messages: signed run keys [N, 128]."""

Table = Mapping[type[Instruction], type[Answer]]
"""Instructions with what answers each."""
