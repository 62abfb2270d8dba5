"""An evaluation from a checkpoint and annotated audio to figures: masked prediction, probes and
clusters, with MFCC and an untrained model beside."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import ConfigError, DataError, FedhubertError
from fedhubert.evaluation.annotations import Alignment, Labels
from fedhubert.evaluation.clusters import cluster_frames, compare
from fedhubert.evaluation.encoders import Encoder, Features, load_encoder, mfcc_encoder
from fedhubert.evaluation.features import Extractor, audio_s_per_s
from fedhubert.evaluation.probes import Fold, linear_probe, speaker_disjoint_folds, utterance_folds
from fedhubert.seeding import generator
from fedhubert.training.device import resolve_device

log = logging.getLogger("fedhubert")

Rows = npt.NDArray[np.int64]
Track = Callable[[str, int], "Ticker"]


class Ticker:
    """Told of every utterance done; the base does nothing."""

    def __call__(self) -> None:
        pass


@dataclass(frozen=True)
class Annotated:
    """A manifest with what is known of its audio."""

    manifest: Manifest
    labels: Labels = field(default_factory=lambda: Labels({}))
    alignment: Alignment | None = None


@dataclass(frozen=True)
class StudySettings:
    """How much to compute.

    Attributes:
        probes: Tasks of the labels file or manifest columns; ``speaker`` is split by utterance, all
            others by speaker.
        purities: Tasks whose labels, given to each frame of the utterance, clusters are compared
            with (beside the phones).
        layers: Layers to look at; None for all.
        clusters: k of k-means; 0: no clusters.
        references: Measure MFCC and the untrained encoder too.
        folds: At most so many parts of cross-validation.
        max_frames, max_utterances: More are drawn from at random.
    """

    probes: tuple[str, ...] = ()
    purities: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    clusters: int = 100
    references: bool = True
    folds: int = 5
    max_frames: int = 20_000
    max_utterances: int = 4_000
    seed: int = 0
    device: str = "cpu"

    def with_tasks(self, labels: Labels) -> "StudySettings":
        """Return these settings with all tasks of ``labels`` where no probe is named."""
        return self if self.probes else replace(self, probes=tuple(labels.tasks))


@dataclass(frozen=True)
class _Items:
    """What a probe sees of one manifest: one item per utterance, or per chosen frame."""

    manifest: Manifest
    rows: Rows
    labels: list[str]
    speakers: list[str]
    chosen: dict[int, Rows] | None = None

    def features(
        self, encoder: Encoder, layers: Sequence[int], cache: DiskCache, tick: Callable[[], None]
    ) -> Features:
        extractor = Extractor(encoder, layers, self.manifest, cache)
        return (
            extractor.pooled(self.rows, tick)
            if self.chosen is None
            else extractor.frames(self.chosen, tick)
        )

    @property
    def num_utterances(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)


def run_study(
    source: str | Path,
    evaluated: Annotated,
    settings: StudySettings,
    cache: DiskCache,
    track: Track,
    fitted_on: Annotated | None = None,
) -> dict[str, Any]:
    """Return the figures as plain values, as `fedhubert evaluate --out` writes them.

    Args:
        source: What :func:`~fedhubert.evaluation.encoders.load_encoder` takes.
        evaluated: Audio that is scored; cross-validated where ``fitted_on`` is None.
        track: Makes the ticker of a pass from its name and number of utterances.
        fitted_on: Audio to fit probes of utterances on; those of speakers that are scored are left
            out.

    Raises:
        FedhubertError: the encoder or the annotations cannot be used.
    """
    device = resolve_device(settings.device)
    trained, untrained = load_encoder(source, device)
    encoders = [mfcc_encoder(), untrained, trained] if settings.references else [trained]
    layers = _checked_layers(settings.layers, trained)
    study = _Study(encoders, layers, settings, cache, track)
    probes = {task: study.utterance_probe(task, evaluated, fitted_on) for task in settings.probes}
    clusters = {}
    if evaluated.alignment is not None:
        items = _frames_of(
            evaluated.manifest, evaluated.alignment.frames(evaluated.manifest), settings
        )
        probes["phone"], agreement = study.phones(items)
        if settings.clusters:
            clusters["phone"] = agreement
    for task in settings.purities if settings.clusters else ():
        clusters[task] = study.purity(
            _frames_of(evaluated.manifest, _spread(evaluated, task), settings)
        )
    speed = audio_s_per_s(trained, evaluated.manifest, device)
    about = {
        "source": str(source),
        "key": trained.key,
        "layers": list(layers),
        "parameters": trained.parameters,
        "audio_s_per_s": speed,
    }
    return {
        "encoder": about,
        "probes": probes,
        "clusters": clusters,
    }


class _Study:
    """The same measurements for several encoders, layer by layer."""

    def __init__(
        self,
        encoders: list[Encoder],
        layers: Sequence[int],
        settings: StudySettings,
        cache: DiskCache,
        track: Track,
    ) -> None:
        self._encoders, self._layers, self._settings, self._cache, self._track = (
            encoders,
            layers,
            settings,
            cache,
            track,
        )

    def utterance_probe(
        self, task: str, evaluated: Annotated, fitted_on: Annotated | None
    ) -> dict[str, Any]:
        """Probe mean-pooled features for a label of the utterance."""
        score = _utterances_of(evaluated, task, self._settings)
        if fitted_on is None or task == "speaker":
            parts, names = [score], _number(score.labels)
            folds = self._folds(task, score, names)
        else:
            fit = _without_speakers(
                _utterances_of(fitted_on, task, self._settings), set(score.speakers)
            )
            parts, names = [fit, score], _number(fit.labels + score.labels)
            folds = [(np.arange(len(fit.labels)), np.arange(len(fit.labels), len(names)))]
        rows = []
        for encoder, layer, features in self._features(parts, task):
            rows.append(
                {"encoder": encoder, "layer": layer, **asdict(linear_probe(features, names, folds))}
            )
        return {"split": _split_name(task, fitted_on), "rows": rows}

    def phones(self, items: _Items) -> tuple[dict[str, Any], dict[str, Any]]:
        """Probe single frames for their phone, and cluster the same frames."""
        names = _number(items.labels)
        probes, clusters = [], []
        folds = speaker_disjoint_folds(items.speakers, self._settings.folds)
        for encoder, layer, features in self._features([items], "phone"):
            probes.append(
                {"encoder": encoder, "layer": layer, **asdict(linear_probe(features, names, folds))}
            )
            if self._settings.clusters:
                clusters.append(
                    {"encoder": encoder, "layer": layer, **self._agreement(features, names)}
                )
        return {"split": "speaker-disjoint", "rows": probes}, {
            "k": self._settings.clusters,
            "rows": clusters,
        }

    def purity(self, items: _Items) -> dict[str, Any]:
        """Cluster frames and compare with their utterances' labels."""
        names = _number(items.labels)
        rows = [
            {"encoder": encoder, "layer": layer, **self._agreement(features, names)}
            for encoder, layer, features in self._features([items], "clusters")
        ]
        return {"k": self._settings.clusters, "rows": rows}

    def _agreement(self, features: Features, names: Rows) -> dict[str, Any]:
        return asdict(
            compare(cluster_frames(features, self._settings.clusters, self._settings.seed), names)
        )

    def _folds(self, task: str, items: _Items, names: Rows) -> list[Fold]:
        if task == "speaker":
            return utterance_folds(names, self._settings.folds, self._settings.seed)
        return speaker_disjoint_folds(items.speakers, self._settings.folds)

    def _features(
        self, parts: list[_Items], task: str
    ) -> Iterator[tuple[str, int | None, Features]]:
        """Yield (encoder, layer, features of all parts' items); one encoder's are in memory at a
        time."""
        for encoder in self._encoders:
            layers = self._layers if encoder.key else encoder.layers
            tick = self._track(
                f"{task}: {encoder.name}", sum(part.num_utterances for part in parts)
            )
            features = np.concatenate(
                [part.features(encoder, layers, self._cache, tick) for part in parts], axis=1
            )
            for place, layer in enumerate(layers):
                yield encoder.name, layer if encoder.key else None, features[place]


