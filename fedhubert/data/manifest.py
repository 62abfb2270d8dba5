"""The list of utterances: a CSV (or fairseq ``.tsv``) held in columns, so that a million rows stay
small."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedhubert.errors import DataError, quoted

REQUIRED = ("path", "speaker", "num_samples", "sample_rate")
MAX_SAMPLES, MAX_RATE_HZ, MAX_PATH_BYTES = 2**40, 2**24, 4096
"""What a row may say; more is a damaged or hostile file."""
# become columns in one call; so few that Python's garbage collector does not look at them
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Manifest:
    """Utterances in columns.

    Attributes:
        root: Folder that the paths start from.
        paths: Relative POSIX paths.
        speakers: Speaker of each utterance.
        num_samples: Samples per channel as stored [n].
        sample_rates_hz: Rate as stored [n].
        columns: All other columns (language, text, ...).
    """

    root: Path
    paths: list[str]
    speakers: list[str]
    num_samples: npt.NDArray[np.int64]
    sample_rates_hz: npt.NDArray[np.int32]
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def read(cls, path: str | Path, root: str | Path | None = None) -> "Manifest":
        """Read a manifest; ``root`` defaults to the CSV's own folder, or the first line of a
        ``.tsv``.

        Raises:
            DataError: no such file, a missing column, a row that does not fit; with file and row.
        """
        path = Path(path).expanduser()
        try:
            with path.open(newline="", encoding="utf-8") as file:
                read = _read_tsv if path.suffix == ".tsv" else _read_csv
                return read(path, file, Path(root).expanduser().absolute() if root else None)
        except OSError as error:
            raise DataError(
                f"cannot read the manifest {path}: {error.strerror}", setting="data.manifest"
            ) from None
        except UnicodeDecodeError:
            raise DataError(f"{path} is not UTF-8 text", setting="data.manifest") from None
        except csv.Error as error:
            raise DataError(f"{path} is not a CSV: {error}", setting="data.manifest") from None

    def write(self, path: str | Path) -> None:
        """Write a CSV, or fairseq's ``.tsv`` by the ending, atomically."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".tsv":
                file.write(f"{self.root}\n")
                file.writelines(
                    f"{name}\t{count}\n"
                    for name, count in zip(self.paths, self.num_samples.tolist(), strict=True)
                )
            else:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([*REQUIRED, *self.columns])
                rows = zip(
                    self.paths,
                    self.speakers,
                    self.num_samples.tolist(),
                    self.sample_rates_hz.tolist(),
                    *self.columns.values(),
                    strict=True,
                )
                writer.writerows(rows)
        os.replace(temporary, path)

    def select(self, indices: Iterable[int]) -> "Manifest":
        """Return the given rows, in the given order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        pick = chosen.tolist()
        return Manifest(
            self.root,
            [self.paths[i] for i in pick],
            [self.speakers[i] for i in pick],
            self.num_samples[chosen],
            self.sample_rates_hz[chosen],
            {name: [values[i] for i in pick] for name, values in self.columns.items()},
        )

    def column(self, name: str) -> list[str]:
        """Return a column by name; raises :class:`DataError` that lists the columns there are."""
        known = {"path": self.paths, "speaker": self.speakers, **self.columns}
        if name not in known:
            raise DataError(
                f"the manifest has no column `{name}`; it has {', '.join(known)}",
                setting="data.partition.column",
            )
        return known[name]

    def audio_path(self, row: int) -> Path:
        """Return the file of ``row``; raises :class:`DataError` when its path leads out of the root
        (``..``, absolute, symbolic link)."""
        relative = self.paths[row]
        if "\0" in relative or len(os.fsencode(relative)) > MAX_PATH_BYTES:
            raise DataError(
                f"manifest row {row + 1}: {relative[:80]!r}... is no path", setting="data.manifest"
            )
        resolved = Path(os.path.realpath(self.root / relative))
        if os.path.isabs(relative) or not resolved.is_relative_to(self._real_root):
            raise DataError(
                f"manifest row {row + 1}: {quoted(relative)} points outside the audio root {self.root}",
                setting="data.manifest",
            )
        return resolved

    @cached_property
    def _real_root(self) -> Path:
        return Path(os.path.realpath(self.root))

    def lengths(self, rate_hz: int = 16000) -> npt.NDArray[np.int64]:
        """Return each utterance's samples after resampling to ``rate_hz`` [n]."""
        rates = self.sample_rates_hz.astype(np.int64)
        return -(-self.num_samples * rate_hz // rates)

    def fingerprint(self, rows: Sequence[int] | npt.NDArray[np.int64] | None = None) -> str:
        """Return a hash over path, samples and rate of the given rows (all by default)."""
        digest = hashlib.blake2b(digest_size=16)
        for row in range(len(self)) if rows is None else rows:
            digest.update(
                f"{self.paths[row]}\0{self.num_samples[row]}\0{self.sample_rates_hz[row]}\n".encode()
            )
        return digest.hexdigest()


def _read_csv(path: Path, file: Iterable[str], root: Path | None) -> Manifest:
    rows = csv.reader(file)
    header = next(rows, [])
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)} in the first line; `fedhubert prepare folder` writes a manifest",
            setting="data.manifest",
        )
    if len(set(header)) < len(header):
        raise DataError(
            f"{path}: a column name occurs twice in the first line", setting="data.manifest"
        )
    table: list[list[str]] = [[] for _ in header]
    width = len(header)
    first = 2
    while block := list(islice(rows, _ROWS_AT_ONCE)):
        if set(map(len, block)) != {width}:
            for number, row in enumerate(block, first):
                if row and len(row) != width:
                    fields = f"{len(row)} fields, the first line has {width}"
                    raise DataError(f"{path}, line {number}: {fields}", setting="data.manifest")
        first += len(block)
        by_column = zip(*filter(None, block), strict=True)
        for column, values in zip(table, by_column, strict=False):  # none where all rows are empty
            column.extend(values)
    columns = dict(zip(header, table, strict=True))
    num_samples = _integers(path, columns.pop("num_samples"), "num_samples", MAX_SAMPLES)
    sample_rates = _integers(path, columns.pop("sample_rate"), "sample_rate", MAX_RATE_HZ)
    return Manifest(
        root or path.absolute().parent,
        columns.pop("path"),
        columns.pop("speaker"),
        num_samples,
        sample_rates.astype(np.int32),
        columns,
    )


