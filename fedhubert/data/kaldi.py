"""A Kaldi data directory: ``wav.scp``, and ``segments``, ``utt2spk`` (or ``spk2utt``), ``text``,
``utt2lang`` and ``reco2file_and_channel`` where they are."""

import re
from pathlib import Path

from fedhubert.data.folders import UNKNOWN, Candidate, Found
from fedhubert.data.lists import text_of
from fedhubert.data.parts import CHANNEL
from fedhubert.data.places import Bases, rooted
from fedhubert.errors import DataError

_CHANNELS = {"A": "0", "B": "1", "1": "0", "2": "1"}
_CHANNELS_OF_SEGMENTS = {"A": "0", "B": "1"}
_ARCHIVED = re.compile(r"\.ark(:\d+)?$|:\d+$")


def scan_kaldi(folder: Path, audio_root: Path | None = None) -> Found:
    """Return the utterances of a data directory: its segments, or whole recordings where there are
    none. Commands (``... |``) are never run, they are left out by name.

    Raises:
        DataError: there is no ``wav.scp``, or a list cannot be read.
    """
    if not (folder / "wav.scp").is_file():
        raise DataError(f"{folder} has no wav.scp: is it a Kaldi data directory?", setting="--root")
    rejected: list[tuple[str, str]] = []
    bases, recordings = Bases(folder, audio_root), {}
    for name, place in _table(folder / "wav.scp").items():
        reason = _unusable(place)
        if reason:
            rejected.append((name, reason))
        else:
            recordings[name] = bases.find(place)
    channels = {
        name: _CHANNELS.get(cells.split()[-1], "")
        for name, cells in _table(folder / "reco2file_and_channel").items()
        if cells
    }
    speakers, texts = _speakers(folder), _table(folder / "text")
    languages = _table(folder / "utt2lang")
    segments = _table(folder / "segments")
    parts = segments or dict.fromkeys(recordings, "")
    candidates, commanded = [], {name for name, _ in rejected}
    for name, cells in parts.items():
        columns = {"utterance": name, "text": texts.get(name, "")}
        columns["language"] = languages.get(name, "")
        recording = name
        if segments:
            recording, *times = cells.split() or [""]
            if len(times) > 2:
                columns[CHANNEL] = _CHANNELS_OF_SEGMENTS.get(times[2], times[2])
            if len(times) < 2:
                rejected.append((name, f"segments: not `recording start end`: {cells!r}"))
                continue
            columns["start_s"] = times[0]
            columns["end_s"] = "" if times[1].startswith("-") else times[1]
        if recording not in recordings:
            if recording not in commanded:
                rejected.append((name, f"wav.scp has no recording {recording}"))
            continue
        if channels.get(recording):
            columns.setdefault(CHANNEL, channels[recording])
        used = {key: value for key, value in columns.items() if value or key == "utterance"}
        candidates.append(Candidate(recordings[recording], speakers.get(name, UNKNOWN), used))
    remarks = []
    nameless = sum(item.columns["utterance"] not in speakers for item in candidates)
    if not speakers:
        remarks.append("warning: no utt2spk or spk2utt: the speaker of all is `unknown`")
    elif nameless:
        remarks.append(
            f"warning: {nameless} of {len(candidates)} utterances are not in utt2spk: their "
            "speaker is `unknown`"
        )
    used_by = {item.path for item in candidates}
    unused = len(set(recordings.values()) - used_by)
    if unused:
        remarks.append(f"{unused} recordings have no segment, and are not in the manifest")
    return rooted(candidates, rejected, remarks, folder)


def _speakers(folder: Path) -> dict[str, str]:
    """Return utterance -> speaker, of whichever of the two lists is there."""
    of_utterances = _table(folder / "utt2spk")
    if of_utterances:
        return of_utterances
    lists = _table(folder / "spk2utt")
    return {name: speaker for speaker, names in lists.items() for name in names.split()}


def _unusable(place: str) -> str:
    if place.endswith("|"):
        return (
            f"a command, and commands of lists are not run ({place[:80]}): write its output to a "
            "file"
        )
    if _ARCHIVED.search(place):
        return "inside a Kaldi archive: copy it out with wav-copy"
    return ""


def _table(path: Path) -> dict[str, str]:
    """Return key -> rest of the line; nothing where there is no such file.

    Raises:
        DataError: it cannot be read, or says two things of one key.
    """
    found: dict[str, str] = {}
    if not path.exists():
        return found
    for number, line in enumerate(text_of(path).split("\n"), 1):
        key, *rest = line.strip().split(maxsplit=1) or [""]
        value = rest[0] if rest else ""
        if key and found.setdefault(key, value) != value:
            raise DataError(
                f"{path}, line {number}: {key} is there already, with something else behind it: "
                "give one of them another name",
                setting="--root",
            )
    return found
