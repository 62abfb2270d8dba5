"""Manifests on disk: a CSV, or fairseq's ``.tsv``, with the marks and line ends that people's tools
leave."""

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from fedhubert.data.audio import MAX_SAMPLES, audio_info
from fedhubert.data.cells import Cells, first_middle_last
from fedhubert.data.parts import ARCHIVE, CHANNEL, CUT, REQUIRED
from fedhubert.data.strangers import mistaken_for_manifest
from fedhubert.errors import DataError

MAX_RATE_HZ = 2**24
"""What a row may say; more is a damaged or hostile file."""
TSV_RATE_HZ = 16000
"""The rate that fairseq's form, which names none, is of."""
# become columns in one call; so few that Python's garbage collector does not look at them
_ROWS_AT_ONCE = 64
# from here on a column is packed, so many rows at a time
_PACKED_ROWS = 2**16
_NUMBERS = {"num_samples": MAX_SAMPLES, "sample_rate": MAX_RATE_HZ}
_DELIMITERS = ",;\t|"
_KNOWN = {*REQUIRED, *CUT, CHANNEL, *ARCHIVE}
_BEFORE_HEADER = ("", "sep=", "sep=,", "sep=;", "sep=|")
"""Lines that spreadsheets put before the columns' names."""


@dataclass(frozen=True, eq=False)
class Table:
    """Utterances in columns, as a manifest's file has them.

    Attributes:
        root: Folder that the paths start from.
        paths: POSIX paths, relative or absolute inside the root; of a file in an archive its name
            there.
        speakers: Speaker of each utterance.
        num_samples: Samples per channel as stored [n].
        sample_rates_hz: Rate as stored [n].
        columns: All other columns: language, text, ..., and those of
            :mod:`fedhubert.data.parts`.
    """

    root: Path
    paths: Sequence[str]
    speakers: Sequence[str]
    num_samples: npt.NDArray[np.int64]
    sample_rates_hz: npt.NDArray[np.int32]
    columns: Mapping[str, Sequence[str]]


def read_table(path: Path, root: Path | None) -> Table:
    """Read a manifest's file.

    Args:
        root: None: the CSV's own folder, or the first line of a ``.tsv``.

    Raises:
        DataError: no such file, a missing column, a row that does not fit; with file and row.
    """
    try:
        # utf-8-sig: spreadsheets put a byte order mark first
        with path.open(newline="", encoding="utf-8-sig") as file:
            before, first = _first_line(file)
            header = _Header.of(first)
            # tab-separated tables have that ending, too
            if path.suffix != ".tsv" or not header.missing:
                return _read_csv(path, header, before + 1, file, root)
            return _read_tsv(path, first, file, root)
    except OSError as error:
        raise DataError(
            f"cannot read the manifest {path}: {error.strerror}", setting="data.manifest"
        ) from None
    except UnicodeDecodeError:
        what = mistaken_for_manifest(path)
        raise DataError(
            f"{path} is not UTF-8 text: {what if 'this is' in what else 'save it as UTF-8'}",
            setting="data.manifest",
        ) from None
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV: {error}", setting="data.manifest") from None


def _first_line(file: TextIO) -> tuple[int, str]:
    """Return how many lines come before the first that says something, and that line."""
    number = 0
    for line in iter(file.readline, ""):
        if line.strip().lower() not in _BEFORE_HEADER:
            return number, line
        number += 1
    return number, ""


@dataclass(frozen=True)
class _Header:
    """The columns' names, and how they are set apart."""

    names: list[str]
    delimiter: str
    spaced: bool

    @classmethod
    def of(cls, line: str) -> "_Header":
        """Read a first line: names of ours in any case, with or without spaces around them."""
        delimiter = max(_DELIMITERS, key=line.count)
        found = next(csv.reader([line], delimiter=delimiter), [])
        spaced = any(name.startswith(" ") for name in found[1:])
        found = next(csv.reader([line], delimiter=delimiter, skipinitialspace=spaced), [])
        names = [name.strip() for name in found]
        ours = [name.lower() if name.lower() in _KNOWN else name for name in names]
        return cls(ours, delimiter, spaced)

    @property
    def missing(self) -> list[str]:
        return [name for name in REQUIRED if name not in self.names]


def _read_csv(path: Path, header: _Header, above: int, file: TextIO, root: Path | None) -> Table:
    """Read the lines that follow the header, which is line ``above``."""
    if header.missing:
        raise DataError(
            f"{path}: no column {', '.join(header.missing)} in the first line; "
            f"{mistaken_for_manifest(path, header.names)}",
            setting="data.manifest",
        )
    names = header.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{path}: the column {twice} occurs twice in the first line: rename one, or take it "
            "out",
            setting="data.manifest",
        )
    rows = csv.reader(file, delimiter=header.delimiter, skipinitialspace=header.spaced)
    table = [_Column(path, name, above + 1) for name in names]
    width = len(names)
    first = above + 1
    while block := list(islice(rows, _ROWS_AT_ONCE)):
        if set(map(len, block)) != {width}:
            for number, row in enumerate(block, first):
                if row and len(row) != width:
                    fields = f"{len(row)} fields, the first line has {width}"
                    raise DataError(f"{path}, line {number}: {fields}", setting="data.manifest")
        first += len(block)
        by_column = zip(*filter(any, block), strict=True)
        for column, values in zip(table, by_column, strict=False):  # none where all rows are empty
            column.extend(values)
    columns = dict(zip(names, table, strict=True))
    texts = {name: column.texts() for name, column in columns.items() if name not in _NUMBERS}
    num_samples, sample_rates = (columns[name].numbers() for name in _NUMBERS)
    return Table(
        root or path.absolute().parent,
        texts.pop("path"),
        texts.pop("speaker"),
        num_samples,
        sample_rates.astype(np.int32),
        texts,
    )


