"""MPEG audio (mp3, mp2) frame by frame: how much there is, whatever its header says.

libsndfile believes the first frame's Xing header, and where there is none it guesses from the
first frame's bit rate. Neither holds for variable bit rates without a header, and for files that
were joined.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from fedhubert.data.ranges import Part

_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBPS = {  # by MPEG 1 (or 2 with 2.5) and layer
    (True, 1): tuple(range(0, 449, 32)),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _LOW,
    (False, 3): _LOW,
}
_MPEG1, _MONO = 3, 3
_RESYNC_BYTES, _RESYNCS = 2**16, 2**16
"""How far the next frame is looked for, and how often in a file: what is no frame is not searched
byte by byte."""


@dataclass(frozen=True)
class Frame:
    """A frame: its place and length in bytes, rate in Hz, channels, samples and layer (1 to 3)."""

    start: int
    length: int
    rate_hz: int
    channels: int
    num_samples: int
    layer: int
    header: bytes


@dataclass(frozen=True)
class Stream:
    """The audio frames of a file, without those that only describe it.

    Attributes:
        stated: Frames that the first Xing, Info or VBRI header names; None where there is none.
        is_cut: It ends in the middle of a frame.
    """

    frames: tuple[Frame, ...]
    stated: int | None
    is_cut: bool = False

    @property
    def has_header_frames(self) -> bool:
        """Whether decoders of this layer ask a Xing header for its length."""
        return self.frames[0].layer == 3

    @property
    def num_samples(self) -> int:
        """Samples per channel of all frames, the encoder's delay included."""
        return sum(frame.num_samples for frame in self.frames)

    def parts(self) -> list[Part]:
        """Return the frames behind a Xing header that counts them rightly; tags and headers in
        between are left out."""
        ranges: list[tuple[int, int]] = []
        for frame in self.frames:
            if ranges and sum(ranges[-1]) == frame.start:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + frame.length)
            else:
                ranges.append((frame.start, frame.length))
        return [_xing(self.frames[0], len(self.frames)), *ranges]


def stream_of(content: bytes) -> Stream | None:
    """Return the audio frames of a file; None for what is not one (or has a free bit rate)."""
    frames, stated, first, is_cut = [], None, True, False
    for frame in _frames(content):
        if frame.start + frame.length > len(content):
            is_cut = True  # decoders leave it out
            break
        count = _described(content, frame)
        if count is None:
            frames.append(frame)
        elif first:
            stated = count
        first = False
    return Stream(tuple(frames), stated, is_cut) if frames else None


def _frames(content: bytes) -> Iterator[Frame]:
    position = after_tag(content, 0)
    known, left = False, _RESYNCS  # whether the last position followed a whole frame
    while position + 4 <= len(content) and left:
        frame = _frame(content, position)
        if frame is not None and not known:
            after = _frame(content, position + frame.length)  # two in a row: no accident
            at_end = position + frame.length >= len(content) - 4
            frame = frame if after is not None or at_end else None
        if frame is not None:
            yield frame
            position, known = position + frame.length, True
            continue
        left -= 1
        tag = after_tag(content, position)
        found = content.find(b"\xff", position + 1, position + _RESYNC_BYTES)
        if tag == position and found < 0:
            return
        position, known = (tag if tag > position else found), False


def after_tag(content: bytes, position: int) -> int:
    """Return where an ID3v2 tag at ``position`` ends; ``position`` where there is none."""
    head = content[position : position + 10]
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 0x7F:
        return position
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return position + 10 + size + (10 if head[5] & 0x10 else 0)


def _frame(content: bytes, position: int) -> Frame | None:
    header = content[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    kbps_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or kbps_index in (0, 15) or rate_index == 3:
        return None
    rate_hz = _RATES_HZ[version][rate_index]
    bits = 1000 * _KBPS[version == _MPEG1, layer][kbps_index]
    padding = header[2] >> 1 & 1
    samples = 384 if layer == 1 else 1152 if version == _MPEG1 or layer == 2 else 576
    length = samples // 8 * bits // rate_hz + padding
    if layer == 1:
        length = 4 * (12 * bits // rate_hz + padding)
    channels = 1 if header[3] >> 6 == _MONO else 2
    return Frame(position, length, rate_hz, channels, samples, layer, header)


def _side_info(frame: Frame) -> int:
    """Bytes of side information, after which a Xing header would stand."""
    if frame.num_samples == 1152:
        return 17 if frame.channels == 1 else 32
    return 9 if frame.channels == 1 else 17


def _described(content: bytes, frame: Frame) -> int | None:
    """Return how many frames a describing frame names (0: it does not say); None for audio."""
    body = content[frame.start : frame.start + min(frame.length, 200)]
    place = 4 + _side_info(frame)
    if body[place : place + 4] in (b"Xing", b"Info"):
        says = len(body) >= place + 12 and body[place + 7] & 1
        return int.from_bytes(body[place + 8 : place + 12]) if says else 0
    if body[36:40] == b"VBRI" and len(body) >= 54:
        return int.from_bytes(body[50:54])
    return None


def _xing(like: Frame, count: int) -> bytes:
    """Return a describing frame for ``count`` frames of the kind of ``like``."""
    needed = 4 + _side_info(like) + 12
    for kbps_index in range(1, 15):
        # no checksum, no padding
        second, third = like.header[1] | 1, kbps_index << 4 | (like.header[2] & 0x0C)
        header = bytes((0xFF, second, third, like.header[3]))
        frame = _frame(header, 0)
        if frame is not None and frame.length >= needed:
            body = bytes(_side_info(like)) + b"Xing" + (1).to_bytes(4) + count.to_bytes(4)
            return (header + body).ljust(frame.length, b"\0")
    raise AssertionError("a frame of the highest bit rate holds a Xing header")


def changes(stream: Stream) -> str:
    """Return what changes on the way, which no decoder follows: '44100 Hz, then 16000 Hz'; ''."""
    for before, after in pairwise(stream.frames):
        if before.layer != after.layer:
            return f"layer {before.layer}, then {after.layer}"
        if before.rate_hz != after.rate_hz:
            return f"{before.rate_hz} Hz, then {after.rate_hz} Hz"
        if before.channels != after.channels:
            return f"{before.channels} channels, then {after.channels}"
    return ""