def best_layers(study: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return task -> encoder -> its most accurate row."""
    best: dict[str, dict[str, dict[str, Any]]] = {}
    for task, probe in study.get("probes", {}).items():
        for row in probe["rows"]:
            rows = best.setdefault(task, {})
            if row["encoder"] not in rows or row["accuracy"] > rows[row["encoder"]]["accuracy"]:
                rows[row["encoder"]] = row
    return best


def _utterances_of(annotated: Annotated, task: str, settings: StudySettings) -> _Items:
    rows, labels = annotated.labels.of(annotated.manifest, task)
    kept = np.sort(
        _drawn(len(rows), settings.max_utterances, settings.seed, "evaluation/utterances")
    )
    speakers = annotated.manifest.speakers
    return _Items(
        annotated.manifest,
        rows[kept],
        [labels[i] for i in kept],
        [speakers[row] for row in rows[kept].tolist()],
    )


def _frames_of(
    manifest: Manifest, frames: Mapping[int, tuple[Rows, list[str]]], settings: StudySettings
) -> _Items:
    """Draw whole utterances until there are ``max_frames`` frames; of the last one its
    beginning."""
    chosen: dict[int, Rows] = {}
    labels: list[str] = []
    speakers: list[str] = []
    listed = list(frames)
    for place in _drawn(len(listed), len(listed), settings.seed, "evaluation/frames").tolist():
        room = settings.max_frames - len(labels)
        if room <= 0:
            break
        row = listed[place]
        places, names = frames[row]
        chosen[row] = places[:room]
        labels += names[:room]
        speakers += [manifest.speakers[row]] * min(room, len(places))
    return _Items(manifest, np.array(list(chosen), dtype=np.int64), labels, speakers, chosen)


def _spread(annotated: Annotated, task: str) -> dict[int, tuple[Rows, list[str]]]:
    """Give every frame its utterance's label."""
    from fedhubert.models.hubert import frames_of

    rows, labels = annotated.labels.of(annotated.manifest, task)
    counts = frames_of(annotated.manifest.lengths()[rows]).tolist()
    return {
        row: (np.arange(count), [label] * count)
        for row, label, count in zip(rows.tolist(), labels, counts, strict=True)
    }


def _without_speakers(items: _Items, heard: set[str]) -> _Items:
    kept = [place for place, speaker in enumerate(items.speakers) if speaker not in heard]
    if not kept:
        raise DataError(
            "every speaker of --train-manifest is also in --manifest: probes need other ones",
            setting="--train-manifest",
        )
    return _Items(
        items.manifest,
        items.rows[kept],
        [items.labels[i] for i in kept],
        [items.speakers[i] for i in kept],
    )


def _split_name(task: str, fitted_on: Annotated | None) -> str:
    if task == "speaker":
        return "by utterance"
    return (
        "speaker-disjoint"
        if fitted_on is None
        else "speaker-disjoint, fitted on the training manifest"
    )


def _drawn(total: int, most: int, seed: int, purpose: str) -> Rows:
    return generator(seed, purpose).permutation(total)[:most]


def _number(labels: Iterable[str]) -> Rows:
    """Number labels in sorted order."""
    return np.unique(np.asarray(list(labels)), return_inverse=True)[1].astype(np.int64)


def _checked_layers(wanted: tuple[int, ...] | None, encoder: Encoder) -> tuple[int, ...]:
    if wanted is None:
        return encoder.layers
    unknown = [layer for layer in wanted if layer not in encoder.layers]
    if unknown:
        raise ConfigError(
            f"no layer {unknown[0]}: this encoder has 0 to {encoder.layers[-1]}", setting="--layers"
        )
    return tuple(dict.fromkeys(wanted))


def masked_section(source: Path, manifest: Manifest, device: str) -> dict[str, Any]:
    """Return the masked score of one of our checkpoints, or ``{"skipped": reason}``."""
    from fedhubert.evaluation.masked import as_plain, masked_score
    from fedhubert.formats.round_file import find_checkpoint

    try:
        return as_plain(masked_score(find_checkpoint(source), manifest, resolve_device(device)))
    except FedhubertError as error:
        return {"skipped": str(error)}
