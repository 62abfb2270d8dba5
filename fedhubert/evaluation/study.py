"""An evaluation from a checkpoint and annotated audio to figures: masked prediction, probes, ABX
and clusters, with MFCC and an untrained model beside."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from fedhubert import live
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import ConfigError, FedhubertError
from fedhubert.evaluation.abx_section import AbxSection, AbxSettings
from fedhubert.evaluation.annotations import Labels
from fedhubert.evaluation.clusters import cluster_frames, compare
from fedhubert.evaluation.encoders import Encoder, Features, load_encoder, mfcc_encoder
from fedhubert.evaluation.features import audio_s_per_s
from fedhubert.evaluation.items import (
    Annotated,
    Items,
    frames_of,
    spread,
    utterances_of,
    without_speakers,
)
from fedhubert.evaluation.probes import Fold, linear_probe, speaker_disjoint_folds, utterance_folds
from fedhubert.evaluation.segments import Segments
from fedhubert.training.device import resolve_device

log = logging.getLogger("fedhubert")

Track = Callable[[str, int], "ProgressBar"]


class ProgressBar:
    """Told of every utterance done; the base does nothing."""

    def __call__(self) -> None:
        pass


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
        pooling: How frames of an utterance become one vector for its probes, :data:`POOLING`; each
            but the mean gives probes of its own, ``task (thirds)``.
        abx: How segments are compared.
        max_frames, max_utterances: More are drawn from at random.
    """

    probes: tuple[str, ...] = ()
    purities: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    clusters: int = 100
    references: bool = True
    folds: int = 5
    pooling: tuple[str, ...] = ("mean",)
    abx: AbxSettings = field(default_factory=AbxSettings)
    max_frames: int = 20_000
    max_utterances: int = 4_000
    seed: int = 0
    device: str = "cpu"

    def with_tasks(self, labels: Labels) -> "StudySettings":
        """Return these settings with all tasks of ``labels`` where no probe is named."""
        return self if self.probes else replace(self, probes=tuple(labels.tasks))


POOLING = {"mean": 1, "thirds": 3}
"""Parts of an utterance whose means are put one after the other."""


