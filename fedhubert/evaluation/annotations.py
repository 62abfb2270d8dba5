"""What people said about the audio: labels per utterance (a file or a manifest column) and phones
per frame (an alignment)."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedhubert.data.batching import FRAME_SAMPLES, RECEPTIVE_SAMPLES, SAMPLE_RATE_HZ
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.errors import DataError
from fedhubert.models.frames import frames_of

_ALIGNMENT = ("path", "start_sample", "end_sample", "phone")


class Labels:
    """Labels of utterances, by task: ``tasks[name][path]``. No label is an utterance's absence, or
    an empty cell."""

    def __init__(self, tasks: dict[str, dict[str, str]]) -> None:
        self.tasks = tasks

    @classmethod
    def read(cls, path: Path) -> "Labels":
        """Read ``path,task,label`` lines, or a table with a column ``path`` and one column per
        task.

        Raises:
            DataError: no such file, no column ``path``, or an utterance with two labels of one
                task; with file and line.
        """
        tasks: dict[str, dict[str, str]] = {}
        for line, row in read_table(path, "--labels", ("path",)):
            long = "task" in row and "label" in row
            found = (
                {row["task"]: row["label"]}
                if long
                else {name: value for name, value in row.items() if name != "path"}
            )
            for name, label in found.items():
                if label == "":
                    continue
                if tasks.setdefault(name, {}).setdefault(row["path"], label) != label:
                    raise DataError(
                        f"{path}, line {line}: {row['path']} has two labels of {name}",
                        setting="--labels",
                    )
        return cls(tasks)

    def of(self, manifest: Manifest, task: str) -> tuple[Rows, list[str]]:
        """Return the manifest rows that have a label, and their labels: from the file, or from the
        manifest's column of that name.

        Raises:
            DataError: neither has it, or no labelled utterance is in the manifest.
        """
        if task in self.tasks:
            by_path = self.tasks[task]
            values: Sequence[str] = [by_path.get(path, "") for path in manifest.paths]
        elif task in ("speaker", *manifest.columns):
            values = manifest.column(task)
        else:
            known = sorted({*self.tasks, "speaker", *manifest.columns})
            raise DataError(
                f"no labels `{task}` in the labels file or the manifest; there are "
                f"{', '.join(known)}",
                setting="--probe",
            )
        long_enough = frames_of(manifest.lengths(SAMPLE_RATE_HZ)) > 0
        rows = np.array(
            [row for row, value in enumerate(values) if value and long_enough[row]], dtype=np.int64
        )
        if not len(rows):
            raise DataError(
                f"no utterance of the manifest has a label of `{task}`: do the paths agree?",
                setting="--labels",
            )
        return rows, [values[row] for row in rows.tolist()]


class Alignment:
    """Phones over time: per path, segments (first sample, end, phone), samples counted at the
    file's own rate."""

    def __init__(self, segments: dict[str, list[tuple[int, int, str]]]) -> None:
        self.segments = segments

    @classmethod
    def read(cls, path: Path) -> "Alignment":
        """Read ``path,start_sample,end_sample,phone`` lines; the end is the first sample after the
        segment.

        Raises:
            DataError: no such file, a missing column, or segments that end before they start or
                overlap; with file and line.
        """
        segments: dict[str, list[tuple[int, int, str]]] = {}
        for line, row in read_table(path, "--phones", _ALIGNMENT):
            try:
                start, end = int(row["start_sample"]), int(row["end_sample"])
            except ValueError:
                start, end = 0, 0
            if not 0 <= start < end or not row["phone"]:
                raise DataError(
                    f"{path}, line {line}: not a phone from a sample to a later one",
                    setting="--phones",
                )
            segments.setdefault(row["path"], []).append((start, end, row["phone"]))
        for name, listed in segments.items():
            listed.sort()
            if any(before[1] > after[0] for before, after in itertools.pairwise(listed)):
                raise DataError(f"{path}: segments of {name} overlap", setting="--phones")
        return cls(segments)

    def frames(self, manifest: Manifest) -> dict[int, tuple[Rows, list[str]]]:
        """Return row -> (places of its labelled 50-Hz frames, their phones); a frame has the phone
        at its centre, sample 320 t + 200.

        Raises:
            DataError: no aligned utterance is in the manifest.
        """
        found = {}
        lengths = manifest.lengths(SAMPLE_RATE_HZ)
        for row, path in enumerate(manifest.paths):
            if path not in self.segments:
                continue
            segments = self.segments[path]
            centres = (
                np.arange(int(frames_of(lengths[row]))) * FRAME_SAMPLES + RECEPTIVE_SAMPLES // 2
            )
            stored = centres * int(manifest.sample_rates_hz[row]) // SAMPLE_RATE_HZ
            stored += int(manifest.parts.starts[row])
            nearest = np.searchsorted([start for start, _, _ in segments], stored, side="right") - 1
            ends = np.array([end for _, end, _ in segments])
            inside = (nearest >= 0) & (stored < ends[nearest])
            places = np.flatnonzero(inside)
            if len(places):
                found[row] = (places, [segments[number][2] for number in nearest[places].tolist()])
        if not found:
            raise DataError(
                "no aligned utterance is in the manifest: do the paths agree?", setting="--phones"
            )
        return found


def read_table(
    path: Path, flag: str, required: tuple[str, ...], delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each line's number and cells by column; raises :class:`DataError`, naming ``flag``, for
    a file that cannot be read, lacks a required column, or has lines of another number of cells."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            missing = [name for name in required if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)} in the first line", setting=flag
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: another number of fields than the first "
                        "line",
                        setting=flag,
                    )
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", setting=flag) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV in UTF-8: {error}", setting=flag) from None
