"""lhotse's manifests (recordings and supervisions, or cuts; ``.jsonl.gz`` and the like), read by
lhotse itself."""

from collections import Counter
from pathlib import Path
from typing import Any

from fedhubert.data.folders import Candidate, Found
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
    try:
        if cuts is not None:
            items = list(lhotse.CutSet.from_file(cuts))
        else:
            read = lhotse.RecordingSet.from_file(recordings)
            said = lhotse.SupervisionSet.from_file(supervisions) if supervisions else None
            listed = lhotse.CutSet.from_manifests(recordings=read, supervisions=said)
            items = list(listed.trim_to_supervisions(keep_overlapping=False) if said else listed)
    except Exception as error:  # whatever lhotse makes of a file that is none of its own
        raise DataError(
            f"lhotse cannot read {first}: {type(error).__name__}: {error}", setting="--cuts"
        ) from None
    bases = Bases(first.absolute().parent, audio_root)
    candidates, rejected, without = [], list[tuple[str, str]](), Counter[str]()
    for item in items:
        reason = _unusable(item)
        if reason:
            rejected.append((str(item.id), reason))
            continue
        said = item.supervisions[0] if item.supervisions else None
        candidates.append(_candidate(item, said, bases))
        without["speaker"] += said is None or not said.speaker
    remarks = [
        f"warning: {count} of {len(candidates)} have no {what}; theirs is `unknown`"
        for what, count in without.items()
        if count
    ]
    return rooted(candidates, rejected, remarks, first.absolute().parent)


def _unusable(item: Any) -> str:
    """Return why a cut is not a part of one file, or ''."""
    recording = getattr(item, "recording", None)
    if recording is None:
        return f"a {type(item).__name__}, which is not a part of one recording"
    if recording.transforms:
        return "a transformed recording (speed, volume, ...): save its audio first"
    kinds = {source.type for source in recording.sources}
    if kinds != {"file"} or len(recording.sources) != 1:
        return f"{len(recording.sources)} sources ({', '.join(sorted(kinds))}), not one file"
    return ""


def _candidate(item: Any, said: Any, bases: Bases) -> Candidate:
    recording, columns = item.recording, {"utterance": str(said.id if said else item.id)}
    if item.start > 0 or item.end < recording.duration - 1e-4:
        columns |= {"start_s": f"{item.start:.6f}", "end_s": f"{item.end:.6f}"}
    (source,) = recording.sources
    channel = item.channel if isinstance(item.channel, int) else None
    if len(source.channels) > 1 and channel is not None:
        columns[CHANNEL] = str(sorted(source.channels).index(channel))
    if said is not None:
        columns |= {
            name: str(value)
            for name, value in (("language", said.language), ("text", said.text))
            if value
        }
    speaker = str(said.speaker) if said is not None and said.speaker else "unknown"
    return Candidate(bases.find(str(source.source)), speaker, columns)
