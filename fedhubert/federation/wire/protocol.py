"""Messages as Flower records; :mod:`fedhubert.federation.wire.reading` is the way back.

A request is the record ``request`` (versions, the run's key, the clients' part of the
configuration, and the instruction's fields, as JSON) and ``arrays``. A reply is ``info`` (versions
and the answer's fields), ``metrics`` (a column per number, a row per partition), ``failures`` and
``arrays``. Where there are keys, either has a record ``signature`` beside them, of which only
:mod:`fedhubert.federation.wire.signing` knows.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from fedhubert import __version__
from fedhubert.clients import Metrics
from fedhubert.config import ClientJob
from fedhubert.federation.wire.arrays import HeldArray, SharedArray, shared_arrays
from fedhubert.federation.wire.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from fedhubert.federation.wire.messages.message import (
    PROTOCOL_VERSION,
    Answer,
    Arrays,
    Failure,
    Instruction,
)

WORKER_DIED = "worker_died"
"""Code of a simulation's worker process that is gone: out of memory, killed."""

InstructionT = TypeVar("InstructionT", bound=Instruction, covariant=True)
AnswerT = TypeVar("AnswerT", bound=Answer, covariant=True)
Scalar = str | int | float

_SAFE_WORD = re.compile(r"[^A-Za-z0-9_.\-]")


@dataclass(frozen=True)
class Request(Generic[InstructionT]):
    """A request as the site reads it."""

    job: ClientJob
    run_key: str
    task: InstructionT
    job_digest: str = ""
    """SHA-256 of the job as the server wrote it."""

    @property
    def arrays(self) -> Arrays:
        return self.task.arrays


@dataclass(frozen=True)
class Versions:
    """What a node says it runs; words that cannot be read are empty, and its number is -1 where it
    says none."""

    protocol: int = 0
    package: str = ""
    node: int = -1


@dataclass(frozen=True)
class Asked:
    """What the reply to a request may hold at most.

    Attributes:
        partitions: Whom the request was about: numbers and failures of others are not taken.
        num_bytes: Slot of the answer -> the most bytes that the values of one array in it take;
            arrays in other slots are not taken.
    """

    partitions: Collection[int]
    num_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply(Generic[AnswerT]):
    """A reply as the server reads it: an answer, or failures, or both; ``num_bytes`` counts its
    arrays."""

    node_id: int
    answer: AnswerT | None = None
    failures: tuple[Failure, ...] = ()
    versions: Versions | None = None
    num_bytes: int = 0

    @property
    def metrics(self) -> Mapping[int, Metrics]:
        """Numbers by partition; none where there is no answer."""
        return {} if self.answer is None else self.answer.metrics

    def failures_of(self, partitions: Iterable[int], code: str = "no_result") -> list[Failure]:
        """Return why each of ``partitions`` has no numbers here: its own failure, or that of the
        whole node, or ``code`` where nothing is said."""
        named = {failure.partition: failure for failure in self.failures}
        whole = named.get(-1, Failure(-1, code))
        return [
            named.get(partition, Failure(partition, whole.code, whole.setting))
            for partition in partitions
        ]


def request(
    node_id: int,
    instruction: Instruction,
    *,
    job_json: str,
    run_key: str,
    group: str,
    ttl_s: float,
    published: Mapping[str, Array] | None = None,
) -> Message:
    """Build the request that has ``node_id`` follow ``instruction``; ``published`` holds arrays of
    it that are ready to be sent to many."""
    envelope: dict[str, Scalar] = {
        "protocol": PROTOCOL_VERSION,
        "version": __version__,
        "run": run_key,
    }
    content = RecordDict(
        {
            "request": ConfigRecord(
                {**envelope, "job": job_json, "task": instruction.model_dump_json()}
            )
        }
    )
    if instruction.arrays:
        record = ArrayRecord()
        for name, array in instruction.arrays.items():
            record[name] = (published or {}).get(name) or HeldArray(array)
        content["arrays"] = record
    return Message(content, node_id, instruction.KIND, group_id=group, ttl=ttl_s)


def reply(
    message: Message, answer: Answer | None = None, failures: Sequence[Failure] = (), node: int = -1
) -> Message:
    """Build the reply to ``message``: an answer, failures, or both; without an answer ``node`` says
    which one replies."""
    info: dict[str, Scalar] = {} if answer is None else answer.model_dump(exclude_none=True)
    if answer is None and node >= 0:
        info["node"] = node
    return reply_of(
        message,
        metrics={} if answer is None else answer.metrics,
        arrays={} if answer is None else answer.arrays,
        failures=failures,
        info=info,
    )


def reply_of(
    message: Message,
    *,
    metrics: Mapping[int, Metrics] | None = None,
    failures: Sequence[Failure] = (),
    arrays: Arrays | None = None,
    info: Mapping[str, Scalar] | None = None,
) -> Message:
    """Build a reply of these records, whatever they are."""
    content = RecordDict()
    if metrics:
        names = list(next(iter(metrics.values())))
        columns: dict[str, list[int] | list[float]] = {
            "partition": [int(partition) for partition in metrics]
        }
        columns.update({name: [row[name] for row in metrics.values()] for name in names})
        content["metrics"] = MetricRecord({**columns})
    if failures:
        content["failures"] = ConfigRecord(
            {
                "partition": [failure.partition for failure in failures],
                "code": [safe_word(failure.code) for failure in failures],
                "setting": [safe_word(failure.setting) for failure in failures],
            }
        )
    if arrays:
        record = ArrayRecord()
        kind = SharedArray if shared_arrays(message) else HeldArray  # answered as it was asked
        for name, array in arrays.items():
            record[name] = kind(np.ascontiguousarray(array))
        content["arrays"] = record
    content["info"] = ConfigRecord(
        {"protocol": PROTOCOL_VERSION, "version": __version__, **(info or {})}
    )
    return Message(content, reply_to=message)


def safe_word(text: str) -> str:
    """Return at most 64 characters of ``text``, all of which may stand in a log."""
    return _SAFE_WORD.sub("_", text[:64])
