"""Masks: streams of AES-256 in counter mode that are added to a vector of integers, or taken off,
modulo the size of its words.

All streams go over the vector in one pass, a few hundred kilobytes at a time: the vector is read
and written once, whatever the number of masks (a pass for each took 5 to 10 times as long). The
counter mode is that within GCM, whose tag nobody asks for: OpenSSL has it in the widest registers,
in half of the time of plain CTR. Segments of the vector have streams of their own, so that threads
share them; AES lets the interpreter go meanwhile.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

Integers = npt.NDArray[np.signedinteger | np.unsignedinteger]
Words = npt.NDArray[np.unsignedinteger]

SEED_BYTES = 32
_BLOCK = 16
_CHUNK = 2**18
"""Bytes at a time: the part of the vector, the stream and the zeros that AES turns into it stay in
the processor's cache."""
_ZEROS = bytes(_CHUNK)
_SEGMENT = 2**24
"""Bytes of a vector that have one stream of a seed."""


def add_masks(
    vector: Integers,
    plus: Sequence[bytes],
    minus: Sequence[bytes] = (),
    *,
    part: int = 0,
    threads: int = 1,
) -> None:
    """Add the streams of the seeds ``plus`` to ``vector`` [L] in place, and take those of ``minus``
    off; words wrap around.

    Args:
        vector: Contiguous integers of 1, 2, 4 or 8 bytes.
        plus, minus: Seeds of 32 bytes.
        part: Which of a seed's streams: two vectors that go together have one each.
        threads: How many share the work; the result is the same.
    """
    words: Words = vector.view(f"<u{vector.itemsize}")
    size = _SEGMENT // words.itemsize
    segments = [words[start : start + size] for start in range(0, len(words), size)]

    def add(number: int) -> None:
        _add(
            segments[number],
            [_stream(seed, part, number) for seed in plus],
            [_stream(seed, part, number) for seed in minus],
        )

    if min(threads, len(segments)) <= 1:
        for number in range(len(segments)):
            add(number)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(add, range(len(segments))))


def _add(words: Words, plus: Sequence[CipherContext], minus: Sequence[CipherContext]) -> None:
    """Add what comes next of the streams ``plus`` to ``words``, and take that of ``minus`` off."""
    buffer = bytearray(_CHUNK + _BLOCK - 1)
    mask: Words = np.frombuffer(buffer, words.dtype, _CHUNK // words.itemsize)
    for start in range(0, len(words), len(mask)):
        chunk = words[start : start + len(mask)]
        zeros, random = memoryview(_ZEROS)[: chunk.nbytes], mask[: len(chunk)]
        for stream in plus:
            stream.update_into(zeros, buffer)
            np.add(chunk, random, out=chunk)
        for stream in minus:
            stream.update_into(zeros, buffer)
            np.subtract(chunk, random, out=chunk)


def _stream(seed: bytes, part: int, segment: int) -> CipherContext:
    """Return the stream of a seed for a segment of a part: counter mode from (part, segment, 2)
    on."""
    nonce = part.to_bytes(4, "big") + segment.to_bytes(8, "big")
    return Cipher(algorithms.AES256(seed), modes.GCM(nonce)).encryptor()
