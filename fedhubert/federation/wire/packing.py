"""A message whose small parts travel as one.

Flower makes an object of every record, every array and every piece of an array, and hands each over
by a request of its own at each of the six hops between a ServerApp and a site and back. A message
without a large array is mostly such requests. Here all records of numbers and words, and small
arrays, become one record; what is large stays what it is.

It is done last before a message leaves and undone first when it has come: signatures, ledgers and
audit logs are over what is in it. Nothing of an array is looked at here.
"""

from collections import defaultdict

from fedhubert.federation.wire.arrays import ArrivedArray, size_on_wire
from fedhubert.federation.wire.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)

_PACKED = "packed"
MOST_ARRAY_BYTES = 2**16
"""The most that the values of an array take that becomes part of the record."""
MOST_BYTES = 2**17
"""The most that all such arrays take, as ``np.save`` writes them. What many are sent stays one
object for all of them where it is more."""
_RECORDS: dict[str, type[ConfigRecord] | type[MetricRecord]] = {
    "config": ConfigRecord,
    "metric": MetricRecord,
}


def is_packed(message: Message) -> bool:
    """Return whether a message's small parts are one."""
    return message.has_content() and _PACKED in message.content


def pack(message: Message) -> Message:
    """Make one record of a message's small parts; returns the message. One that is packed, or has
    no content, stays as it is. Names of records have no spaces."""
    if is_packed(message) or not message.has_content():
        return message
    content, parts = message.content, ConfigRecord()
    for name, config in content.config_records.items():
        parts[f"config {name}"] = config.deflate()
    for name, metrics in content.metric_records.items():
        parts[f"metric {name}"] = metrics.deflate()
    kept, bytes_left = RecordDict(), MOST_BYTES
    for name, record in content.array_records.items():
        large = ArrayRecord()
        for key, array in record.items():
            most = min(MOST_ARRAY_BYTES, bytes_left)
            data = array.data if size_on_wire(array) <= most else None
            if data is None or len(data) > bytes_left:
                large[key] = array
            else:
                parts[f"array {name} {key}"] = data
                bytes_left -= len(data)
        if large or not record:
            kept[name] = large
    kept[_PACKED] = parts
    message.content = kept
    return message


def unpack(message: Message) -> bool:
    """Give a message back the parts that :func:`pack` made one of; returns whether it was packed.

    Raises:
        ValueError: it says that it is, and is something else; the message stays as it is.
    """
    if not is_packed(message):
        return False
    packed, content = message.content, RecordDict()
    arrays: defaultdict[str, dict[str, Array]] = defaultdict(dict)
    for name, record in packed.array_records.items():
        arrays[name].update(record)
    if packed.keys() - arrays.keys() != {_PACKED} or _PACKED not in packed.config_records:
        raise ValueError("records beside the one of all small parts")
    bytes_left = MOST_BYTES
    for label, data in packed.config_records[_PACKED].items():
        kind, _, name = label.partition(" ")
        if not isinstance(data, bytes) or name == _PACKED:
            raise ValueError("a part that is no bytes, or packed once more")
        if kind in _RECORDS and name not in content:
            try:
                content[name] = _RECORDS[kind].inflate(data)
            except Exception as error:  # of Flower, or of protobuf
                raise ValueError("a record that cannot be read") from error
            continue
        name, _, key = name.partition(" ")
        bytes_left -= len(data)
        if kind != "array" or key in arrays[name] or bytes_left < 0:
            raise ValueError("a part of another kind, there twice, or too large")
        arrays[name][key] = ArrivedArray("", (), "numpy.ndarray", [memoryview(data)])
    for name, held in arrays.items():
        if name in content or name == _PACKED:
            raise ValueError("a record that is there twice")
        record = ArrayRecord()
        for key, array in held.items():
            record[key] = array
        content[name] = record
    message.content = content
    return True
