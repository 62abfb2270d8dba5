"""Flower's records as messages: whatever the bytes are, reading them gives a typed message or says
that they are none. Names, counts and bytes are looked at before anything is parsed."""

import hashlib
import re

import numpy as np
from pydantic import ValidationError

from fedhubert import __version__
from fedhubert.clients import Metrics
from fedhubert.config import ClientJob, from_json
from fedhubert.errors import FederationError, quoted
from fedhubert.federation.wire.arrays import size_on_wire
from fedhubert.federation.wire.flower import Message, RecordDict
from fedhubert.federation.wire.messages import INSTRUCTIONS
from fedhubert.federation.wire.messages.message import (
    MAX_ARRAY_BYTES,
    MAX_FIGURES,
    MAX_JSON_BYTES,
    MAX_PARTITIONS,
    PROTOCOL_VERSION,
    Answer,
    Failure,
    Instruction,
    NDArray,
    slot_of,
)
from fedhubert.federation.wire.packing import unpack
from fedhubert.federation.wire.protocol import (
    WORKER_DIED,
    AnswerT,
    Asked,
    Reply,
    Request,
    Versions,
    safe_word,
)

_NOT_PRINTED = re.compile(r"[^ -~]")
_RUN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER_BYTES = 2**16
"""What an array has beside its values."""


def read_request(message: Message) -> Request[Instruction]:
    """Parse a request.

    Raises:
        FederationError: it speaks another protocol, or is none.
        ConfigError: it has a job that is not valid.
    """
    try:
        unpack(message)
    except Exception:  # bytes from outside
        raise FederationError("the request's records cannot be read", setting="version") from None
    kind = INSTRUCTIONS.get(message.metadata.message_type)
    if kind is None or not message.has_content() or "request" not in message.content.config_records:
        raise FederationError("the message is no request", setting="version")
    record = message.content.config_records["request"]
    if record.get("protocol") != PROTOCOL_VERSION:
        raise FederationError(
            f"the server speaks protocol {quoted(record.get('protocol'))} (fedhubert "
            f"{quoted(record.get('version'))}), this site {PROTOCOL_VERSION} "
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
        unpack(message)
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
        Failure(int(partition), safe_word(str(code)), safe_word(str(setting)))
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
