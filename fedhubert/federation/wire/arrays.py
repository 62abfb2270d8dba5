"""Flower ``Array``s that are not copied until they must be.

Flower's own is bytes: a model is serialised when it is built, copied into every message of a
simulation, and parsed again by every client. A :class:`HeldArray` keeps the ndarray and serialises
it when it goes over a wire; a :class:`SharedArray` lies in the object store of a simulation's Ray,
once, and messages carry a reference to it.
"""

import hashlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.federation.wire.flower import Array, LazyArray, Message

NDArray = npt.NDArray[Any]


class HeldArray(LazyArray):
    """An ``Array`` over an ndarray that must not change any more."""

    def __init__(self, ndarray: NDArray) -> None:
        super().__init__(ndarray)
        self.__dict__["_ndarray"] = ndarray

    def numpy(self) -> NDArray:
        ndarray: NDArray = self.__dict__["_ndarray"]
        return ndarray


class SharedArray(LazyArray):
    """An ``Array`` in Ray's object store; Ray counts the references and frees it with the last."""

    def __init__(self, ndarray: NDArray) -> None:
        import ray

        super().__init__(ndarray)
        self.__dict__["_ref"] = ray.put(ndarray)

    def numpy(self) -> NDArray:
        """Return the array, read-only and without a copy."""
        import ray

        ndarray: NDArray = ray.get(self.__dict__["_ref"])
        return ndarray

    def free(self) -> None:
        """Give up the reference; arrays already read stay valid."""
        self.__dict__.pop("_ref", None)


def size_on_wire(array: Array) -> int:
    """Return the bytes of an array that has come: of one that never left this machine those of its
    values, without making a copy of them."""
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