class _Column:
    """A column that is being read, its first cell in line ``first``: a list of its cells while they
    are few; of many, numbers or packed texts."""

    def __init__(self, path: Path, name: str, first: int) -> None:
        self._path, self._name, self._line = path, name, first
        self._cells: list[str] = []
        self._numbers: list[npt.NDArray[np.int64]] = []
        self._texts: list[Cells] = []

    def extend(self, cells: Iterable[str]) -> None:
        self._cells.extend(cells)
        if len(self._cells) >= _PACKED_ROWS:
            self._pack()

    def _pack(self) -> None:
        cells, self._cells = self._cells, []
        if self._name in _NUMBERS:
            limit = _NUMBERS[self._name]
            self._numbers.append(_integers(self._path, cells, self._name, limit, self._line))
        else:
            self._check(cells)
            self._texts.append(Cells.of(cells))
        self._line += len(cells)

    def _check(self, cells: list[str]) -> None:
        if self._name == "path" and "" in cells:
            line = self._line + cells.index("")
            raise DataError(f"{self._path}, line {line}: no path", setting="data.manifest")

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the cells as whole numbers; raises :class:`DataError`."""
        self._pack()
        return np.concatenate(self._numbers)

    def texts(self) -> Sequence[str]:
        """Return the cells; raises :class:`DataError` for a path that is empty."""
        if not self._texts:
            self._check(self._cells)
            return self._cells
        self._pack()
        return Cells.joined(self._texts)


def _read_tsv(path: Path, first: str, lines: TextIO, root: Path | None) -> Table:
    stated = first.strip()
    if not stated or "\t" in stated:
        raise DataError(
            f"{path}: the first line of a .tsv names the audio root; "
            f"{mistaken_for_manifest(path, stated.split(chr(9)))}",
            setting="data.manifest",
        )
    paths, counts = [], []
    for number, line in enumerate(lines, start=2):
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        if len(fields) != 2:
            raise DataError(
                f"{path}, line {number}: expected path<TAB>samples", setting="data.manifest"
            )
        paths.append(fields[0])
        counts.append(fields[1])
    num_samples = _integers(path, counts, "samples", MAX_SAMPLES, 2)
    start = root or Path(stated).expanduser()
    rates = np.full(len(paths), _one_rate(path, start, paths), np.int32)
    return Table(start, paths, _first_folders(paths), num_samples, rates, {})


def _one_rate(path: Path, root: Path, paths: list[str]) -> int:
    """Return the rate of a ``.tsv``'s audio, which its lines do not tell: that of its first, middle
    and last file (each is held against it when it is read)."""
    found = {}
    for row in first_middle_last(len(paths)):
        try:
            found[audio_info(root / paths[row])[1]] = paths[row]
        except (DataError, ValueError):  # said by name when it is read
            continue
    if len(found) > 1:
        each = ", ".join(f"{name} {rate_hz} Hz" for rate_hz, name in sorted(found.items()))
        raise DataError(
            f"{path}: audio of several rates ({each}), and a .tsv has no column for them: "
            "`fedhubert prepare folder --out M.csv` writes a manifest that has",
            setting="data.manifest",
        )
    return next(iter(found), TSV_RATE_HZ)


def _first_folders(paths: list[str]) -> list[str]:
    """Return each path's first folder, its speaker in many corpora; of absolute paths the first
    that is not common to all."""
    folders = {os.path.dirname(name) for name in paths if name.startswith("/")}
    common = os.path.commonpath(folders).rstrip("/") + "/" if folders else ""
    names = [name.removeprefix(common) if name.startswith("/") else name for name in paths]
    return [name.split("/")[0] if "/" in name else name for name in names]


def _integers(
    path: Path, values: list[str], name: str, limit: int, first: int
) -> npt.NDArray[np.int64]:
    """Return cells, the first of them in line ``first``, as whole numbers; 16000.0, as tables with
    a gap are written, is one."""
    numbers = np.zeros(1, np.int64)
    try:
        numbers = np.array(values, dtype=np.int64)
    except OverflowError:
        pass
    except ValueError:
        with contextlib.suppress(ValueError), np.errstate(invalid="ignore"):
            exact = np.array(values, dtype=np.float64)
            if (exact == np.rint(exact)).all():
                numbers = exact.astype(np.int64)
    if len(numbers) and (numbers.min() <= 0 or numbers.max() >= limit):
        line, value = next(
            (
                (line, value)
                for line, value in enumerate(values, start=first)
                if not _whole_number(value, limit)
            ),
            (0, ""),
        )
        raise DataError(
            f"{path}, line {line}: {name} is {value[:80]!r}, not a whole number from 1 to "
            f"{limit - 1}; `fedhubert prepare` writes it",
            setting="data.manifest",
        )
    return numbers


def _whole_number(value: str, limit: int) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return number.is_integer() and 0 < number < limit


def csv_lines(table: Table) -> Iterator[list[str | int]]:
    """Yield the fields of a CSV's lines, the first with the columns' names."""
    yield [*REQUIRED, *table.columns]
    yield from map(
        list,
        zip(
            table.paths,
            table.speakers,
            table.num_samples.tolist(),
            table.sample_rates_hz.tolist(),
            *table.columns.values(),
            strict=True,
        ),
    )
