"""The messages between server and sites, as Flower records.

A request carries the clients' part of the configuration, what to do with which partitions, and arrays. A reply carries, per
partition, numbers (``metrics``) or a failure (a code and the name of a setting), and arrays. Nothing else is ever sent: no audio, path, text,
speaker or per-utterance value.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert import __version__
from fedhubert.clients import Metrics
from fedhubert.config import ClientJob, from_json
from fedhubert.errors import FederationError
from fedhubert.federation.wire.arrays import HeldArray, SharedArray, shared_arrays
from fedhubert.federation.wire.flower import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from fedhubert.federation.wire.task_fields import Said, read_task

PROTOCOL_VERSION = 2

DESCRIBE = "query.describe"
HAS_EXTRACTOR = "query.extractor"
SEND_EXTRACTOR = "train.extractor"
HAS_TEACHER = "query.teacher"
SEND_TEACHER = "train.teacher"
KMEANS_SEED = "train.kmeans_seed"
KMEANS_STEP = "train.kmeans_step"
LABEL = "train.label"
TRAIN = "train.round"
EVALUATE = "evaluate.model"

WORKER_DIED = "worker_died"
"""Code of a simulation's worker process that is gone: out of memory, killed."""

Arrays = Mapping[str, npt.NDArray[Any]]
_SAFE_WORD = re.compile(r"[^A-Za-z0-9_.\-]")
_NOT_PRINTED = re.compile(r"[^ -~]")
_RUN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Failure:
    """Why a partition, or a whole node (partition -1), did not answer: a code and a setting's name, both single words."""

    partition: int
    code: str
    setting: str = ""

    def __str__(self) -> str:
        return f"{self.code} (see {self.setting})" if self.setting else self.code


@dataclass(frozen=True)
class Request:
    """A request as the site reads it."""

    job: ClientJob
    run_key: str
    task: Said[Any]
    arrays: Said[npt.NDArray[Any]]


@dataclass(frozen=True)
class Reply:
    """A reply as the server reads it; ``num_bytes`` counts its arrays."""

    node_id: int
    metrics: dict[int, Metrics] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0


def request(
    node_id: int,
    kind: str,
    *,
    job_json: str,
    run_key: str,
    task: Mapping[str, Any],
    group: str,
    ttl_s: float,
    arrays: Mapping[str, Array] | None = None,
) -> Message:
    """Build the request ``kind`` for ``node_id``; ``task`` must be JSON."""
    job: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "version": __version__,
        "run": run_key,
        "job": job_json,
        "task": json.dumps(task),
    }
    content = RecordDict({"request": ConfigRecord(job)})
    if arrays:
        record = ArrayRecord()
        for name, array in arrays.items():
            record[name] = array
        content["arrays"] = record
    return Message(content, node_id, kind, group_id=group, ttl=ttl_s)


def read_request(message: Message) -> Request:
    """Parse a request.

    Raises:
        FederationError: it speaks another protocol, or is none.
        ConfigError: it has a job that is not valid.
    """
    if not message.has_content() or "request" not in message.content.config_records:
        raise FederationError("the message is no request", setting="version")
    record = Said(message.content.config_records["request"])
    if record["protocol"] != PROTOCOL_VERSION:
        version = repr(record["version"])
        raise FederationError(
            f"the server speaks protocol {record['protocol']!r} (fedhubert {version}), this site {PROTOCOL_VERSION} "
            f"(fedhubert {__version__}): install the same version on both",
            setting="version",
        )
    run_key = str(record["run"])
    if not _RUN_KEY.fullmatch(run_key):  # it names a folder
        raise FederationError("the request's run is not named by letters and digits", setting="version")
    try:
        arrays = Said(_arrays(message.content))
    except Exception:  # bytes from outside
        raise FederationError("the request's arrays cannot be read", setting="version") from None
    return Request(from_json(ClientJob, str(record["job"])), run_key, read_task(str(record["task"])), arrays)


def reply(
    message: Message,
    *,
    metrics: Mapping[int, Metrics] | None = None,
    failures: Sequence[Failure] = (),
    arrays: Arrays | None = None,
    info: Mapping[str, str | int] | None = None,
) -> Message:
    """Build the reply to ``message``: per-partition metrics (the same names for every partition), failures and arrays."""
    content = RecordDict()
    if metrics:
        names = list(next(iter(metrics.values())))
        columns: dict[str, Any] = {"partition": [int(partition) for partition in metrics]}
        columns.update({name: [row[name] for row in metrics.values()] for name in names})
        content["metrics"] = MetricRecord(columns)
    if failures:
        content["failures"] = ConfigRecord(
            {
                "partition": [failure.partition for failure in failures],
                "code": [_SAFE_WORD.sub("_", failure.code)[:64] for failure in failures],
                "setting": [_SAFE_WORD.sub("_", failure.setting)[:64] for failure in failures],
            }
        )
    if arrays:
        record = ArrayRecord()
        kind = SharedArray if shared_arrays(message) else HeldArray  # answered as it was asked
        for name, array in arrays.items():
            record[name] = kind(np.ascontiguousarray(array))
        content["arrays"] = record
    content["info"] = ConfigRecord({"protocol": PROTOCOL_VERSION, "version": __version__, **(info or {})})
    return Message(content, reply_to=message)


def read_reply(message: Message) -> Reply:
    """Parse a reply. Whatever a site may have sent, the result is a :class:`Reply`; what cannot be read is a failure ``malformed``."""
    node_id = message.metadata.src_node_id
    if message.has_error():
        reason = message.error.reason or ""
        died = "ActorDied" in reason or "ActorUnavailable" in reason
        return Reply(node_id, failures=[Failure(-1, WORKER_DIED if died else "node_error")])
    try:
        return _parse_reply(node_id, message.content)
    except Exception:  # bytes from outside: anything can be wrong with them, and none of it may stop the server
        return Reply(node_id, failures=[Failure(-1, "malformed")])


def _parse_reply(node_id: int, content: RecordDict) -> Reply:
    metrics: dict[int, Metrics] = {}
    if "metrics" in content:
        columns: dict[str, Any] = dict(content.metric_records["metrics"])
        partitions = columns.pop("partition")
        for index, partition in enumerate(partitions):
            metrics[int(partition)] = {name: values[index] for name, values in columns.items()}
    failures = []
    if "failures" in content:
        record: dict[str, Any] = dict(content.config_records["failures"])
        failures = [
            Failure(int(partition), _SAFE_WORD.sub("_", str(code))[:64], _SAFE_WORD.sub("_", str(setting))[:64])
            for partition, code, setting in zip(record["partition"], record["code"], record["setting"], strict=True)
        ]
    arrays = _arrays(content)
    said = content.config_records["info"] if "info" in content else {}  # a site's words get into the server's log
    info = {name: _NOT_PRINTED.sub("?", value) if isinstance(value, str) else value for name, value in said.items()}
    return Reply(node_id, metrics, failures, arrays, info, sum(array.nbytes for array in arrays.values()))


def _arrays(content: RecordDict) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: array.numpy() for name, array in content.array_records["arrays"].items()} if "arrays" in content else {}
    if not all(isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.number) for array in arrays.values()):
        raise TypeError("arrays of something else than numbers")
    return arrays
