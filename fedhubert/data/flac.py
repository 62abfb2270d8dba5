"""FLAC's stated length, and the one that its last frame tells."""

import re
from dataclasses import dataclass
from pathlib import Path

from fedhubert.data.ranges import Part

_TAIL_BYTES, _CANDIDATES = 2**17, 32
"""How far from the end the last frame begins, and how many places are taken for it at most."""
_STREAMINFO_END = 42
_BLOCK_SIZES = {1: 192, **{n: 576 << n - 2 for n in range(2, 6)}}
_BLOCK_SIZES |= {n: 256 << n - 8 for n in range(8, 16)}
_LEAST_FRAME = 9
"""Bytes of a frame of silence: header, one number, checksums."""
_STREAM = re.compile(rb"fLaC[\x00\x80]\0\0\x22")
_SYNC = re.compile(rb"\xff[\xf8\xf9]")


@dataclass(frozen=True)
class StreamInfo:
    """What a FLAC's first block says: samples per channel (0: it does not say), largest block."""

    num_samples: int
    max_block: int


def stream_info(head: bytes) -> StreamInfo | None:
    """Return what the first 42 bytes of a file say; None where they are no FLAC's."""
    if len(head) < _STREAMINFO_END or head[:4] != b"fLaC" or head[4] & 0x7F != 0:
        return None
    return StreamInfo(
        (head[21] & 0x0F) << 32 | int.from_bytes(head[22:26]), int.from_bytes(head[10:12])
    )


def true_length(path: Path, offset: int, size: int, info: StreamInfo) -> int | None:
    """Return the samples per channel that end with the last frame of ``size`` bytes from
    ``offset`` on; None where no whole frame ends there (cut short, or something follows).

    Tags behind the last frame are none of it. Where something else follows, a frame's header that
    counts more samples than ``info`` is believed: decoding all of them shows whether it is right.
    """
    with path.open("rb") as file:
        begin = max(0, size - _TAIL_BYTES)
        file.seek(offset + begin)
        tail = _without_tags(file.read(size - begin))
    tried, most = 0, info.num_samples
    for match in reversed(list(_SYNC.finditer(tail))):
        end = _end_of_frame(tail[match.start() :], info.max_block)
        if end is not None:
            if end == info.num_samples or _crc16(tail[match.start() :]) == 0:
                return end
            most = max(most, end)
            tried += 1
            if tried == _CANDIDATES:
                break
    return most if 0 < info.num_samples < most else None


def _without_tags(tail: bytes) -> bytes:
    """Return a file's end without ID3v1 and APE tags."""
    while True:
        if tail[-128:-125] == b"TAG":
            tail = tail[:-128]
        elif tail[-32:-24] == b"APETAGEX":
            size, has_header = int.from_bytes(tail[-20:-16], "little"), tail[-9] >> 7
            tail = tail[: -max(size, 32) - 32 * has_header]
        else:
            return tail


def num_streams(path: Path) -> int:
    """Return how many FLAC streams a file holds, one after the other; decoders stop after the
    first."""
    found, kept = 0, b""
    with path.open("rb") as file:
        while block := file.read(2**22):
            found += len(_STREAM.findall(kept + block))
            kept = block[-7:]
    return found


def with_length(head: bytes, num_samples: int, offset: int, size: int) -> list[Part]:
    """Return the file's parts under a header that says ``num_samples``."""
    mended = bytearray(head[:_STREAMINFO_END])
    mended[21] = mended[21] & 0xF0 | num_samples >> 32
    mended[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4)
    return [bytes(mended), (offset + _STREAMINFO_END, size - _STREAMINFO_END)]


def _end_of_frame(frame: bytes, max_block: int) -> int | None:
    """Return the number of the first sample after a frame; None where its header is none."""
    if len(frame) < _LEAST_FRAME:
        return None
    block_code, rate_code = frame[2] >> 4, frame[2] & 0x0F
    if block_code == 0 or rate_code == 15 or frame[3] >> 4 > 10 or frame[3] & 1:
        return None
    number, position = _coded_number(frame, 4)
    if number is None:
        return None
    block = _BLOCK_SIZES.get(block_code)
    if block is None:  # 6 and 7: in one or two bytes after the number
        width = block_code - 5
        block = int.from_bytes(frame[position : position + width]) + 1
        position += width
    position += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if _crc8(frame[: position + 1]) != 0:
        return None
    variable = frame[1] & 1
    return number + block if variable else number * max_block + block


def _coded_number(data: bytes, position: int) -> tuple[int | None, int]:
    """Return a number coded as UTF-8 codes characters, and where it ends."""
    first = data[position]
    if first < 0x80:
        return first, position + 1
    length = 8 - (first ^ 0xFF).bit_length()  # leading ones
    rest = data[position + 1 : position + length]
    if not 2 <= length <= 7 or any(byte & 0xC0 != 0x80 for byte in rest):
        return None, position
    number = first & (0x7F >> length)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, position + length


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07 if crc & 0x80 else crc << 1) & 0xFF
    return crc


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = crc << 8 & 0xFFFF ^ _CRC16[crc >> 8 ^ byte]
    return crc


def _crc16_entry(value: int) -> int:
    crc = value << 8
    for _ in range(8):
        crc = (crc << 1 ^ 0x8005 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


_CRC16 = [_crc16_entry(value) for value in range(256)]
