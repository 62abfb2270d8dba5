"""Segments of speech with what they are, from phones in time or from a ZeroSpeech item file."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhubert.data.batching import FRAME_SAMPLES, RECEPTIVE_SAMPLES, SAMPLE_RATE_HZ
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.errors import DataError
from fedhubert.evaluation.abx import Kinds
from fedhubert.evaluation.annotations import Alignment, read_table
from fedhubert.models.frames import frames_of

SILENCES = frozenset({"SIL", "sil", "SP", "sp", "SPN", "spn", "NSN", "<eps>", "NONSPEECH"})
"""Names that an alignment gives to what is no phone: neighbours, but not told apart."""
_EDGE = "#"
_ITEM = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")

_Said = tuple[int, float, float, str, tuple[str, str], str]
"""Row of the manifest, first second, end, phone, neighbours, speaker."""


@dataclass(frozen=True)
class Segments:
    """Segments with a frame at least, in the order of the manifest.

    Attributes:
        rows_N: Of the manifest.
        starts_N, ends_N: The first 50-Hz frame, and the one after the last: those whose centre,
            sample 320 t + 200 at 16 kHz, is in the segment.
        kinds: Phones, contexts (all the same, unless they count) and speakers.
        by_context: Whether they count.
    """

    rows_N: Rows
    starts_N: Rows
    ends_N: Rows
    kinds: Kinds
    by_context: bool

    def __len__(self) -> int:
        return len(self.rows_N)

    def select(self, places: Rows) -> "Segments":
        """Return those at ``places``."""
        kinds = self.kinds
        return Segments(
            self.rows_N[places],
            self.starts_N[places],
            self.ends_N[places],
            Kinds(kinds.phones_N[places], kinds.contexts_N[places], kinds.speakers_N[places]),
            self.by_context,
        )


def aligned_segments(
    alignment: Alignment, manifest: Manifest, *, by_context: bool = False
) -> Segments:
    """Return every phone of an alignment, silences left out; raises :class:`DataError` without
    one."""
    return _segments(_aligned(alignment, manifest), manifest, by_context, "--phones")


def read_items(path: Path, manifest: Manifest, *, by_context: bool = True) -> Segments:
    """Return the segments of an item file: a first line ``#file onset offset #phone prev-phone
    next-phone speaker``, times in seconds, ``#file`` a path of the manifest or its name, without
    the suffix.

    Raises:
        DataError: a file that is no item file, a line that is wrong, by number, or no line that
            names audio of the manifest.
    """
    return _segments(_items(path, manifest), manifest, by_context, "--item")


def _aligned(alignment: Alignment, manifest: Manifest) -> Iterator[_Said]:
    for row, path in enumerate(manifest.paths):
        listed = alignment.segments.get(path, [])
        rate_hz = int(manifest.sample_rates_hz[row])
        phones = [_EDGE, *(phone for _, _, phone in listed), _EDGE]
        for place, (start, end, phone) in enumerate(listed):
            if phone not in SILENCES:
                near = phones[place], phones[place + 2]
                yield row, start / rate_hz, end / rate_hz, phone, near, manifest.speakers[row]


def _items(path: Path, manifest: Manifest) -> Iterator[_Said]:
    rows: dict[str, int] = {}
    for row, name in enumerate(manifest.paths):
        without = name.removesuffix(Path(name).suffix)
        rows[without] = row
        rows.setdefault(Path(without).name, row)
    for number, line in read_table(path, "--item", _ITEM, delimiter=" "):
        row = rows.get(line["#file"], -1)
        if row >= 0:
            near = line["prev-phone"], line["next-phone"]
            yield row, *_times(path, number, line), line["#phone"], near, line["speaker"]


def _times(path: Path, number: int, line: dict[str, str]) -> tuple[float, float]:
    try:
        onset, offset = float(line["onset"]), float(line["offset"])
    except ValueError:
        onset, offset = math.nan, math.nan
    if not 0.0 <= onset < offset < math.inf:
        raise DataError(
            f"{path}, line {number}: not a phone from a second to a later one", setting="--item"
        )
    return onset, offset


def _segments(
    said: Iterable[_Said], manifest: Manifest, by_context: bool, setting: str
) -> Segments:
    frames = frames_of(manifest.lengths(SAMPLE_RATE_HZ))
    kept: list[tuple[int, int, int, str, str, str]] = []
    for row, onset_s, offset_s, phone, near, speaker in said:
        start, end = (min(int(frames[row]), _first_frame(time_s)) for time_s in (onset_s, offset_s))
        if start < end:
            kept.append((row, start, end, phone, "\n".join(near) if by_context else "", speaker))
    if not kept:
        raise DataError(
            "no segment with a frame is in audio of the manifest: do the paths agree?",
            setting=setting,
        )
    kept.sort(key=lambda segment: segment[:3])
    rows, starts, ends, phones, contexts, speakers = zip(*kept, strict=True)

    def numbered(names: tuple[str, ...]) -> Rows:
        return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)

    return Segments(
        np.array(rows, np.int64),
        np.array(starts, np.int64),
        np.array(ends, np.int64),
        Kinds(numbered(phones), numbered(contexts), numbered(speakers)),
        by_context,
    )


def _first_frame(time_s: float) -> int:
    """Return the first frame whose centre is not before a time."""
    # 0.0125 s are 200 samples, whatever a float makes of them
    samples = round(time_s * SAMPLE_RATE_HZ, 3)
    return max(0, math.ceil((samples - RECEPTIVE_SAMPLES // 2) / FRAME_SAMPLES))
