"""Where the audio in AIFF, AU, CAF, RF64, W64 and SPHERE files ends, as their headers say."""

import re
from collections.abc import Callable
from typing import Literal

Read = Callable[[int, int], bytes]
"""Gives (position, count) of a file's bytes; fewer at its end."""

_UNKNOWN = 0xFFFFFFFF
_MOST_CHUNKS = 1000
_COUNTS = re.compile(rb"^(sample_count|channel_count|sample_n_bytes) -i (\d+)", re.MULTILINE)


def end_of_audio(at: Read) -> int | None:
    """Return the byte after the last that a header counts to the audio; None for other forms, and
    where it does not say."""
    head = at(0, 16)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _after_chunk(at, 12, b"SSND", (4, 4), "big", align=2)
    if head[:4] == b".snd":
        start, size = int.from_bytes(head[4:8]), int.from_bytes(head[8:12])
        return None if size == _UNKNOWN else start + size
    if head[:4] == b"caff":
        return _after_chunk(at, 8, b"data", (4, 8), "big", align=1)
    if head[:4] in (b"RF64", b"BW64") and at(12, 4) == b"ds64":
        size = int.from_bytes(at(28, 8), "little")
        found = _after_chunk(at, 12, b"data", (4, 4), "little", align=2, size=size)
        return found if size else None
    if head[:4] == b"riff":
        return _after_chunk(at, 40, b"data", (16, 8), "little", align=8, counts_head=True)
    if head[:8] == b"NIST_1A\n":
        return _sphere(at)
    return None


def _after_chunk(
    at: Read,
    position: int,
    wanted: bytes,
    widths: tuple[int, int],
    order: Literal["little", "big"],
    *,
    align: int,
    size: int | None = None,
    counts_head: bool = False,
) -> int | None:
    """Return where the chunk ``wanted`` ends.

    Args:
        position: Where the first chunk is.
        widths: Bytes of a chunk's name and of its size.
        align: Chunks begin at multiples of it.
        size: That of the chunk, where another place says it.
        counts_head: Sizes are those of name, size and content.
    """
    name_bytes, size_bytes = widths
    for _ in range(_MOST_CHUNKS):
        head = at(position, name_bytes + size_bytes)
        if len(head) < name_bytes + size_bytes:
            return None
        stated = int.from_bytes(head[name_bytes:], order)
        begin = position if counts_head else position + len(head)
        if head[:4] == wanted:
            if stated == 2 ** (8 * size_bytes) - 1 and size is None:
                return None
            end = begin + (stated if size is None else size)
            padded = end + -end % align
            return padded if at(padded, 1) else end
        position = begin + max(stated, 1)
        position += -position % align
    return None


def _sphere(at: Read) -> int | None:
    """Return where SPHERE's samples end; None for compressed ones."""
    size = at(8, 8).strip()
    if not size.isdigit() or int(size) > 2**20:
        return None
    header = at(0, int(size))
    counts = {name: int(value[:18]) for name, value in _COUNTS.findall(header)}
    if len(counts) < 3 or b"embedded" in header:
        return None
    samples = counts[b"sample_count"] * counts[b"channel_count"] * counts[b"sample_n_bytes"]
    return int(size) + samples
