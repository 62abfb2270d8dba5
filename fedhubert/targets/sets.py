"""Several kinds of features side by side, one set of pseudo-labels each: parts of MFCC as they are,
on the scale of speech, or standardised per speaker.

A frame's columns are those of all sets, one after the other, so that one pass over the audio gives
all of them, and a sample for k-means has the same frames of each, in the same groups.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedhubert.config import TargetsConfig
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.data.unreadable import LeftOut
from fedhubert.seeding import generator
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.mfcc import (
    DROPPED,
    FEATURE_RATE_HZ,
    MFCC,
    SAMPLE_RATE_HZ,
    Features,
    Piece,
    num_feature_frames,
)

SPEAKER_FRAMES = 12_000
"""Frames of a speaker, two minutes, that its mean and variance are of."""

_PARTS = {"mfcc": slice(0, 39), "static": slice(0, 13), "deltas": slice(13, 39)}
_VERSION = 1
"""Of what the kinds are: labels that an earlier one gave are not found again."""

SPEECH_STD: Features = np.array(
    [
        *(16.0, 23.0, 22.0, 21.0, 19.0, 18.0, 21.0, 20.0, 18.0, 15.0, 16.0, 16.0, 14.0),
        *(2.4, 3.7, 3.3, 3.3, 3.6, 3.6, 3.8, 3.6, 3.7, 3.3, 3.2, 3.2, 2.9),
        *(0.9, 1.4, 1.3, 1.3, 1.4, 1.5, 1.5, 1.5, 1.6, 1.4, 1.4, 1.4, 1.2),
    ],
    np.float32,
)
"""Standard deviations of the 39 numbers over speech of many speakers, in two digits.

k-means does not see where the origin is, so these are all that a common standardisation takes. They
differ little between corpora (by a tenth where it matters: ``tests/targets/test_sets.py``), so that
a constant does: nothing has to be asked of the sites, and who takes part changes no label."""
_LEAST = 0.05
"""Of :data:`SPEECH_STD`: what varies less, in digital silence say, is not blown up."""


class SpeakerScales:
    """Mean and standard deviation of each speaker's MFCC, of a sample of one client's audio. They
    stay where they are made.

    Args:
        rows: Of the client. A manifest without speakers makes one of it.
    """

    def __init__(self, manifest: Manifest, rows: Rows, left_out: LeftOut | None = None) -> None:
        self._manifest, self._left_out = manifest, left_out
        self._rows: dict[str, list[int]] = {}
        for row in rows.tolist():
            self._rows.setdefault(manifest.speakers[row], []).append(row)
        self._found: dict[str, tuple[Features, Features]] = {}

    @cached_property
    def key(self) -> str:
        """Who spoke what, as 16 hexadecimal digits: for the names of files on the site."""
        digest = hashlib.blake2b(digest_size=8)
        for rows in self._rows.values():
            digest.update(f"{self._manifest.fingerprint(rows)}\n".encode())
        return digest.hexdigest()

    def prepare(self, rows: Iterable[int], num_workers: int) -> None:
        """Make those of all speakers of ``rows``."""
        for speaker in dict.fromkeys(self._manifest.speakers[row] for row in rows):
            if speaker not in self._found:
                self._found[speaker] = self._measure(speaker, num_workers)

    def standardised(self, row: int, features_FD: Features) -> Features:
        """Return the MFCC [F, 39] of an utterance less its speaker's mean, over the deviation."""
        mean, std = self._found[self._manifest.speakers[row]]
        return (features_FD - mean) / std

    def _measure(self, speaker: str, num_workers: int) -> tuple[Features, Features]:
        rows = np.array(self._rows[speaker], np.int64)
        drawn = rows[generator(0, "targets/speaker").permutation(len(rows))]
        frames = np.cumsum(num_feature_frames(self._manifest.lengths(SAMPLE_RATE_HZ)[drawn]))
        some = drawn[: int(np.searchsorted(frames, SPEAKER_FRAMES)) + 1].tolist()
        heard = [
            features.astype(np.float64)
            for _, first, features in MFCC.stream(self._manifest, some, num_workers, self._left_out)
            if first != DROPPED
        ]
        pooled = np.concatenate(heard or [np.zeros((1, MFCC.dimension))])
        std = np.maximum(pooled.std(axis=0), _LEAST * SPEECH_STD)
        return pooled.mean(axis=0).astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True, eq=False)
