"""ABX of several encoders, layer by layer, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.evaluation import abx
from fedhubert.evaluation.distances import Distance, dtw_distance, mean_distance
from fedhubert.evaluation.encoders import Encoder, Features
from fedhubert.evaluation.features import FeatureReader
from fedhubert.evaluation.segments import Segments
from fedhubert.seeding import generator

MEASURES = ("mean", "mean-z", "dtw", "dtw-z")
"""How segments are compared: by their mean frames, or frame by frame under dynamic time warping;
``-z``: every dimension first standardised over the frames of all segments."""

_BYTES = 2**30
"""Features held at once."""


@dataclass(frozen=True)
class AbxSettings:
    """How much to compute.

    Attributes:
        measures: Of :data:`MEASURES`.
        most: At most so many segments of each phone, context and speaker, drawn at random; 0: all.
        max_utterances: More are drawn from at random.
    """

    measures: tuple[str, ...] = ("mean", "mean-z")
    most: int = 20
    max_utterances: int = 4_000
    seed: int = 0


class AbxSection:
    """The segments, and how they are compared.

    Attributes:
        rows: Of the manifest, with a segment.
    """

    def __init__(
        self, segments: Segments, manifest: Manifest, settings: AbxSettings, cache: DiskCache
    ) -> None:
        self._settings, self._manifest, self._cache = settings, manifest, cache
        self._of = len(segments)
        rows = np.unique(segments.rows_N)
        heard = generator(settings.seed, "evaluation/abx utterances").permutation(rows)
        near = np.isin(segments.rows_N, heard[: settings.max_utterances])
        segments = segments.select(np.flatnonzero(near))
        self._segments = segments.select(segments.kinds.drawn(settings.most, settings.seed))
        self._by_frame = any(measure.startswith("dtw") for measure in settings.measures)
        self.rows: npt.NDArray[np.int64] = np.unique(self._segments.rows_N)

    @property
    def has_triples(self) -> bool:
        """Whether anything can be compared: two phones of a speaker, and one of them once more."""
        kinds = self._segments.kinds
        cells = abx.score(kinds, lambda xs, ys: np.zeros((len(xs), len(ys)), np.float32))
        return any(len(found.errors_C) for found in cells)

    def measured(
        self, encoder: Encoder, layers: Sequence[int], tick: Callable[[], None]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (measure, figures of a layer); ``tick`` is called for each utterance, once."""
        for layer, held in self._held(encoder, layers, tick):
            for measure in self._settings.measures:
                within, across = abx.score(self._segments.kinds, held.distance(measure))
                figures = {
                    name: _figures(abx.summarise(cells, self._settings.seed))
                    for name, cells in (("within", within), ("across", across))
                }
                place = layer if encoder.key else None
                yield measure, {"encoder": encoder.name, "layer": place, **figures}

    def about(self) -> dict[str, Any]:
        """Return what the figures are of, as plain values."""
        kinds = self._segments.kinds
        return {
            "context": "within" if self._segments.by_context else "any",
            "segments": len(self._segments),
            "of_segments": self._of,
            "phones": len(np.unique(kinds.phones_N)),
            "speakers": len(np.unique(kinds.speakers_N)),
        }

    def _held(
        self, encoder: Encoder, layers: Sequence[int], tick: Callable[[], None]
    ) -> Iterator[tuple[int, "_Held"]]:
        """Yield each layer's features of the segments; as many layers a pass as memory allows."""
        bounds = _bounds(self._segments.ends_N - self._segments.starts_N)
        reader = FeatureReader(encoder, layers, self._manifest, self._cache)
        width = next(reader.each(self.rows[:1]))[1].shape[2]
        vectors = int(bounds[-1]) if self._by_frame else len(self._segments)
        at_once = max(1, _BYTES // (4 * width * vectors))
        for first in range(0, len(layers), at_once):
            some = slice(first, first + at_once)
            held = self._pass(reader, some, bounds, tick)
            for place, layer in enumerate(layers[some]):
                yield layer, held.layer(place)
            tick = _nothing

    def _pass(
        self,
        reader: FeatureReader,
        layers: slice,
        bounds: npt.NDArray[np.int64],
        tick: Callable[[], None],
    ) -> "_Held":
        """Read every utterance once, and keep what is needed of some layers."""
        segments, frames, means = self._segments, [], []
        firsts = np.searchsorted(segments.rows_N, self.rows)
        sums: Any = 0.0
        squares: Any = 0.0
        for (_, all_LTD), first, last in zip(
            reader.each(self.rows, tick), firsts, [*firsts[1:], len(segments)], strict=True
        ):
            spans = [
                all_LTD[layers, start:end]
                for start, end in zip(
                    segments.starts_N[first:last], segments.ends_N[first:last], strict=True
                )
            ]
            means += [span.mean(axis=1) for span in spans]
            together = np.concatenate(spans, axis=1)
            sums = sums + together.sum(axis=1, dtype=np.float64)
            squares = squares + np.square(together, dtype=np.float64).sum(axis=1)
            if self._by_frame:
                frames.append(together)
        centre = sums / bounds[-1]
        spread = np.sqrt(np.maximum(squares / bounds[-1] - centre**2, 0.0))
        return _Held(
            np.stack(means, axis=1),
            np.concatenate(frames, axis=1) if frames else None,
            bounds,
            centre.astype(np.float32),
            np.where(spread > 0.0, spread, 1.0).astype(np.float32),
        )


@dataclass(frozen=True)
class _Held:
    """Features of the segments: mean frames [..., N, D], frames [..., F, D] if they are needed,
    mean and deviation of each dimension [..., D]."""

    means: Features
    frames: Features | None
    bounds: npt.NDArray[np.int64]
    centre: Features
    spread: Features

    def layer(self, place: int) -> "_Held":
        """Return those of one layer."""
        frames = None if self.frames is None else self.frames[place]
        return _Held(self.means[place], frames, self.bounds, self.centre[place], self.spread[place])

    def distance(self, measure: str) -> Distance:
        """Return the distance between segments of one layer."""
        kind, _, standardised = measure.partition("-")
        features = self.means if kind == "mean" else self.frames
        assert features is not None
        if standardised:
            features = (features - self.centre) / self.spread
        return mean_distance(features) if kind == "mean" else dtw_distance(features, self.bounds)


def _bounds(lengths_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each of N segments begins in their concatenation, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)


def _figures(score: abx.AbxScore | None) -> dict[str, Any] | None:
    return None if score is None else asdict(score)


def _nothing() -> None:
    """Progress is told in the first pass."""
