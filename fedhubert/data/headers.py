"""What a file's header says of its length, held against what the file has.

Decoders believe headers, and headers lie: mp3 of variable bit rate without a Xing header, files
that were joined, wav and flac that were streamed and never finished. A :class:`Layout` says under
which header the whole of a file can be read.
"""

import functools
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from fedhubert.data import containers, flac, mpeg
from fedhubert.data.ranges import Part
from fedhubert.errors import DataError

MAX_MPEG_BYTES = 2**30
"""The largest mp3 whose frames are counted (about 18 hours at 128 kb/s)."""

_HEAD_BYTES = 4096
_REST_BYTES = 2**20
"""How much of what follows a wav's data is looked at."""
_MP3 = b"\x55\0"
"""The format of a wav whose data is an mp3."""
_RIGHT_WAV = "`ffmpeg -ignore_length 1 -i IN OUT.wav` writes one that is right"
_TAGGED = (b"fLaC", b"RIFF", b"OggS")
"""What decoders read behind an ID3 tag, too."""
_UNKNOWN = (0, 0xFFFFFFFF)
"""What writers that cannot go back leave as the size of a wav's data."""


@dataclass(frozen=True)
class Layout:
    """How to read a file whole.

    Attributes:
        num_samples: Samples per channel; None: as the decoder says.
        tolerance: How far the decoder's own count may stay below it before ``parts`` are needed.
        parts: The file under a header that says its length; empty where none is needed.
        remark: What is odd and harmless about the header; '' where nothing is.
    """

    num_samples: int | None = None
    tolerance: int = 0
    parts: tuple[Part, ...] = ()
    remark: str = ""


PLAIN = Layout()


@functools.lru_cache(maxsize=2**14)
def _known(path: Path, offset: int, size: int, changed_ns: int, name: str) -> Layout:
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(min(size, _HEAD_BYTES))
        behind, tag = b"", mpeg.after_tag(head, 0)
        if tag:
            file.seek(offset + tag)
            behind = file.read(max(0, min(size - tag, _HEAD_BYTES)))
    if behind[:4] in _TAGGED:
        offset, size, head = offset + tag, size - tag, behind
    for form in (_wav, _flac, _mpeg, _ogg, _contained):
        found = form(path, offset, size, head, name)
        if found is not None:
            return found
    return PLAIN


def layout_of(path: Path, offset: int = 0, size: int | None = None, name: str = "") -> Layout:
    """Return how to read the audio in ``size`` bytes from ``offset`` on (None: all there are).

    Args:
        name: What errors call it; the path where it is empty.

    Raises:
        DataError: no decoder would read it whole, and why.
        OSError: it cannot be opened.
    """
    about = os.stat(path)
    room = about.st_size - offset if size is None else size
    return _known(path, offset, room, about.st_mtime_ns, name or str(path))


def _refused(name: str, reason: str) -> DataError:
    return DataError(f"{name}: {reason}", setting="data.manifest")


def _wav(path: Path, offset: int, size: int, head: bytes, name: str) -> Layout | None:
    """A wav's data ends where another chunk begins, or with the file."""
    if head[:4] == b"BW64":  # broadcasters' name of RF64
        found = _contained(path, offset, size, head, name) or PLAIN
        return replace(found, parts=(b"RF64", (offset + 4, size - 4)))
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    with path.open("rb") as file:
        at = _reader(file, offset, size)
        position, remark, is_mp3 = 12, "", False
        while len(chunk := at(position, 8)) == 8:
            length = int.from_bytes(chunk[4:], "little")
            body = position + 8
            if chunk[:4] == b"fmt ":
                remark = _contradiction(at(body, 16))
                is_mp3 = at(body, 2) == _MP3
            if chunk[:4] == b"data":
                left = size - body
                if is_mp3:
                    inside = (offset + body, min(length, left))
                    found = _mpeg(path, *inside, at(body, _HEAD_BYTES), name) or PLAIN
                    return found if found.parts else replace(found, parts=(inside,))
                if length in _UNKNOWN and left > 0 and not _is_chunk(at(body, 8)):
                    sizes = struct.pack("<I", min(left, 0xFFFFFFFE))
                    before = at(0, body)
                    riff = struct.pack("<I", min(size - 8, 0xFFFFFFFE))
                    mended = before[:4] + riff + before[8:-4] + sizes
                    parts: tuple[Part, ...] = (mended, (offset + body, left))
                    return Layout(parts=parts if length == 0 else (), remark=remark)
                return _ending(at, body + length, size, name, remark)
            position = body + length + length % 2
    return PLAIN


def _contained(path: Path, offset: int, size: int, head: bytes, name: str) -> Layout | None:
    with path.open("rb") as file:
        at = _reader(file, offset, size)
        end = containers.end_of_audio(at)
        is_sphere = head[:4] == b"NIST"  # whose count no decoder asks for
        return None if end is None else _ending(at, end, size, name, whole=is_sphere)


