"""From what a corpus has to a manifest of what can be used: every file is listened to before it is
named."""

import filecmp
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedhubert import live
from fedhubert.data.audio import MAX_READ_S, Recording
from fedhubert.data.checked import Checked
from fedhubert.data.checking import Heard, Settings, listen
from fedhubert.data.folders import Candidate, Found
from fedhubert.data.lists import check_out, write_list
from fedhubert.data.manifest import Manifest
from fedhubert.data.parts import ARCHIVE, CHANNEL, CUT, seconds
from fedhubert.data.summary import say, say_how_much, say_rejected
from fedhubert.data.threads import map_in_order
from fedhubert.errors import DataError

MAX_LISTED = 20
_BEYOND_END_S = 0.5
"""A segment may end so much after its file: tools round."""
_SAID_EVERY_S = 30.0

FileKey = tuple[str, str, str]
"""A file: its path, and the first byte and the size of a member of an archive."""


@dataclass(frozen=True)
class Choices:
    """What ``fedhubert prepare`` is asked for beside a corpus.

    Attributes:
        keep_duplicates: Name the same audio as often as it is there.
        briefly: Say no more than how much there is: the audio is known.
    """

    min_seconds: float
    num_workers: int
    settings: Settings = field(default_factory=Settings)
    keep_duplicates: bool = False
    briefly: bool = False


@dataclass
class _Rows:
    """A manifest that grows, and what does not come into it."""

    kept: list[tuple[Candidate, int, int]] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str, str]] = field(default_factory=list)


def write_manifest(out: Path, found: Found, choices: Choices) -> None:
    """Listen to every file, write those that can be used to ``out``; beside it the others with
    reasons (``.rejected.csv``) and what is odd (``.warnings.csv``), in place of earlier lists.

    Raises:
        DataError: no audio was found, none of it can be used, or ``out`` cannot be written.
    """
    check_out(out, choices.settings)
    if not found.candidates and not found.rejected:
        raise DataError(_nothing(found), setting="--root")
    rows = _Rows(rejected=list(found.rejected))
    first: dict[str, FileKey] = {}
    for key, items, result in _listened(out, found, choices):
        if isinstance(result, str):
            rows.rejected += [(_name(key), result)]
            continue
        same = key if choices.keep_duplicates else first.setdefault(result.digest, key)
        if same != key and (choices.settings.whole or _same_bytes(found.root, key, same)):
            rows.rejected.append((_name(key), f"the same audio as {_name(same)}"))
            continue
        rows.warnings += [(_name(key), kind, detail) for kind, detail in result.warnings]
        for item in items:
            _add(rows, item, result, choices)
    write_list(out.with_suffix(".rejected.csv"), ("path", "reason"), rows.rejected)
    write_list(out.with_suffix(".warnings.csv"), ("path", "warning", "detail"), rows.warnings)
    if not choices.briefly:
        say_rejected(out, rows.rejected)
    if not rows.kept:
        for remark in found.remarks:
            print(remark, file=sys.stderr)
        count = len(found.candidates) or len(rows.rejected)
        raise DataError(
            f"none of the {count} audio files below {found.root} can be used (reasons above)",
            setting="--root",
        )
    manifest = _manifest(found.root, rows)
    manifest.write(out)
    Checked.done(out)
    if choices.briefly:
        say_how_much(out, manifest, rows.rejected)
    else:
        say(out, manifest, rows.rejected, rows.warnings, found)


def _nothing(found: Found) -> str:
    passed = "".join(f"; {remark}" for remark in found.remarks)
    return f"no audio (wav, flac, ogg, mp3 and the like) below {found.root}{passed}"


def file_key(item: Candidate) -> FileKey:
    """Return which file a candidate is of."""
    archive, offset, size = (item.columns.get(name, "") for name in ARCHIVE)
    return f"{archive}\0{item.path}" if archive else item.path, offset, size


def _name(key: FileKey) -> str:
    return key[0].rpartition("\0")[2]


def _same_bytes(root: Path, one: FileKey, other: FileKey) -> bool:
    """Whether two files are alike, of which only the ends were heard; not for members of
    archives."""
    if one[1] or other[1]:
        return False
    return filecmp.cmp(root / one[0], root / other[0], shallow=False)


def _listened(
    out: Path, found: Found, choices: Choices
) -> Iterator[tuple[FileKey, list[Candidate], Heard | str]]:
    """Yield each file with its candidates and what was heard, or why it cannot be used."""
    files: dict[FileKey, list[Candidate]] = defaultdict(list)
    for item in found.candidates:
        files[file_key(item)].append(item)
    keys, checked = list(files), Checked(out, choices.settings)
    tsv = out.suffix == ".tsv"

    def hear(key: FileKey) -> Heard | str:
        reason = _unwritable(key[0].replace("\0", "/"), tsv=tsv)
        return reason or _hear(found.root, files[key][0], choices, checked)

    console = live.terminal()
    results = map_in_order(hear, keys, choices.num_workers, 4 * choices.num_workers)
    said, hours = time.monotonic(), 0.0
    live.doing("listening" if choices.settings.whole else "listening to the ends")
    live.counting(len(keys), "files")
    decoders = out.with_suffix(".decoders.log")
    decoders.unlink(missing_ok=True)
    with checked, live.libraries_write_to(decoders):
        for number, (key, result) in enumerate(zip(keys, results, strict=True), 1):
            hours += 0 if isinstance(result, str) else result.num_samples / result.rate_hz / 3600
            live.done()
            if not console.is_terminal and time.monotonic() - said > _SAID_EVERY_S:
                said = time.monotonic()
                print(
                    f"listened to {number} of {len(keys)} files, {hours:.1f} h", file=console.file
                )
            yield key, files[key], result
    live.hide()


