"""lhotse's manifests (recordings and supervisions, or cuts; ``.jsonl.gz`` and the like), read by
lhotse itself."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhubert.data.folders import UNKNOWN, Candidate, Found
from fedhubert.data.parts import CHANNEL
from fedhubert.data.places import Bases, rooted
from fedhubert.errors import DataError


def scan_lhotse(
    recordings: Path | None,
    supervisions: Path | None,
    cuts: Path | None,
    audio_root: Path | None = None,
) -> Found:
    """Return the supervised parts of recordings, or the cuts; whole recordings where there are no
    supervisions.

    Raises:
        DataError: lhotse is not installed, neither or both forms are given, or one cannot be read.
    """
    if (recordings is None) == (cuts is None):
        raise DataError("give either --recordings (and --supervisions) or --cuts", setting="--cuts")
    try:
        import lhotse
    except ImportError:
        raise DataError(
            "lhotse is not installed: pip install 'fedhubert[lhotse]'", setting="--cuts"
        ) from None
    first = cuts or recordings
    assert first is not None
    bases, rejected = Bases(first.absolute().parent, audio_root), list[tuple[str, str]]()
    try:
        if cuts is not None:
            parts = [_of_cut(cut) for cut in lhotse.CutSet.from_file(cuts)]
        else:
            read = {each.id: each for each in lhotse.RecordingSet.from_file(recordings)}
            if supervisions is None:
                parts = [_Part(name, each) for name, each in read.items()]
            else:
                said = lhotse.SupervisionSet.from_file(supervisions)
                parts = [_of_supervision(each, read.get(each.recording_id)) for each in said]
    except Exception as error:  # whatever lhotse makes of a file that is none of its own
        raise DataError(
            f"lhotse cannot read {first}: {type(error).__name__}: {error}", setting="--cuts"
        ) from None
    candidates, without = [], Counter[str]()
    for part in parts:
        reason = _unusable(part)
        if reason:
            rejected.append((part.name, reason))
            continue
        candidates.append(_candidate(part, bases))
        without["speaker"] += part.said is None or not part.said.speaker
    remarks = [
        f"warning: {count} of {len(candidates)} have no {what}; theirs is `unknown`"
        for what, count in without.items()
        if count
    ]
    return rooted(candidates, rejected, remarks, first.absolute().parent)


@dataclass(frozen=True)
class _Part:
    """What is to be an utterance: a recording of lhotse's, or a part of one, and what is said of
    it."""

    name: str
    recording: Any
    start_s: float = 0.0
    end_s: float | None = None
    channels: Any = None
    said: Any = None


def _of_cut(cut: Any) -> _Part:
    said = cut.supervisions[0] if getattr(cut, "supervisions", None) else None
    recording = getattr(cut, "recording", None)
    if recording is None:
        return _Part(str(cut.id), None)
    channels = cut.channel if said is None else said.channel
    name = str(said.id if said else cut.id)
    return _Part(name, recording, cut.start, cut.end, channels, said)


def _of_supervision(said: Any, recording: Any) -> _Part:
    return _Part(str(said.id), recording, said.start, said.end, said.channel, said)


def _unusable(part: _Part) -> str:
    """Return why something is not a part of one file, or ''."""
    recording = part.recording
    if recording is None:
        return "not a part of one recording, or of one that is not in the list"
    if recording.transforms:
        return "a transformed recording (speed, volume, ...): save its audio first"
    kinds = {source.type for source in recording.sources}
    if kinds != {"file"} or len(recording.sources) != 1:
        return f"{len(recording.sources)} sources ({', '.join(sorted(kinds))}), not one file"
    return ""


def _candidate(part: _Part, bases: Bases) -> Candidate:
    recording, said, columns = part.recording, part.said, {"utterance": part.name}
    end_s = recording.duration if part.end_s is None else part.end_s
    if part.start_s != 0 or abs(end_s - recording.duration) > 1e-4:
        columns |= {"start_s": f"{part.start_s:.6f}", "end_s": f"{end_s:.6f}"}
    (source,) = recording.sources
    if len(source.channels) > 1 and isinstance(part.channels, int):
        columns[CHANNEL] = str(sorted(source.channels).index(part.channels))
    if said is not None:
        columns |= {
            name: str(value)
            for name, value in (("language", said.language), ("text", said.text))
            if value
        }
    speaker = str(said.speaker) if said is not None and said.speaker else UNKNOWN
    return Candidate(bases.find(str(source.source)), speaker, columns)
