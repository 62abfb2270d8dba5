"""Messages as Flower records, and back: whatever the bytes are, reading them gives a typed message
or says that they are none.

A request is the record ``request`` (versions, the run's key, the clients' part of the
configuration, and the instruction's fields, as JSON) and ``arrays``. A reply is ``info`` (versions
and the answer's fields), ``metrics`` (a column per number, a row per partition), ``failures`` and
``arrays``. Where there are keys, either has a record ``signature`` beside them, of which only
:mod:`fedhubert.federation.wire.signing` knows.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from pydantic import ValidationError

from fedhubert import __version__
from fedhubert.clients import Metrics
from fedhubert.config import ClientJob, from_json
from fedhubert.errors import FederationError, quoted
from fedhubert.federation.wire.arrays import HeldArray, SharedArray, shared_arrays, size_on_wire
from fedhubert.federation.wire.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from fedhubert.federation.wire.messages import INSTRUCTIONS
from fedhubert.federation.wire.messages.message import (
    MAX_ARRAY_BYTES,
    MAX_FIGURES,
    MAX_JSON_BYTES,
    MAX_PARTITIONS,
    PROTOCOL_VERSION,
    Answer,
    Arrays,
    Failure,
    Instruction,
    NDArray,
    slot_of,
)

WORKER_DIED = "worker_died"
"""Code of a simulation's worker process that is gone: out of memory, killed."""

InstructionT = TypeVar("InstructionT", bound=Instruction, covariant=True)
AnswerT = TypeVar("AnswerT", bound=Answer, covariant=True)
Scalar = str | int | float

_SAFE_WORD = re.compile(r"[^A-Za-z0-9_.\-]")
_NOT_PRINTED = re.compile(r"[^ -~]")
_RUN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER_BYTES = 2**16
"""What an array has beside its values."""


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


def read_request(message: Message) -> Request[Instruction]:
    """Parse a request.

    Raises:
        FederationError: it speaks another protocol, or is none.
        ConfigError: it has a job that is not valid.
    """
    kind = INSTRUCTIONS.get(message.metadata.message_type)
    if kind is None or not message.has_content() or "request" not in message.content.config_records:
        raise FederationError("the message is no request", setting="version")
    record = message.content.config_records["request"]
    if record.get("protocol") != PROTOCOL_VERSION:
        raise FederationError(
            f"the server speaks protocol {quoted(record.get('protocol'))} (fedhubert {quoted(record.get('version'))}), this site {PROTOCOL_VERSION} "
            f"(fedhubert {__version__}): install the same version on both",
            setting="version",
        )
    run_key, job, fields = (str(record.get(name, "")) for name in ("run", "job", "task"))
    if not _RUN_KEY.fullmatch(run_key):  # it names a folder
        raise FederationError(
            "the request's run is not named by letters and digits", setting="version"
        )
    if max(len(job), len(fields)) > MAX_JSON_BYTES:
        raise FederationError("the request's fields are too long", setting="version")
    try:
        arrays = _arrays(message.content, kind)
    except Exception:  # bytes from outside
        raise FederationError("the request's arrays cannot be read", setting="version") from None
    try:
        instruction = kind.model_validate_json(fields, context=arrays)
    except ValidationError as error:
        named = "; ".join(
            f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip()
            for item in error.errors()[:4]
        )
        raise FederationError(f"the request's {named[:200]}", setting="version") from None
    digest = hashlib.sha256(job.encode()).hexdigest()
    return Request(from_json(ClientJob, job), run_key, instruction, digest)


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
                "code": [_word(failure.code) for failure in failures],
                "setting": [_word(failure.setting) for failure in failures],
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


def read_reply(message: Message, kind: type[AnswerT], asked: Asked | None = None) -> Reply[AnswerT]:
    """Parse a reply that should be an answer of ``kind`` to what was ``asked`` (None: all that
    ``kind`` allows, for those who look at messages).

    Whatever a site may have sent, the result is a :class:`Reply`; what cannot be read, or is more
    than was asked for, is a failure ``malformed``. Names, counts and bytes are looked at before
    anything is parsed.
    """
    node_id = message.metadata.src_node_id
    if message.has_error():
        reason = message.error.reason or ""
        died = "ActorDied" in reason or "ActorUnavailable" in reason
        return Reply(node_id, failures=(Failure(-1, WORKER_DIED if died else "node_error"),))
    versions: Versions | None = None
    try:
        versions = _versions(message.content)
        return _parse_reply(node_id, message.content, kind, versions, asked)
    except (
        Exception
    ):  # bytes from outside: anything can be wrong with them, and none of it may stop the server
        return Reply(node_id, failures=(Failure(-1, "malformed"),), versions=versions)


