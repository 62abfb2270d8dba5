"""Held-out masked loss and accuracy of a round checkpoint, under the pseudo-labels that it was
trained on and with fixed masks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedhubert.config import DataConfig, ModelConfig, TargetsConfig, TaskConfig, validate
from fedhubert.data.batching import BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.errors import CheckpointError, TargetsError
from fedhubert.formats.content import load_plain
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.features import FeatureSource
from fedhubert.targets.kmeans import Centroids, targets_key
from fedhubert.targets.labels import (
    LabelStore,
    assigned_labels,
    most_frequent_share,
    unigram_entropy_nats,
)
from fedhubert.targets.layers import LayerFeatures
from fedhubert.targets.sets import mfcc_source, of_speakers
from fedhubert.targets.solving import centroids_in
from fedhubert.training.local import evaluate


@dataclass(frozen=True)
class MaskedScore:
    """Over the masked frames of a manifest.

    Attributes:
        loss: Cross-entropy in nats per masked frame.
        entropy_nats, most_frequent_share: Loss and accuracy of a model that ignores its input.
        utterances, left_out: Scored, and too short (``data.min_seconds``).
    """

    loss: float
    masked_accuracy: float
    entropy_nats: float
    most_frequent_share: float
    masked_frames: int
    utterances: int
    left_out: int


def masked_score(checkpoint: Path, manifest: Manifest, device: torch.device) -> MaskedScore:
    """Score a round checkpoint on all of ``manifest``; the same masks and crops at every call.

    Raises:
        CheckpointError: the checkpoint, its sidecar or the model that its clusters are of cannot be
            read.
        TargetsError: the run had precomputed labels.
        DataError: no utterance is long enough.
    """
    saved = load_checkpoint(checkpoint)
    config: Mapping[str, Any] = saved["config"]
    model = build_hubert(validate(ModelConfig, config["model"]), 0)
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError:
        raise CheckpointError(
            f"{checkpoint} was not trained by masked prediction: it has another head"
        ) from None
    data, task = validate(DataConfig, config["data"]), validate(TaskConfig, config["task"])
    centroids, key = _centroids(checkpoint)
    rows = np.arange(len(manifest))
    source = _source(validate(TargetsConfig, config["targets"]), data, device)
    if key not in ("", targets_key(centroids, source.key)):
        raise CheckpointError(
            f"targets.checkpoint={config['targets']['checkpoint']} is not the model that the run's "
            "clusters are of",
            setting="targets.checkpoint",
        )
    labels = assigned_labels(
        manifest,
        rows,
        centroids,
        data.num_workers,
        source=of_speakers(source, manifest, rows),
    )
    return score_model(model, manifest, labels, data, task, device, seed=int(config["seed"]))


def _centroids(checkpoint: Path) -> tuple[Centroids, str]:
    """Return the centroids of each set in the sidecar of a checkpoint, and the key of the labels
    that they gave ('' where it is not told)."""
    sidecar = checkpoint.with_name(checkpoint.name.replace("_checkpoint.pt", "_resume.pt"))
    if sidecar == checkpoint or not sidecar.is_file():
        raise CheckpointError(
            f"{checkpoint} has no {sidecar.name} beside it, so the run's pseudo-labels are unknown"
        )
    found = load_plain(sidecar)
    centroids = centroids_in(found)
    if not centroids:
        raise TargetsError(
            "the run was trained on precomputed labels, and there are none for this manifest"
        )
    return centroids, str(found.get("targets_key") or "")


def _source(targets: TargetsConfig, data: DataConfig, device: torch.device) -> FeatureSource:
    """Return what the run's clusters are of."""
    extractor = Extractor.of(targets)
    if extractor is None:
        return mfcc_source(targets)
    return LayerFeatures.of(extractor, data, device)


def score_model(
    model: HubertModel,
    manifest: Manifest,
    labels: LabelStore,
    data: DataConfig,
    task: TaskConfig,
    device: torch.device,
    seed: int,
) -> MaskedScore:
    """Score ``model`` on every utterance of ``manifest`` that is long enough, once."""
    plan = BatchPlan(
        manifest.lengths(data.sample_rate_hz),
        np.arange(len(manifest)),
        data,
        seed,
        0,
        purpose="evaluation",
    )
    source = LabelSource(labels.labels, labels.rate_hz)
    batches = load_batches(manifest, plan, range(plan.num_batches), source, mask_spec(task), data)
    result = evaluate(model, batches, task=task, device=device)
    counts = labels.counts(plan.rows)
    frames = max(1, result.masked_frames)
    return MaskedScore(
        result.cross_entropy_sum / frames,
        result.correct / frames,
        unigram_entropy_nats(counts),
        most_frequent_share(counts),
        result.masked_frames,
        len(plan.rows),
        plan.num_too_short,
    )


def as_plain(score: MaskedScore) -> dict[str, Any]:
    return asdict(score)