def run_study(
    source: str | Path,
    evaluated: Annotated,
    settings: StudySettings,
    cache: DiskCache,
    track: Track,
    fitted_on: Annotated | None = None,
) -> dict[str, object]:
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
    probes = {
        task if pooling == "mean" else f"{task} ({pooling})": study.utterance_probe(
            task, evaluated, fitted_on, POOLING[pooling]
        )
        for task in settings.probes
        for pooling in settings.pooling
    }
    clusters, drawn = {}, (settings.max_frames, settings.seed)
    if evaluated.alignment is not None:
        items = frames_of(
            evaluated.manifest, evaluated.alignment.frames(evaluated.manifest), *drawn
        )
        probes["phone"], agreement = study.phones(items)
        if settings.clusters:
            clusters["phone"] = agreement
    for task in settings.purities if settings.clusters else ():
        clusters[task] = study.purity(
            frames_of(evaluated.manifest, spread(evaluated, task), *drawn)
        )
    segments = evaluated.segments
    abx = {} if segments is None else study.abx(segments, evaluated.manifest)
    live.doing("timing the encoder")
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
        "abx": abx,
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
        self._utterances = settings.max_utterances, settings.seed
        self._encoders, self._layers, self._settings, self._cache, self._track = (
            encoders,
            layers,
            settings,
            cache,
            track,
        )

    def utterance_probe(
        self, task: str, evaluated: Annotated, fitted_on: Annotated | None, num_parts: int
    ) -> dict[str, object]:
        """Probe features, pooled over so many parts, for a label of the utterance."""
        score = replace(utterances_of(evaluated, task, *self._utterances), parts=num_parts)
        if fitted_on is None or task == "speaker":
            parts, names = [score], _number(score.labels)
            folds = self._folds(task, score, names)
        else:
            fit = replace(
                without_speakers(
                    utterances_of(fitted_on, task, *self._utterances), set(score.speakers)
                ),
                parts=num_parts,
            )
            parts, names = [fit, score], _number(fit.labels + score.labels)
            folds = [(np.arange(len(fit.labels)), np.arange(len(fit.labels), len(names)))]
        speakers = [speaker for part in parts for speaker in part.speakers]
        rows = [
            self._probed(encoder, layer, features, names, folds, speakers)
            for encoder, layer, features in self._features(parts, task)
        ]
        return {"split": _split_name(task, fitted_on), "rows": rows}

    def _probed(
        self,
        encoder: str,
        layer: int | None,
        features: Features,
        names: Rows,
        folds: list[Fold],
        speakers: list[str],
    ) -> dict[str, object]:
        probe = linear_probe(features, names, folds, speakers, self._settings.seed)
        return {"encoder": encoder, "layer": layer, **asdict(probe)}

    def phones(self, items: Items) -> tuple[dict[str, object], dict[str, object]]:
        """Probe single frames for their phone, and cluster the same frames."""
        names = _number(items.labels)
        probes, clusters = [], []
        folds = speaker_disjoint_folds(items.speakers, self._settings.folds)
        for encoder, layer, features in self._features([items], "phone"):
            probes.append(self._probed(encoder, layer, features, names, folds, items.speakers))
            if self._settings.clusters:
                clusters.append(
                    {"encoder": encoder, "layer": layer, **self._agreement(features, names)}
                )
        return {"split": "speaker-disjoint", "rows": probes}, {
            "k": self._settings.clusters,
            "rows": clusters,
        }

    def purity(self, items: Items) -> dict[str, object]:
        """Cluster frames and compare with their utterances' labels."""
        names = _number(items.labels)
        rows = [
            {"encoder": encoder, "layer": layer, **self._agreement(features, names)}
            for encoder, layer, features in self._features([items], "clusters")
        ]
        return {"k": self._settings.clusters, "rows": rows}

    def abx(self, segments: Segments, manifest: Manifest) -> dict[str, object]:
        """Compare segments; return measure -> figures of each encoder and layer, if there are
        any."""
        section = AbxSection(segments, manifest, self._settings.abx, self._cache)
        rows: dict[str, list[dict[str, object]]] = {}
        if not section.has_triples:
            log.warning(
                "ABX is left out: it needs a speaker with segments of two phones, and another "
                "segment of one of them "
                "(with --abx-context within: with the same neighbours); does the manifest say who "
                "speaks?"
            )
            return {}
        for encoder in self._encoders:
            layers = self._layers if encoder.key else encoder.layers
            tick = self._track(f"ABX: {encoder.name}", len(section.rows))
            for measure, row in section.measured(encoder, layers, tick):
                rows.setdefault(measure, []).append(row)
        return {measure: {**section.about(), "rows": found} for measure, found in rows.items()}

    def _agreement(self, features: Features, names: Rows) -> dict[str, object]:
        return asdict(
            compare(cluster_frames(features, self._settings.clusters, self._settings.seed), names)
        )

    def _folds(self, task: str, items: Items, names: Rows) -> list[Fold]:
        if task == "speaker":
            return utterance_folds(names, self._settings.folds, self._settings.seed)
        return speaker_disjoint_folds(items.speakers, self._settings.folds)

    def _features(
        self, parts: list[Items], task: str
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
                live.doing(f"{task}: {encoder.name}, layer {place + 1}", place + 1, len(layers))
                yield encoder.name, layer if encoder.key else None, features[place]


def _split_name(task: str, fitted_on: Annotated | None) -> str:
    if task == "speaker":
        return "by utterance"
    return (
        "speaker-disjoint"
        if fitted_on is None
        else "speaker-disjoint, fitted on the training manifest"
    )


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


def masked_section(source: Path, manifest: Manifest, device: str) -> dict[str, object]:
    """Return the masked score of one of our checkpoints, or ``{"skipped": reason}``."""
    from fedhubert.evaluation.masked import as_plain, masked_score
    from fedhubert.formats.round_file import find_checkpoint

    try:
        return as_plain(masked_score(find_checkpoint(source), manifest, resolve_device(device)))
    except FedhubertError as error:
        return {"skipped": str(error)}