def _versions(content: RecordDict) -> Versions | None:
    """Return what a site says of its versions: its words get into the server's log."""
    if "info" not in content:
        return None
    info = content.config_records["info"]
    protocol, package, node = (info.get(name) for name in ("protocol", "version", "node"))
    return Versions(
        protocol if isinstance(protocol, int) else 0,
        _NOT_PRINTED.sub("?", package)[:64] if isinstance(package, str) else "",
        node if isinstance(node, int) else -1,
    )


def _parse_reply(
    node_id: int,
    content: RecordDict,
    kind: type[AnswerT],
    versions: Versions | None,
    asked: Asked | None,
) -> Reply[AnswerT]:
    most = MAX_PARTITIONS if asked is None else len(asked.partitions)
    failures = tuple(_failures(content, most + 1))  # one may be of the node
    if versions is None or versions != Versions(PROTOCOL_VERSION, __version__, versions.node):
        return Reply(node_id, None, failures or (Failure(-1, "version", "version"),), versions)
    fields = {
        name: value
        for name, value in content.config_records["info"].items()
        if name not in ("protocol", "version")
    }
    if (
        not fields.keys() - {"node"}
        and "metrics" not in content
        and "arrays" not in content
        and failures
    ):
        return Reply(node_id, None, failures, versions)
    metrics = _metrics(content, most)
    if asked is not None and not metrics.keys() <= set(asked.partitions):
        raise ValueError("an answer for partitions that were not asked for")
    arrays = _arrays(content, kind, asked)
    answer = kind.model_validate({**fields, "metrics": metrics, "arrays": arrays})
    return Reply(
        node_id, answer, failures, versions, sum(array.nbytes for array in arrays.values())
    )


def _metrics(content: RecordDict, most: int) -> dict[int, Metrics]:
    if "metrics" not in content:
        return {}
    columns = dict(content.metric_records["metrics"])
    if len(columns) > 2 * MAX_FIGURES:
        raise ValueError("too many columns")
    partitions = columns.pop("partition")
    if (
        not isinstance(partitions, list)
        or len(partitions) > most
        or len(set(partitions)) < len(partitions)
    ):
        raise ValueError("partitions that are no list, too many, or named twice")
    rows: dict[int, Metrics] = {int(partition): {} for partition in partitions}
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) > most:
            raise ValueError("a column that is no list")
        for row, value in zip(rows.values(), column, strict=True):
            row[name] = value
    return rows


def _failures(content: RecordDict, most: int) -> list[Failure]:
    if "failures" not in content:
        return []
    record = content.config_records["failures"]
    columns = [record[name] for name in ("partition", "code", "setting")]
    if not all(isinstance(column, list) and len(column) <= most for column in columns):
        raise ValueError("failures that are no lists, or too many")
    rows = zip(*(column for column in columns if isinstance(column, list)), strict=True)
    return [
        Failure(int(partition), _word(str(code)), _word(str(setting)))
        for partition, code, setting in rows
    ]


def _arrays(
    content: RecordDict, kind: type[Instruction] | type[Answer], asked: Asked | None = None
) -> dict[str, NDArray]:
    """Return the arrays of a message of ``kind``; names, number and bytes are looked at before
    anything is parsed."""
    if "arrays" not in content:
        return {}
    record = content.array_records["arrays"]
    if len(record) > kind.MAX_ARRAYS or any(slot_of(kind.SLOTS, name) is None for name in record):
        raise ValueError("arrays that are not asked for")
    arrays: dict[str, NDArray] = {}
    for name, held in record.items():
        if size_on_wire(held) > _most_bytes(kind, name, asked):
            raise ValueError("an array that is larger than what was asked for")
        array = held.numpy()
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.number):
            raise TypeError("an array of something else than numbers")
        arrays[name] = array
    return arrays


def _most_bytes(kind: type[Instruction] | type[Answer], name: str, asked: Asked | None) -> int:
    """Return the most bytes that the array called ``name`` takes, 0 where none of that name is
    asked for."""
    if asked is None:
        return MAX_ARRAY_BYTES + _HEADER_BYTES
    stem, _, number = name.rpartition("_")
    of_one = number.isdecimal() and len(number) < 12 and int(number) in asked.partitions
    key = name if name in kind.SLOTS else f"{stem}_*" if of_one else ""
    wanted = asked.num_bytes.get(key, 0)
    return wanted + _HEADER_BYTES if wanted else 0


def _word(text: str) -> str:
    return _SAFE_WORD.sub("_", text[:64])