class SetFeatures:
    """Features of several sets as a source (see
    :class:`fedhubert.targets.features.FeatureSource`).

    Attributes:
        kinds: Of :data:`fedhubert.config.target_sets.KINDS`.
        speakers: Whose audio it is; None where no kind asks, or nothing is to be computed
            (:func:`of_speakers`).
    """

    kinds: tuple[str, ...]
    speakers: SpeakerScales | None = None

    rate_hz = FEATURE_RATE_HZ

    @property
    def key(self) -> str:
        kinds = f"{_VERSION} {' '.join(self.kinds)}"
        return f"sets-{hashlib.blake2b(kinds.encode(), digest_size=8).hexdigest()}"

    @property
    def site_key(self) -> str:
        return self.speakers.key if self.speakers is not None else ""

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(_part_of(kind).stop - _part_of(kind).start for kind in self.kinds)

    @property
    def by_speaker(self) -> bool:
        """Whether a set is standardised per speaker."""
        return any(_scale_of(kind) == "_speaker" for kind in self.kinds)

    @property
    def dimension(self) -> int:
        return sum(self.widths) + ("mfcc" not in self.kinds) * MFCC.dimension

    @property
    def grouped_by(self) -> slice:
        """The columns of plain MFCC, which stand behind those of the sets where they are none:
        groups of frames are the same in every run, whatever sets it has."""
        before = self.kinds.index("mfcc") if "mfcc" in self.kinds else len(self.kinds)
        start = sum(self.widths[:before])
        return slice(start, start + MFCC.dimension)

    def num_frames(self, num_samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return num_feature_frames(num_samples)

    def stream(
        self,
        manifest: Manifest,
        rows: Iterable[int],
        num_workers: int = 0,
        left_out: LeftOut | None = None,
    ) -> Iterator[Piece]:
        asked = list(rows)
        if self.speakers is not None:
            self.speakers.prepare(asked, num_workers)
        for row, first, features in MFCC.stream(manifest, asked, num_workers, left_out):
            yield row, first, self._columns(row, features)

    def _columns(self, row: int, features_FD: Features) -> Features:
        scaled = {"": features_FD, "_z": features_FD / SPEECH_STD}
        if self.speakers is not None:
            scaled["_speaker"] = self.speakers.standardised(row, features_FD)
        behind = () if "mfcc" in self.kinds else ("mfcc",)
        kinds = (*self.kinds, *behind)
        parts = [scaled[_scale_of(kind)][:, _part_of(kind)] for kind in kinds]
        return np.concatenate(parts, axis=1)


def mfcc_source(targets: TargetsConfig) -> FeatureSource:
    """Return the features of the sets that ``targets.sets`` names, MFCC where it names none."""
    kinds = tuple(each.kind for each in targets.label_sets)
    return MFCC if not targets.sets or kinds == ("mfcc",) else SetFeatures(kinds)


def of_speakers(
    source: FeatureSource, manifest: Manifest, rows: Rows, left_out: LeftOut | None = None
) -> FeatureSource:
    """Return ``source`` for the audio of one client, which is ``rows``: with its speakers' means
    and deviations, where a set is standardised by them."""
    if not isinstance(source, SetFeatures) or not source.by_speaker:
        return source
    return replace(source, speakers=SpeakerScales(manifest, rows, left_out))


def _part_of(kind: str) -> slice:
    return _PARTS[kind.split("_")[0]]


def _scale_of(kind: str) -> str:
    return kind.removeprefix(kind.split("_")[0])
