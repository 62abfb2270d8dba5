"""The pieces in which an array goes over a wire: made of its memory, and put together once.

Flower's own way from an ndarray to pieces copies it five times and hashes every piece twice for
each message. These pieces are views, and hashed once however many messages they are part of; their
ids and bytes are those of Flower's own pieces of the same length. What arrives is copied once
instead of four times.
"""

import functools
import hashlib
import io
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedhubert.federation.wire.flower.private import UnsupportedFlower, private

log = logging.getLogger("fedhubert")

CHUNK_BYTES = 12 * 2**20
"""Flower's are 5 MiB, and what docker/proxy lets through is 16. A push must bring two pieces within
the three minutes after which the SuperLink gives it up: 1.2 Mbit/s are enough."""

_MOST_HEADER = 2**16
"""What version 1.0 of NumPy's format has before the values, at most."""

_NUMBERS = "biufc"
"""NumPy's kinds of types that arrays on the wire may have: whole, real and complex numbers, and
booleans."""

Chunks = list[tuple[str, Any]]


def chunks_of(ndarray: npt.NDArray[Any]) -> Chunks | None:
    """Return (id, piece) of what ``np.save`` would write of ``ndarray``, which must not change any
    more; None where only Flower's own code will do: another layout in memory, another Flower."""
    kind = _chunk_class()
    if kind is None or not ndarray.flags.c_contiguous or ndarray.dtype.hasobject:
        return None
    header = _npy_header(ndarray)
    values = ndarray.reshape(-1).view(np.uint8).data
    first = CHUNK_BYTES - len(header)
    views = [memoryview(header + bytes(values[:first]))]
    views += [
        values[start : start + CHUNK_BYTES] for start in range(first, len(values), CHUNK_BYTES)
    ]
    chunks = [kind(view) for view in views]
    return [(chunk.object_id, chunk) for chunk in chunks]


def _npy_header(ndarray: npt.NDArray[Any]) -> bytes:
    """Return what ``np.save`` writes before the values: of an array of none of them, all that it
    writes but for its shape."""
    buffer = io.BytesIO()
    about = np.lib.format.header_data_from_array_1_0(ndarray)
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()


def parts_of(object_content: bytes) -> list[str]:
    """Return the ids of the objects that one on the wire is made of."""
    names = object_content[: object_content.index(b"\0")].decode().split(" ")[1]
    return names.split(",") if names else []


def body_of(object_content: bytes) -> dict[str, Any]:
    """Return what an object on the wire that is no piece of an array says beside them."""
    body: dict[str, Any] = json.loads(object_content[object_content.index(b"\0") + 1 :])
    return body


def joined(pieces: Sequence[memoryview]) -> npt.NDArray[Any]:
    """Return the array of which ``np.save`` has written ``pieces``, in memory of its own.

    Raises:
        ValueError: it is another format, no array of numbers, or not as long as it says.
    """
    if not pieces:
        raise ValueError("an array of no bytes")
    start = io.BytesIO(b"".join(_beginning(pieces)))
    if np.lib.format.read_magic(start) != (1, 0):
        raise ValueError("arrays travel in version 1.0 of NumPy's format")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(start)
    offset, total = start.tell(), sum(map(len, pieces))
    # others can have no bytes an entry, and so any shape: a copy would take all memory
    if dtype.kind not in _NUMBERS or min(shape, default=0) < 0:
        raise ValueError("an array of something else than numbers, or of no shape that there is")
    if math.prod(shape) * dtype.itemsize != total - offset:
        raise ValueError("an array that is shorter or longer than it says")
    whole, place = np.empty(total, np.uint8), 0
    for piece in pieces:
        whole[place : place + len(piece)] = piece
        place += len(piece)
    order: Literal["F", "C"] = "F" if columns_first else "C"
    array: npt.NDArray[Any] = np.ndarray(shape, dtype, whole, offset, order=order)
    return array if array.flags.aligned else array.copy()


def _beginning(pieces: Sequence[memoryview]) -> Iterator[memoryview]:
    """Return as many bytes as a header has at most."""
    left = _MOST_HEADER
    for piece in pieces:
        if left > 0:
            yield piece[:left]
        left -= len(piece)


def register_inflated(**kinds: type) -> None:
    """Have what is pulled in this process arrive as ``kinds``, by Flower's names for them, of
    pieces that are views."""
    kind = _chunk_class()
    try:
        classes = private("flwr.supercore.inflatable.inflatable_utils", "inflatable_class_registry")
    except UnsupportedFlower as error:
        log.warning("%s: arrays are put together as Flower does it", error)
        return
    if kind is not None and kinds.keys() | {"ArrayChunk"} <= classes.keys():
        classes.update(kinds, ArrayChunk=kind)


@functools.cache
def _chunk_class() -> Any:
    """Return a class of pieces; None where Flower's are not what they were."""
    try:
        base = private("flwr.app.message.arraychunk", "ArrayChunk")
    except UnsupportedFlower as error:
        log.warning("%s: arrays are copied as Flower does it", error)
        return None

    class Chunk(base):  # type: ignore[misc, valid-type]
        """Flower's ``ArrayChunk``, whose id is taken once."""

        @property
        def object_id(self) -> str:
            if "_object_id" not in self.__dict__:
                digest = hashlib.sha256(self._head())
                digest.update(self.data)
                self.__dict__["_object_id"] = digest.hexdigest()
            return str(self.__dict__["_object_id"])

        def deflate(self) -> bytes:
            return b"".join((self._head(), self.data))

        @classmethod
        def inflate(cls, object_content: bytes, children: object = None) -> Any:
            """Return the piece in ``object_content``, as a view of it."""
            if children:
                raise ValueError("a piece of an array has no parts")
            kind, _, length = object_content[: object_content.index(b"\0")].decode().split(" ")
            data = memoryview(object_content)[object_content.index(b"\0") + 1 :]
            if kind != "ArrayChunk" or len(data) != int(length):
                raise ValueError("no piece of an array, or not the whole of it")
            return cls(data)

        def _head(self) -> bytes:
            return f"ArrayChunk  {len(self.data)}\0".encode()

    probe = memoryview(b"probe")
    if Chunk(probe).deflate() == base(probe).deflate():
        return Chunk
    log.warning("this Flower writes pieces of arrays another way: they are copied as it does it")
    return None
