"""The list of utterances: a CSV (or fairseq ``.tsv``) held in columns, so that a million rows stay
small."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedhubert.data.audio import Recording, read_audio
from fedhubert.data.manifest_files import REQUIRED, TSV_RATE_HZ, Table, csv_lines, read_table
from fedhubert.data.parts import ARCHIVE, CHANNEL, CUT, Parts, parts_of, with_parts
from fedhubert.errors import DataError, quoted

__all__ = ["REQUIRED", "Manifest"]

MAX_PATH_BYTES = 4096
"""Longest path; what is longer is a damaged or hostile file."""


@dataclass(frozen=True, eq=False)
class Manifest(Table):
    """A table whose ``num_samples`` are of the part of its file that each utterance is."""

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
        table = read_table(path, Path(root).expanduser().absolute() if root else None)
        num_samples, columns = with_parts(
            table.columns, table.num_samples, table.sample_rates_hz, str(path)
        )
        rates = table.sample_rates_hz
        return cls(table.root, table.paths, table.speakers, num_samples, rates, columns)

    def write(self, path: str | Path) -> None:
        """Write a CSV, or fairseq's ``.tsv`` by the ending, atomically.

        Raises:
            DataError: a ``.tsv`` cannot say what this manifest does.
        """
        path = Path(path)
        if path.suffix == ".tsv":
            self._check_tsv(path)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if path.suffix == ".tsv":
                file.write(f"{self.root}\n")
                file.writelines(
                    f"{name}\t{count}\n"
                    for name, count in zip(self.paths, self.num_samples.tolist(), strict=True)
                )
            else:
                csv.writer(file, lineterminator="\n").writerows(csv_lines(self))
        os.replace(temporary, path)

    def _check_tsv(self, path: Path) -> None:
        rates = sorted(set(self.sample_rates_hz.tolist()) - {TSV_RATE_HZ})
        wrong = [name for name in (*CUT, CHANNEL, *ARCHIVE) if name in self.columns]
        if rates:
            wrong.append(f"rates other than 16000 Hz ({', '.join(map(str, rates))} Hz)")
        if wrong:
            raise DataError(
                f"{path}: fairseq's .tsv has no place for {', '.join(wrong)}: write a .csv",
                setting="--out",
            )

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

    @cached_property
    def parts(self) -> Parts:
        """Which part of its file each utterance is."""
        return parts_of(self.columns, self.sample_rates_hz, str(self.root))

    def audio_path(self, row: int) -> Path:
        """Return the file (or the archive) of ``row``; raises :class:`DataError` when its path
        leads out of the root (``..``, absolute, symbolic link)."""
        relative = self._archive(row) or self.paths[row]
        if "\0" in relative or len(os.fsencode(relative)) > MAX_PATH_BYTES:
            raise DataError(
                f"manifest row {row + 1}: {relative[:80]!r}... is no path", setting="data.manifest"
            )
        resolved = Path(os.path.realpath(self.root / relative))
        if not resolved.is_relative_to(self._real_root):
            raise DataError(
                f"manifest row {row + 1}: {quoted(relative)} points outside the audio root "
                f"{self.root}",
                setting="data.manifest",
            )
        return resolved

    @cached_property
    def _real_root(self) -> Path:
        return Path(os.path.realpath(self.root))

    def recording(self, row: int) -> Recording:
        """Return where the audio of ``row`` lies; raises :class:`DataError` as
        :meth:`audio_path`."""
        parts, path = self.parts, self.audio_path(row)
        inside, channel = bool(self._archive(row)), int(parts.channels[row])
        return Recording(
            path,
            int(parts.offsets[row]) if inside else 0,
            int(parts.sizes[row]) if inside else None,
            int(parts.starts[row]),
            int(self.num_samples[row]),
            whole=not parts.cut[row],
            stored_hz=int(self.sample_rates_hz[row]),
            channel=None if channel < 0 else channel,
            name=f"{path}: {self.paths[row]}" if inside else "",
        )

    def _archive(self, row: int) -> str:
        """Return the archive that holds the file of ``row``; '' where none does."""
        return self.columns[ARCHIVE[0]][row] if ARCHIVE[0] in self.columns else ""

    def waveform(
        self, row: int, rate_hz: int = 16000, start: int = 0, num_samples: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the audio of ``row``, or a crop of it, as :func:`read_audio` does: the one way to
        read an utterance."""
        return read_audio(self.recording(row), rate_hz, start, num_samples)

    def file_names(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return which file each of these rows is (a part) of; equal names are one file."""
        return [
            f"{self._archive(row)}\0{os.path.normpath(self.paths[row])}" for row in rows.tolist()
        ]

    def lengths(self, rate_hz: int = 16000) -> npt.NDArray[np.int64]:
        """Return each utterance's samples after resampling to ``rate_hz`` [n]."""
        rates = self.sample_rates_hz.astype(np.int64)
        return -(-self.num_samples * rate_hz // rates)

    def fingerprint(self, rows: Sequence[int] | npt.NDArray[np.int64] | None = None) -> str:
        """Return a hash over path, samples, rate and part of the given rows (all by default)."""
        digest = hashlib.blake2b(digest_size=16)
        about = [self.columns[name] for name in (*CUT, CHANNEL, *ARCHIVE) if name in self.columns]
        for row in range(len(self)) if rows is None else rows:
            part = "".join(f"\0{column[row]}" for column in about)
            digest.update(
                f"{self.paths[row]}\0{self.num_samples[row]}\0{self.sample_rates_hz[row]}{part}\n".encode()
            )
        return digest.hexdigest()
