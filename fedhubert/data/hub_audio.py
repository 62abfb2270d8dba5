"""HuggingFace's datasets on disk: an ``audiofolder``, or parquet files with an ``Audio`` column.

Read without ``datasets``, which since version 4 wants torchcodec and FFmpeg's libraries to name a
file: an ``audiofolder`` is a table of file names, and parquet is read by pyarrow.
"""

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedhubert.data.folders import UNKNOWN, Candidate, Found, walk
from fedhubert.data.lists import text_of
from fedhubert.data.parts import ARCHIVE
from fedhubert.data.strangers import about_audio
from fedhubert.errors import DataError

SHARD_BYTES = 2**30
_SPEAKER = ("speaker_id", "speaker", "client_id", "spk_id", "spk")
_KEPT = {"language": "language", "locale": "language", "lang": "language"}
_KEPT |= {"text": "text", "transcription": "text", "sentence": "text"}
_FILE = ("file_name", "audio_file_name")
_TABLES = ("metadata.csv", "metadata.jsonl")


def scan_huggingface(root: Path, out: Path, speaker_column: str | None = None) -> Found:
    """Return the rows of a dataset on disk.

    Audio that lies in parquet files is written to tar files in ``OUT.audio``, as it is: parquet
    cannot be read by bytes.

    Args:
        root: A folder, or a parquet file.
        speaker_column: None: the first of speaker_id, speaker, client_id, spk_id.

    Raises:
        DataError: pyarrow is not installed, or there is no column of audio.
    """
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    if not files:
        _check_no_arrow(root)
        return _folder(root, speaker_column)
    folder = out.with_name(f"{out.stem}.audio")
    found, shards = Found(folder.parent), _Shards(folder)
    for number, (audio, row) in enumerate(each for file in files for each in _rows(file)):
        speaker, columns = _described(row, speaker_column)
        content, path = audio.get("bytes"), audio.get("path")
        name = f"{number:08d}{Path(path).suffix if path else '.wav'}"
        if content is None:
            reason = "a path without bytes: export the dataset with its audio inside"
            found.rejected.append((str(path or name), reason))
            continue
        columns |= dict(zip(ARCHIVE, shards.add(name, content), strict=True))
        found.candidates.append(Candidate(name, speaker, columns))
    shards.close()
    if shards.count:
        found.remarks.append(f"the audio was written to {shards.count} tar files in {folder}")
    return _named(found)


def _check_no_arrow(root: Path) -> None:
    if any(root.glob("*.arrow")) or any(root.glob("*/*.arrow")):
        raise DataError(
            f"{root} is what save_to_disk of `datasets` writes: "
            "`load_from_disk(DIR).to_parquet(FILE)` writes what is read (of each split)",
            setting="--root",
        )


def _named(found: Found) -> Found:
    unknown = sum(item.speaker == UNKNOWN for item in found.candidates)
    if unknown:
        found.remarks.append(
            f"warning: {unknown} of {len(found.candidates)} rows name no speaker "
            "(--speaker-column): theirs is `unknown`"
        )
    return found


def _folder(root: Path, speaker_column: str | None) -> Found:
    """Return an ``audiofolder``: its files, described by the tables beside them."""
    seen, rows = walk(root), dict[str, Mapping[str, Any]]()
    for table in sorted(path for name in _TABLES for path in root.rglob(name)):
        for row in _table(table):
            name = next((row[each] for each in _FILE if row.get(each)), "")
            if name:
                rows[os.path.relpath(table.parent / str(name), root)] = row
    found = Found(root, rejected=seen.rejected, remarks=seen.remarks())
    for path in seen.paths:
        found.candidates.append(Candidate(path, *_described(rows.get(path, {}), speaker_column)))
    listed = set(rows) - set(seen.paths)
    found.rejected += [(path, "in the table, but not in the folder") for path in sorted(listed)]
    return _named(found)


def _table(path: Path) -> list[Mapping[str, Any]]:
    text, rows = text_of(path), list[Mapping[str, Any]]()
    if path.suffix == ".csv":
        try:
            rows += csv.DictReader(io.StringIO(text, newline=""))
        except csv.Error as error:
            raise DataError(f"cannot read {path}: {error}", setting="--root") from None
    else:
        lines = enumerate(text.split("\n"), 1)
        rows += [_object(path, number, line) for number, line in lines if line.strip()]
    if rows and not any(name in row for row in rows for name in _FILE):
        raise DataError(
            f"{path} has no column {_FILE[0]}, which says whose its rows are; it has "
            f"{', '.join(map(str, rows[0]))}",
            setting="--root",
        )
    return rows


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        found = str(error)
    if not isinstance(found, dict):
        reason = found if isinstance(found, str) else "no object of names and values"
        raise DataError(f"{path}, line {number}: {reason}", setting="--root")
    return found


def _rows(file: Path) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (audio, other columns) of a parquet file's rows; audio is ``{bytes, path}``."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            "pyarrow is not installed: pip install 'fedhubert[huggingface]'", setting="--root"
        ) from None
    try:
        table = parquet.ParquetFile(file)
        fields = {field.name: field.type for field in table.schema_arrow}
        audio = [
            name
            for name, kind in fields.items()
            if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        ]
        if not audio:
            have = ", ".join(fields)
            raise DataError(f"{file} has no column of audio (there are {have})", setting="--root")
        wanted = [audio[0], *(name for name in fields if name not in audio)]
        for batch in table.iter_batches(batch_size=64, columns=wanted):
            for row in batch.to_pylist():
                yield row.pop(audio[0]) or {}, row
    except (OSError, pyarrow.ArrowException) as error:
        reason = about_audio(file) or error
        raise DataError(f"cannot read {file}: {reason}", setting="--root") from None


def _described(row: Mapping[str, Any], speaker_column: str | None) -> tuple[str, dict[str, str]]:
    names = (speaker_column,) if speaker_column else _SPEAKER
    speaker = next((str(row[name]) for name in names if row.get(name) not in (None, "")), UNKNOWN)
    kept = {ours: str(row[theirs]) for theirs, ours in _KEPT.items() if row.get(theirs)}
    return speaker, kept


class _Shards:
    """Tar files that are begun anew at a size."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.count = folder, 0
        self._file: tarfile.TarFile | None = None

    def add(self, name: str, content: bytes) -> tuple[str, str, str]:
        """Write a member; return its archive, first byte and size."""
        if self._file is None or self._file.offset > SHARD_BYTES:
            self.close()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tarfile.open(self._folder / f"{self.count:05d}.tar", "w")  # noqa: SIM115
            self.count += 1
        about = tarfile.TarInfo(name)
        about.size = len(content)
        begin = self._file.offset + len(about.tobuf())
        self._file.addfile(about, io.BytesIO(content))
        archive = f"{self._folder.name}/{self.count - 1:05d}.tar"
        return archive, str(begin), str(len(content))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
