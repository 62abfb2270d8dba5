"""Held-out masked loss and accuracy of a round checkpoint, under the pseudo-labels that it was trained on and with fixed masks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.checkpoints.content import load_plain
from fedhubert.checkpoints.store import load_checkpoint
from fedhubert.config import DataConfig, ModelConfig, TaskConfig, validate
from fedhubert.data.batching import BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.errors import CheckpointError, TargetsError
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.targets.labels import LabelStore, assigned_labels, most_frequent_share, unigram_entropy_nats
from fedhubert.targets.mfcc import NUM_FEATURES
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


def read_centroids(checkpoint: Path) -> npt.NDArray[np.float32]:
    """Return the centroids [K, D] that lie in the sidecar of a round checkpoint.

    Raises:
        CheckpointError: no sidecar.
        TargetsError: the run had precomputed labels, or clusters of something other than MFCC.
    """
    sidecar = checkpoint.with_name(checkpoint.name.replace("_checkpoint.pt", "_resume.pt"))
    if sidecar == checkpoint or not sidecar.is_file():
        raise CheckpointError(f"{checkpoint} has no {sidecar.name} beside it, so the run's pseudo-labels are unknown")
    found = load_plain(sidecar).get("centroids")
    if found is None:
        raise TargetsError("the run was trained on precomputed labels, which there are none of for this manifest")
    centroids: npt.NDArray[np.float32] = found.numpy()
    if centroids.shape[1] != NUM_FEATURES:
        raise TargetsError(f"the run's clusters are of {centroids.shape[1]} features, not of the {NUM_FEATURES} of MFCC")
    return centroids


def masked_score(checkpoint: Path, manifest: Manifest, device: torch.device) -> MaskedScore:
    """Score a round checkpoint on all of ``manifest``; the same masks and crops at every call.

    Raises:
        CheckpointError, TargetsError: as :func:`read_centroids`, or the checkpoint cannot be read.
        DataError: no utterance is long enough.
    """
    saved = load_checkpoint(checkpoint)
    config: Mapping[str, Any] = saved["config"]
    model = build_hubert(validate(ModelConfig, config["model"]), 0)
    model.load_state_dict(saved["model"])
    data, task = validate(DataConfig, config["data"]), validate(TaskConfig, config["task"])
    labels = assigned_labels(manifest, np.arange(len(manifest)), read_centroids(checkpoint), data.num_workers)
    return score_model(model, manifest, labels, data, task, device, seed=int(config["seed"]))


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
    plan = BatchPlan(manifest.lengths(data.sample_rate_hz), np.arange(len(manifest)), data, seed, 0, purpose="evaluation")
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