def _read_tsv(path: Path, file: Iterable[str], root: Path | None) -> Manifest:
    lines = iter(file)
    stated = next(lines, "").rstrip("\n")
    if not stated or "\t" in stated:
        raise DataError(
            f"{path}: the first line of a .tsv names the audio root", setting="data.manifest"
        )
    paths, counts = [], []
    for number, line in enumerate(lines, start=2):
        fields = line.rstrip("\n").split("\t")
        if fields == [""]:
            continue
        if len(fields) != 2:
            raise DataError(
                f"{path}, line {number}: expected path<TAB>samples", setting="data.manifest"
            )
        paths.append(fields[0])
        counts.append(fields[1])
    num_samples = _integers(path, counts, "samples", MAX_SAMPLES)
    speakers = [name.split("/")[0] if "/" in name else name for name in paths]
    return Manifest(
        root or Path(stated), paths, speakers, num_samples, np.full(len(paths), 16000, np.int32), {}
    )


def _integers(path: Path, values: list[str], name: str, limit: int) -> npt.NDArray[np.int64]:
    try:
        numbers = np.array(values, dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.array([], dtype=np.int64)
    if len(numbers) != len(values) or (
        len(numbers) and (numbers.min() <= 0 or numbers.max() >= limit)
    ):
        line, value = next(
            (
                (line, value)
                for line, value in enumerate(values, start=2)
                if not _whole_number(value, limit)
            ),
            (0, ""),
        )
        raise DataError(
            f"{path}, line {line}: {name} is {value[:80]!r}, not a whole number from 1 to {limit - 1}",
            setting="data.manifest",
        )
    return numbers


def _whole_number(value: str, limit: int) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 20 and 0 < int(value) < limit
