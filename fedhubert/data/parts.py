"""Which part of its file each utterance is: columns that a manifest may have beside the four that
it must have.

``start_s`` and ``end_s`` cut it out (seconds from the file's beginning; an empty cell: its
beginning or its end), ``channel`` names the channel that is heard (counted from 0; empty: the mean
of all), and ``archive``, ``byte_offset`` and ``byte_size`` say where a file lies that is inside
another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedhubert.data.cells import Cells
from fedhubert.errors import DataError

REQUIRED = ("path", "speaker", "num_samples", "sample_rate")
CUT = ("start_s", "end_s")
CHANNEL = "channel"
ARCHIVE = ("archive", "byte_offset", "byte_size")
MAX_SECONDS, MAX_CHANNEL, MAX_BYTES = 2.0**31, 1023, 2**62
MEAN = "mean"

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """One entry a row.

    Attributes:
        starts: First sample as stored.
        ends: The sample after the last, -1: that of the file.
        cut: Whether it is a part of its file.
        channels: The channel heard, -1: the mean of all.
        offsets, sizes: Bytes in the archive; empty where no row is in one.
    """

    starts: Integers
    ends: Integers
    cut: npt.NDArray[np.bool_]
    channels: Integers
    offsets: Integers
    sizes: Integers


def parts_of(
    columns: Mapping[str, Sequence[str]], sample_rates_hz: npt.NDArray[np.int32], where: str
) -> Parts:
    """Return what the columns say; ``where`` is what errors call the manifest.

    Raises:
        DataError: a cell that is no number, a part that ends before it begins, or some of the
            columns of an archive without the others; with file and line.
    """
    rows, nothing = len(sample_rates_hz), np.zeros(0, np.int64)
    starts, ends, cut = np.zeros(rows, np.int64), np.full(rows, -1, np.int64), np.zeros(rows, bool)
    if any(name in columns for name in CUT):
        texts = [columns.get(name) or [""] * rows for name in CUT]
        begin, end = (
            _numbers(cells, name, where, MAX_SECONDS, np.nan)
            for cells, name in zip(texts, CUT, strict=True)
        )
        cut = np.isfinite(begin) | np.isfinite(end)
        starts = np.rint(np.nan_to_num(begin) * sample_rates_hz).astype(np.int64)
        stated = np.rint(np.nan_to_num(end) * sample_rates_hz).astype(np.int64)
        ends = np.where(np.isfinite(end), stated, -1)
        wrong = np.flatnonzero(np.isfinite(end) & (ends <= starts))
        if len(wrong):
            raise _bad(where, int(wrong[0]), "end_s is not after start_s")
    channels = _channels(columns.get(CHANNEL), rows, where)
    present = [name for name in ARCHIVE if name in columns]
    if not present:
        return Parts(starts, ends, cut, channels, nothing, nothing)
    if len(present) < len(ARCHIVE):
        raise DataError(
            f"{where}: columns {', '.join(present)} without the others of {', '.join(ARCHIVE)}",
            setting="data.manifest",
        )
    offsets, sizes = (
        _numbers(columns[name], name, where, MAX_BYTES, 0.0).astype(np.int64)
        for name in ARCHIVE[1:]
    )
    return Parts(starts, ends, cut, channels, offsets, sizes)


def with_parts(
    columns: Mapping[str, Sequence[str]],
    num_samples: Integers,
    sample_rates_hz: npt.NDArray[np.int32],
    where: str,
) -> tuple[Integers, dict[str, Sequence[str]], Parts]:
    """Return how many samples each row is, where ``num_samples`` may be those of its file, the
    columns with every ``end_s`` filled in that its file gives, and what they say; raises as
    :func:`parts_of`."""
    parts = parts_of(columns, sample_rates_hz, where)
    ends = np.where(parts.ends < 0, num_samples, parts.ends)
    wrong = np.flatnonzero(ends <= parts.starts)
    if len(wrong):
        raise _bad(where, int(wrong[0]), "start_s is not before the file's end (num_samples)")
    filled, open_ended = dict(columns), np.flatnonzero(parts.cut & (parts.ends < 0))
    if len(open_ended):
        texts = list(columns.get("end_s") or [""] * len(ends))
        for row in open_ended.tolist():
            texts[row] = seconds(int(ends[row]), int(sample_rates_hz[row]))
        filled["end_s"] = texts
    known = replace(parts, ends=np.where(parts.cut, ends, parts.ends))
    return ends - parts.starts, filled, known


def seconds(samples: int, rate_hz: int) -> str:
    """Return samples as a cell in seconds, from which the samples can be had again."""
    return f"{samples / rate_hz:.7f}".rstrip("0").rstrip(".")


def _channels(texts: Sequence[str] | None, rows: int, where: str) -> Integers:
    if texts is None:
        return np.full(rows, -1, np.int64)
    numbers = ["" if text == MEAN else text for text in texts]
    if "loudest" in numbers:
        raise _bad(
            where,
            numbers.index("loudest"),
            "channel is 'loudest': `fedhubert prepare --channel loudest` writes its number",
        )
    found = _numbers(numbers, CHANNEL, where, MAX_CHANNEL, -1.0)
    return found.astype(np.int64)


def _numbers(
    texts: Sequence[str], name: str, where: str, most: float, absent: float
) -> npt.NDArray[np.float64]:
    """Return cells as numbers from 0 to ``most``; ``absent`` for empty ones."""
    whole = texts.integers() if isinstance(texts, Cells) else None
    if whole is not None and whole.max() <= most:
        return whole.astype(np.float64)
    numbers = np.empty(len(texts), np.float64)
    for row, text in enumerate(texts):
        try:
            value = float(text) if text else absent
        except ValueError:
            value = np.inf
        fits = not text or (0.0 <= value <= most and (name in CUT or value == int(value)))
        if not fits:
            raise _bad(where, row, f"{name} is {text[:80]!r}, not a number from 0 on")
        numbers[row] = value
    return numbers


def _bad(where: str, row: int, reason: str) -> DataError:
    return DataError(f"{where}, line {row + 2}: {reason}", setting="data.manifest")
