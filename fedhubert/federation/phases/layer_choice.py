"""The layer of a first iteration's model that a second one clusters, chosen on audio that no client
trains on: the one that tells phones of different speakers apart best (ABX)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from fedhubert.config import Config
from fedhubert.config.targets import LAYER_AUTO
from fedhubert.data.corpora import cache_folder, resolve_manifest
from fedhubert.data.manifest import Manifest
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import TargetsError
from fedhubert.evaluation.abx_section import AbxSection, AbxSettings
from fedhubert.evaluation.annotations import Alignment
from fedhubert.evaluation.encoders import Encoder, load_encoder
from fedhubert.evaluation.segments import aligned_segments

log = logging.getLogger("fedhubert")

MEASURE = "mean-z"
"""Means of segments, every dimension standardised: a layer's few strongest dimensions do not decide
alone."""
_CACHE_BYTES = 2 * 10**9


def with_layer(config: Config) -> Config:
    """Return ``config`` with the number of a layer in the place of ``targets.source=layer:auto``;
    as it is with any other source.

    The same model and audio give the same layer, so that a resumed run finds the one it began with.

    Raises:
        CheckpointError, DataError: nothing usable at ``targets.checkpoint``, ``choice_manifest`` or
            ``choice_phones``.
        TargetsError: no two segments of a phone beside one of another.
    """
    targets = config.targets
    if targets.source != LAYER_AUTO or not config.task.needs_labels:
        return config
    manifest = Manifest.read(resolve_manifest(str(targets.choice_manifest)))
    segments = aligned_segments(Alignment.read(Path(str(targets.choice_phones))), manifest)
    cache = DiskCache(cache_folder() / "evaluation", _CACHE_BYTES)
    section = AbxSection(segments, manifest, AbxSettings((MEASURE,)), cache)
    encoder, _ = load_encoder(str(targets.checkpoint))
    errors = _errors(section, encoder, encoder.layers[1:])
    layer = min(errors, key=lambda layer: (errors[layer], layer))
    log.info(
        "targets.source=layer:%d, by the ABX error of each layer: %s",
        layer,
        ", ".join(f"{number} {error:.3f}" for number, error in errors.items()),
    )
    chosen = targets.model_copy(update={"source": f"layer:{layer}"})
    return config.model_copy(update={"targets": chosen})


def _errors(section: AbxSection, encoder: Encoder, layers: Sequence[int]) -> dict[int, float]:
    """Return each layer's error across speakers, or within them where no phone has two."""
    errors = {}
    for _, row in section.measured(encoder, layers, lambda: None) if section.has_triples else ():
        figures = row["across"] or row["within"]
        errors[int(row["layer"])] = float(figures["error"])
    if not errors:
        raise TargetsError(
            "ABX needs a speaker with segments of two phones, and another segment of one of them: "
            "name more audio, or a layer (targets.source=layer:N)",
            setting="targets.choice_phones",
        )
    return errors
