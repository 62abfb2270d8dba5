"""Masks: streams of AES-256 in counter mode that are added to a vector of integers, or taken off,
modulo the size of its words.

All streams go over the vector in one pass, a few hundred kilobytes at a time: the vector is read
and written once, whatever the number of masks (a pass for each took 5 to 10 times as long). A part
of the vector has its own place in each stream, so that threads share the work; AES lets the
interpreter go meanwhile.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

Integers = npt.NDArray[np.signedinteger | np.unsignedinteger]

SEED_BYTES = 32
_BLOCK = 16
_CHUNK = 2**18
"""Bytes at a time: the part of the vector, the stream and the zeros that AES turns into it stay in
the processor's cache."""
_ZEROS = bytes(_CHUNK)


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
    words = vector.view(f"<u{vector.itemsize}")
    if not (plus or minus) or not len(words):
        return
    # each begins at a block of the streams
    span = -(-words.nbytes // (max(1, threads) * _CHUNK)) * _CHUNK
    starts = range(0, words.nbytes, span)
    if len(starts) == 1:
        return _add(words, 0, plus, minus, part)
    with ThreadPoolExecutor(len(starts)) as pool:
        size = words.itemsize
        done = [
            pool.submit(
                _add, words[start // size : (start + span) // size], start, plus, minus, part
            )
            for start in starts
        ]
        for each in done:
            each.result()


def _add(
    words: npt.NDArray[np.unsignedinteger],
    offset: int,
    plus: Sequence[bytes],
    minus: Sequence[bytes],
    part: int,
) -> None:
    """Do the words that begin ``offset`` bytes into the vector."""
    buffer = bytearray(_CHUNK + _BLOCK - 1)
    mask = np.frombuffer(buffer, words.dtype, _CHUNK // words.itemsize)
    streams = [
        (_stream(seed, offset, part), operation)
        for seeds, operation in ((plus, np.add), (minus, np.subtract))
        for seed in seeds
    ]
    for start in range(0, len(words), len(mask)):
        chunk = words[start : start + len(mask)]
        zeros = memoryview(_ZEROS)[: chunk.nbytes]
        for stream, operation in streams:
            stream.update_into(zeros, buffer)
            operation(chunk, mask[: len(chunk)], out=chunk)


def _stream(seed: bytes, offset: int, part: int) -> CipherContext:
    """Return the stream ``part`` of a seed from byte ``offset`` on: the counter's upper half is the
    part, its lower half counts blocks."""
    counter = part.to_bytes(8, "big") + (offset // _BLOCK).to_bytes(8, "big")
    return Cipher(algorithms.AES256(seed), modes.CTR(counter)).encryptor()