def _reader(file: BinaryIO, offset: int, size: int) -> containers.Read:
    """Return what reads the ``size`` bytes of ``file`` that begin at ``offset``."""

    def at(position: int, count: int) -> bytes:
        file.seek(offset + position)
        return file.read(max(0, min(count, size - position)))

    return at


def _ending(
    at: containers.Read, end: int, size: int, name: str, remark: str = "", *, whole: bool = False
) -> Layout:
    """Hold the end of the audio that a header states against the file's.

    Args:
        whole: What follows the end is read as audio, too.
    """
    if end > size:
        return Layout(remark=f"the header promises {end - size} bytes more")
    if not whole:
        if not _is_chunk(at(end, 8)):  # else it is not padded
            end += end % 2
        is_wav = at(0, 4) == b"RIFF"
        remedy = _RIGHT_WAV if is_wav else "write it again from what it was made of"
        _check_rest(at(end, _REST_BYTES), size - end, name, remedy)
    return Layout(remark=remark)


def _contradiction(fmt: bytes) -> str:
    if len(fmt) < 16:
        return ""
    tag, _, rate, per_second, block = struct.unpack("<HHIIH", fmt[:14])
    if tag in (1, 3) and per_second and per_second != rate * block:
        return f"the header says {rate} Hz and {per_second} bytes a second, which contradict"
    return ""


def _is_chunk(head: bytes) -> bool:
    return len(head) == 8 and all(0x20 <= byte < 0x7F for byte in head[:4])


def _check_rest(rest: bytes, left: int, name: str, remedy: str) -> None:
    """Raise where what follows a wav's data is neither a chunk nor padding nor a tag."""
    head = rest[:8]
    if left < 8 or head[:3] in (b"TAG", b"ID3") or not any(rest):
        return
    if head[:4] in (b"RIFF", b"RIFX"):
        raise _refused(name, "several wav files, one after the other; split them, or join by sox")
    if not _is_chunk(head):
        raise _refused(
            name,
            f"the header counts {left} bytes too few: what follows its data is no chunk ({remedy})",
        )


def _flac(path: Path, offset: int, size: int, head: bytes, name: str) -> Layout | None:
    info = flac.stream_info(head)
    if info is None:
        return None
    found = flac.true_length(path, offset, size, info)
    if found is None and info.num_samples == 0:
        raise _refused(name, "does not say how long it is, and is cut short: `flac -F` mends it")
    if found is None or found == info.num_samples:
        return PLAIN
    if 0 < found < info.num_samples:
        raise _refused(name, f"cut short: {found} samples, the header promises {info.num_samples}")
    return Layout(found, 0, tuple(flac.with_length(head, found, offset, size)))


def _mpeg(path: Path, offset: int, size: int, head: bytes, name: str) -> Layout | None:
    is_frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if not (is_frame or head[:3] == b"ID3") or size > MAX_MPEG_BYTES:
        return None
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    stream = mpeg.stream_of(content)
    if stream is None:
        return None
    change = mpeg.changes(stream)
    if change:
        raise _refused(name, f"files of different kinds, one after the other: {change}; split them")
    frame, missing = stream.frames[0].num_samples, (stream.stated or 0) - len(stream.frames)
    remark = f"the header promises {missing} frames more" if missing > 1 else ""
    if stream.is_cut:
        remark = remark or "cut short in the middle of a frame"
    if not stream.has_header_frames:
        return Layout(stream.num_samples, remark=remark)
    if stream.stated is not None and abs(missing) <= 1:
        return Layout(remark=remark)
    shift = [
        part if isinstance(part, bytes) else (part[0] + offset, part[1]) for part in stream.parts()
    ]
    return Layout(stream.num_samples, frame, tuple(shift), remark)


def _ogg(path: Path, offset: int, size: int, head: bytes, name: str) -> Layout | None:
    """Several streams one after the other: decoders stop after the first."""
    if head[:4] != b"OggS":
        return None
    with path.open("rb") as file:
        position, begun, ended = 0, False, False
        while position + 27 <= size:
            file.seek(offset + position)
            page = file.read(27 + 255)
            if page[:4] != b"OggS" or len(page) < 27 + page[26]:
                break
            first = bool(page[5] & 2)
            if first and begun:
                raise _refused(name, "several Ogg streams, one after the other; split them")
            begun, ended = begun or not first, bool(page[5] & 4)
            position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not ended or position > size:
        return Layout(remark="no page is marked as the last: cut short, or streamed")
    if position == size:
        return PLAIN
    # decoders look for the last page from the end on, through all that is there
    remark = f"{size - position} bytes follow the last page"
    return Layout(parts=((offset, position),), remark=remark)
