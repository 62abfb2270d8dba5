"""A message whose small parts travel as one.

Flower makes an object of every record, every array and every piece of an array, and hands each over
by a request of its own at each of the six hops between a ServerApp and a site and back. A message
without a large array is mostly such requests. Here all records of numbers and words, and arrays of
a few kilobytes, become one record; what is large stays what it is.

It is done last before a message leaves and undone first when it has come: signatures, ledgers and
audit logs are over what is in it.
"""

import math

import numpy as np

from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from fedhubert.federation.wire.flower.chunks import joined

_PACKED = "packed"
SMALL_BYTES, MOST_BYTES = 2**16, 2**21
"""Of an array that becomes part of the record, and of all of them as they are written."""
_HEADER_BYTES = 2**12
_RECORDS: dict[str, type[ConfigRecord] | type[MetricRecord]] = {
    "config": ConfigRecord,
    "metric": MetricRecord,
}


def is_packed(message: Message) -> bool:
    """Return whether a message's small parts are one."""
    return message.has_content() and _PACKED in message.content


def pack(message: Message) -> Message:
    """Make one record of a message's small parts; returns the message. One that is packed, or has
    no content, stays as it is."""
    if is_packed(message) or not message.has_content():
        return message
    content, packed = message.content, {}
    for name, config in content.config_records.items():
        packed[f"config {name}"] = config.deflate()
    for name, metrics in content.metric_records.items():
        packed[f"metric {name}"] = metrics.deflate()
    kept, room = RecordDict(), MOST_BYTES
    for name, record in content.array_records.items():
        large = ArrayRecord()
        for key, array in record.items():
            written = array.data if _num_bytes(array) <= min(SMALL_BYTES, room) else None
            if written is None or len(written) > room:
                large[key] = array
                continue
            room -= len(written)
            packed[f"array {name} {key}"] = written
        if large or not record:
            kept[name] = large
    kept[_PACKED] = ConfigRecord({**packed})
    message.content = kept
    return message


def unpack(message: Message) -> bool:
    """Give a message back the parts that :func:`pack` made one of; returns whether it was packed.

    Raises:
        ValueError: it says that it is, and is something else.
    """
    if not is_packed(message):
        return False
    there, content, room = message.content, RecordDict(), MOST_BYTES
    arrays: dict[str, dict[str, Array]] = {
        name: dict(record) for name, record in there.array_records.items()
    }
    if there.keys() - arrays.keys() != {_PACKED}:
        raise ValueError("records beside the one of all small parts")
    for said, value in there.config_records[_PACKED].items():
        kind, _, name = said.partition(" ")
        if not isinstance(value, bytes) or name in content:
            raise ValueError("a part that is no bytes, or there twice")
        if kind in _RECORDS:
            try:
                content[name] = _RECORDS[kind].inflate(value)
            except Exception as error:  # of Flower, or of protobuf
                raise ValueError("a record that cannot be read") from error
            continue
        name, _, key = name.partition(" ")
        if kind != "array" or key in arrays.setdefault(name, {}):
            raise ValueError("a part of a kind that there is not, or there twice")
        room -= len(value)
        if len(value) > SMALL_BYTES + _HEADER_BYTES or room < 0:
            raise ValueError("an array that is not small, or too many")
        arrays[name][key] = HeldArray(joined([memoryview(value)]))
    for name, held in arrays.items():
        if name in content:
            raise ValueError("a record that is there twice")
        record = ArrayRecord()
        for key, array in held.items():
            record[key] = array
        content[name] = record
    message.content = content
    return True


def _num_bytes(array: Array) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize
