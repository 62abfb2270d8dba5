"""Flower ``Array``s that are not copied until they must be.

Flower's own is bytes: a model is serialised when it is built, copied into every message of a
simulation, and parsed again by every client. A :class:`HeldArray` keeps the ndarray and serialises
it when it goes over a wire; a :class:`SharedArray` lies in the object store of a simulation's Ray,
once, and messages carry a reference to it; an :class:`ArrivedArray` came over a wire, in pieces.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.federation.wire.flower import Array, ArrayRecord, LazyArray, Message
from fedhubert.federation.wire.flower.chunks import (
    Chunks,
    body_of,
    chunks_of,
    joined,
    parts_of,
    register_inflated,
)

NDArray = npt.NDArray[Any]


class SlicedArray(LazyArray):
    """An ``Array`` whose pieces on the wire are parts of its memory."""

    def slice_array(self) -> Chunks:
        """Return (id, piece) of each, made once."""
        if "_chunks" not in self.__dict__:
            chunks = chunks_of(self.numpy())
            if chunks is None:
                return super().slice_array()
            self.__dict__["_chunks"] = chunks
        return self.__dict__["_chunks"]  # type: ignore[no-any-return]


class HeldArray(SlicedArray):
    """An ``Array`` over an ndarray that must not change any more."""

    def __init__(self, ndarray: NDArray) -> None:
        super().__init__(ndarray)
        self.__dict__["_ndarray"] = ndarray

    def numpy(self) -> NDArray:
        ndarray: NDArray = self.__dict__["_ndarray"]
        return ndarray


class SharedArray(SlicedArray):
    """An ``Array`` in Ray's object store; Ray counts the references and frees it with the last."""

    def __init__(self, ndarray: NDArray) -> None:
        import ray

        super().__init__(ndarray)
        with _of_this_host():
            self.__dict__["_ref"] = ray.put(ndarray)

    def numpy(self) -> NDArray:
        """Return the array, read-only and without a copy."""
        import ray

        with _of_this_host():
            ndarray: NDArray = ray.get(self.__dict__["_ref"])
        return ndarray

    def free(self) -> None:
        """Give up the reference; arrays already read stay valid."""
        self.__dict__.pop("_ref", None)


@contextlib.contextmanager
def _of_this_host() -> Iterator[None]:
    """Have a worker end whose host has lost its object store: Ray then has its client trained by
    another, where an answer would count."""
    import ray

    try:
        yield
    except OSError:  # broken pipe
        if ray.get_runtime_context().get_actor_id() is None:  # the server
            raise
        os._exit(1)


class ArrivedArray(SlicedArray):
    """An ``Array`` that came over a wire, as the pieces of what ``np.save`` writes; they are put
    together when it is asked for."""

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, pieces: list[Any]) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, stype=stype, _pieces=pieces)

    @classmethod
    def inflate(cls, object_content: bytes, children: Mapping[str, Any] | None = None) -> Array:
        """Return the array that ``object_content`` describes, of the pieces in ``children``; raises
        ``ValueError`` as Flower's own does."""
        children = children or {}
        empty = {name: type(piece)(memoryview(b"")) for name, piece in children.items()}
        array = Array.inflate(object_content, empty)  # all checks but of the bytes
        names = parts_of(object_content)
        order = body_of(object_content)["arraychunk_ids"]
        pieces = [children[names[number]].data for number in order]
        return cls(array.dtype, array.shape, array.stype, pieces)

    @property
    def num_bytes(self) -> int:
        """Of what came; of its values alone once they are put together."""
        values = self.__dict__.get("_ndarray")
        return sum(map(len, self.__dict__["_pieces"])) if values is None else int(values.nbytes)

    def numpy(self) -> NDArray:
        """Return the array, put together once.

        Raises:
            TypeError: its bytes are said to be of another kind.
            ValueError: they are not what ``np.save`` writes of an array of numbers.
        """
        if self.stype != "numpy.ndarray":
            raise TypeError(f"bytes of kind {self.stype!r}")
        if "_ndarray" not in self.__dict__:
            self.__dict__["_ndarray"] = joined(self.__dict__["_pieces"])
            self.__dict__["_pieces"] = []
        return self.__dict__["_ndarray"]  # type: ignore[no-any-return]


class ArrivedRecord(ArrayRecord):
    """An ``ArrayRecord`` that keeps the arrays that came; the constructor would make others."""

    @classmethod
    def inflate(
        cls, object_content: bytes, children: Mapping[str, Any] | None = None
    ) -> ArrayRecord:
        """Return the record that ``object_content`` describes, of the arrays in ``children``;
        raises ``ValueError`` as Flower's own does."""
        children = children or {}
        if not all(isinstance(array, Array) for array in children.values()):
            raise ValueError("a record of something else than arrays")
        ArrayRecord.inflate(
            object_content, {name: Array("", (), "", b"") for name in children}
        )  # all checks
        record = ArrayRecord()
        for name, object_id in body_of(object_content).items():
            record[name] = children[object_id]
        return record


def put_together_once() -> None:
    """Have what this process pulls from Flower arrive as :class:`ArrivedArray`; where a Flower has
    moved what that takes, as Flower's own, with a warning."""
    register_inflated(Array=ArrivedArray, ArrayRecord=ArrivedRecord)


def size_on_wire(array: Array) -> int:
    """Return the bytes of an array that has come: of one that never left this machine those of its
    values, without making a copy of them."""
    if isinstance(array, ArrivedArray):
        return array.num_bytes
    return array.numpy().nbytes if isinstance(array, LazyArray) else len(array.data)


def free_arrays(message: Message) -> None:
    """Let go of what ``message`` refers to in the object store: threads of Flower's engine hold on
    to the last messages that they have seen."""
    for array in shared_arrays(message):
        array.free()


def shared_arrays(message: Message) -> list[SharedArray]:
    """Return what of ``message`` lies in the object store of a simulation."""
    records = message.content.array_records.values() if message.has_content() else ()
    return [
        array for record in records for array in record.values() if isinstance(array, SharedArray)
    ]


def sha256_of_ndarray(ndarray: NDArray) -> str:
    """Return the SHA-256 of an array's bytes in C order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(ndarray).reshape(-1).view(np.uint8).data).hexdigest()


def sha256_of(array: Array) -> str:
    """Return the same of an ``Array`` that this process has made: of a :class:`HeldArray` or
    :class:`SharedArray` it is taken once, and kept."""
    if not isinstance(array, HeldArray | SharedArray):
        return sha256_of_ndarray(array.numpy())
    if "_sha256" not in array.__dict__:
        array.__dict__["_sha256"] = sha256_of_ndarray(array.numpy())
    return str(array.__dict__["_sha256"])


def publish(ndarray: NDArray) -> Array:
    """Make an array ready to be sent to many."""
    ray = sys.modules.get("ray")  # nobody imports it on a real server
    return SharedArray(ndarray) if ray is not None and ray.is_initialized() else HeldArray(ndarray)