def _unwritable(name: str, *, tsv: bool) -> str:
    """Return why a manifest cannot name a file, or ''."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "its name is not UTF-8: rename it"
    if "\r" in name or "\n" in name or "\0" in name or (tsv and "\t" in name):
        return "its name has a line break or a tab in it: rename it"
    return ""


def _hear(root: Path, item: Candidate, choices: Choices, checked: Checked) -> Heard | str:
    places = {name: [item.columns[name]] for name in ARCHIVE if name in item.columns}
    one = Manifest(root, [item.path], [""], np.ones(1, np.int64), np.ones(1, np.int32), places)
    named = str(root / item.path)
    try:
        whole = one.recording(0)
        recording = Recording(whole.path, whole.offset, whole.num_bytes, name=whole.name)
        named = str(recording)
        about = os.stat(recording.path) if recording.path.exists() else None
        stamp = f"{about.st_size}-{about.st_mtime_ns}" if about else ""
        known = checked.get(file_key(item), stamp)
        if known is not None:
            return known
        heard = listen(recording, choices.settings)
        checked.put(file_key(item), stamp, heard)
        return heard
    except DataError as error:
        return str(error).removeprefix(f"{named}: ").removeprefix("manifest row 1: ")
    except OSError as error:
        return error.strerror or str(error)


def _add(rows: _Rows, item: Candidate, heard: Heard, choices: Choices) -> None:
    """Add a candidate's utterances: one, or several where its file is cut."""
    rate = heard.rate_hz
    columns = dict(item.columns)
    if heard.channel >= 0 and not columns.get(CHANNEL):
        columns[CHANNEL] = str(heard.channel)
    elif columns.get(CHANNEL, "0").isdigit() and int(columns.get(CHANNEL, "0")) >= heard.channels:
        reason = f"{heard.channels} channels, so there is no channel {columns[CHANNEL]}"
        rows.rejected.append((item.path, f"{reason} (counted from 0)"))
        return
    given = [columns.get(name, "") for name in CUT]
    name = f"{item.path} from {given[0] or 0} s on" if any(given) else item.path
    try:
        begin = round(float(given[0] or 0) * rate)
        end = round(float(given[1]) * rate) if given[1] else heard.num_samples
    except (ValueError, OverflowError):  # infinite ones
        rows.rejected.append((name, f"no times: {given[0]!r} to {given[1]!r}"))
        return
    if heard.num_samples < end <= heard.num_samples + _BEYOND_END_S * rate:
        end = heard.num_samples
    if any(given) and (not given[1] or end == heard.num_samples):
        columns["end_s"] = seconds(end, rate)
    if not 0 <= begin < end <= heard.num_samples:
        length = heard.num_samples / rate
        rows.rejected.append(
            (
                name,
                f"from {begin / rate:.2f} to {end / rate:.2f} s, and the file has {length:.2f} s",
            )
        )
        return
    edges = [begin, *(cut for cut in heard.cuts if not any(given)), end]
    for first, last in pairwise(edges):
        length = (last - first) / rate
        if length < choices.min_seconds:
            rows.rejected.append(
                (name, f"too short: {length:.2f} s, at least {choices.min_seconds} s wanted")
            )
        elif length > MAX_READ_S:
            rows.rejected.append((name, f"{length:.0f} s in one piece, --cut 15 cuts it"))
        else:
            part = columns
            if len(edges) > 2:
                part = {**columns, CUT[0]: seconds(first, rate), CUT[1]: seconds(last, rate)}
                if "text" in part:  # it is that of the whole
                    part["text"] = ""
            rows.kept.append((Candidate(item.path, item.speaker, part), last - first, rate))


def cell(text: str) -> str:
    """Return text as a manifest's cell: on one line, and in UTF-8."""
    if text.isprintable():
        return text
    return " ".join(text.replace("\0", " ").encode("utf-8", "replace").decode().splitlines())


def _manifest(root: Path, rows: _Rows) -> Manifest:
    items = [item for item, _, _ in rows.kept]
    used = {name for item in items for name, value in item.columns.items() if value}
    special = {*CUT, CHANNEL, *ARCHIVE}
    columns = sorted({name for item in items for name in item.columns} - (special - used))
    return Manifest(
        root,
        [item.path for item in items],
        [cell(item.speaker) for item in items],
        np.array([count for _, count, _ in rows.kept], dtype=np.int64),
        np.array([rate for _, _, rate in rows.kept], dtype=np.int32),
        {name: [cell(item.columns.get(name, "")) for item in items] for name in columns},
    )
