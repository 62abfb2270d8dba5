"""What a probe or clusters see of a manifest: one item per utterance, or per drawn frame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import DataError
from fedhubert.evaluation.annotations import Alignment, Labels
from fedhubert.evaluation.encoders import Encoder, Features
from fedhubert.evaluation.features import FeatureReader
from fedhubert.evaluation.segments import Segments
from fedhubert.models.frames import frames_of as num_frames_of
from fedhubert.seeding import generator


@dataclass(frozen=True)
class Annotated:
    """A manifest with what is known of its audio."""

    manifest: Manifest
    labels: Labels = field(default_factory=lambda: Labels({}))
    alignment: Alignment | None = None
    segments: Segments | None = None


@dataclass(frozen=True)
class Items:
    """What a probe sees of one manifest: one item per utterance, or per chosen frame."""

    manifest: Manifest
    rows: Rows
    labels: list[str]
    speakers: list[str]
    chosen: dict[int, Rows] | None = None
    parts: int = 1

    def features(
        self, encoder: Encoder, layers: Sequence[int], cache: DiskCache, tick: Callable[[], None]
    ) -> Features:
        reader = FeatureReader(encoder, layers, self.manifest, cache)
        return (
            reader.pooled(self.rows, tick, self.parts)
            if self.chosen is None
            else reader.frames(self.chosen, tick)
        )

    @property
    def num_utterances(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)


def utterances_of(annotated: Annotated, task: str, most: int, seed: int) -> Items:
    """Draw at most so many utterances that have a label of ``task``."""
    rows, labels = annotated.labels.of(annotated.manifest, task)
    kept = np.sort(_drawn(len(rows), most, seed, "evaluation/utterances"))
    speakers = annotated.manifest.speakers
    return Items(
        annotated.manifest,
        rows[kept],
        [labels[i] for i in kept],
        [speakers[row] for row in rows[kept].tolist()],
    )


def frames_of(
    manifest: Manifest, frames: Mapping[int, tuple[Rows, list[str]]], most: int, seed: int
) -> Items:
    """Draw whole utterances until there are ``most`` frames; of the last one its
    beginning."""
    chosen: dict[int, Rows] = {}
    labels: list[str] = []
    speakers: list[str] = []
    listed = list(frames)
    for place in _drawn(len(listed), len(listed), seed, "evaluation/frames").tolist():
        room = most - len(labels)
        if room <= 0:
            break
        row = listed[place]
        places, names = frames[row]
        chosen[row] = places[:room]
        labels += names[:room]
        speakers += [manifest.speakers[row]] * min(room, len(places))
    return Items(manifest, np.array(list(chosen), dtype=np.int64), labels, speakers, chosen)


def spread(annotated: Annotated, task: str) -> dict[int, tuple[Rows, list[str]]]:
    """Give every frame its utterance's label."""
    rows, labels = annotated.labels.of(annotated.manifest, task)
    counts = num_frames_of(annotated.manifest.lengths()[rows]).tolist()
    return {
        row: (np.arange(count), [label] * count)
        for row, label, count in zip(rows.tolist(), labels, counts, strict=True)
    }


def without_speakers(items: Items, heard: set[str]) -> Items:
    """Leave out what speakers that are scored, too, have said; raises :class:`DataError` when
    nothing is left."""
    kept = [place for place, speaker in enumerate(items.speakers) if speaker not in heard]
    if not kept:
        raise DataError(
            "every speaker of --train-manifest is also in --manifest: probes need other ones",
            setting="--train-manifest",
        )
    return Items(
        items.manifest,
        items.rows[kept],
        [items.labels[i] for i in kept],
        [items.speakers[i] for i in kept],
    )


def _drawn(total: int, most: int, seed: int, purpose: str) -> Rows:
    return generator(seed, purpose).permutation(total)[:most]
