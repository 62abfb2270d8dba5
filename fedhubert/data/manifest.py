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
from fedhubert.data.cells import AT_ONCE, picked
from fedhubert.data.manifest_files import TSV_RATE_HZ, Table, csv_lines, read_table
from fedhubert.data.parts import ARCHIVE, CHANNEL, CUT, REQUIRED, Parts, parts_of, with_parts
from fedhubert.errors import DataError, quoted

__all__ = ["REQUIRED", "Manifest"]

MAX_PATH_BYTES = 4096
"""Longest path; what is longer is a damaged or hostile file."""


@dataclass(frozen=True, eq=False)
class Manifest(Table):
    """A table whose ``num_samples`` are of the part of its file that each utterance is.

    ``known_parts``: what the columns say of that, where they have been read already (see
    :attr:`parts`).
    """

    known_parts: Parts | None = None

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
        num_samples, columns, parts = with_parts(
            table.columns, table.num_samples, table.sample_rates_hz, str(path)
        )
        rates = table.sample_rates_hz
        return cls(table.root, table.paths, table.speakers, num_samples, rates, columns, parts)

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
        return Manifest(
            self.root,
            picked(self.paths, chosen),
            picked(self.speakers, chosen),
            self.num_samples[chosen],
            self.sample_rates_hz[chosen],
            {name: picked(values, chosen) for name, values in self.columns.items()},
        )

    def column(self, name: str) -> Sequence[str]:
        """Return a column by name; raises :class:`DataError` that lists the columns there are."""
        known: dict[str, Sequence[str]] = {"path": self.paths, "speaker": self.speakers}
        known |= self.columns
        if name not in known:
            raise DataError(
                f"the manifest has no column `{name}`; it has {', '.join(known)}",
                setting="data.partition.column",
            )
        return known[name]

    @cached_property
    def parts(self) -> Parts:
        """Which part of its file each utterance is."""
        if self.known_parts is not None:
            return self.known_parts
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
        paths = map(os.path.normpath, picked(self.paths, rows))
        if ARCHIVE[0] not in self.columns:
            return [f"\0{path}" for path in paths]
        archives = picked(self.columns[ARCHIVE[0]], rows)
        return [f"{archive}\0{path}" for archive, path in zip(archives, paths, strict=True)]

    def lengths(self, rate_hz: int = 16000) -> npt.NDArray[np.int64]:
        """Return each utterance's samples after resampling to ``rate_hz`` [n], not to be changed:
        every client of a process asks for them."""
        if rate_hz not in self._lengths:
            found = -(-self.num_samples * rate_hz // self.sample_rates_hz.astype(np.int64))
            found.flags.writeable = False
            self._lengths[rate_hz] = found
        return self._lengths[rate_hz]

    @cached_property
    def _lengths(self) -> dict[int, npt.NDArray[np.int64]]:
        return {}

    def fingerprint(self, rows: Sequence[int] | npt.NDArray[np.int64] | None = None) -> str:
        """Return a hash over path, samples, rate and part of the given rows (all by default)."""
        digest = hashlib.blake2b(digest_size=16)
        about = [self.columns[name] for name in (*CUT, CHANNEL, *ARCHIVE) if name in self.columns]
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        for first in range(0, len(chosen), AT_ONCE):
            some = chosen[first : first + AT_ONCE]
            numbers = [self.num_samples[some].tolist(), self.sample_rates_hz[some].tolist()]
            texts = [picked(column, some) for column in (self.paths, *about)]
            lines = zip(texts[0], *numbers, *texts[1:], strict=True)
            digest.update("".join("\0".join(map(str, line)) + "\n" for line in lines).encode())
        return digest.hexdigest()
