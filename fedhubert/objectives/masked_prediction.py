"""HuBERT's objective: name the pseudo-label of every masked frame (Hsu et al. 2021, equation 3:
their alpha is 1 in the released recipes, where unmasked frames carry no weight).

Shape suffixes: B batch, N samples at 16 kHz, T 50-Hz frames, M masked frames, U unmasked frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, MaskedTask
from fedhubert.errors import TargetsError
from fedhubert.models.hubert import HubertModel, HubertOutput
from fedhubert.models.masking import pick
from fedhubert.objectives.objective import LabelledBatch, Objective, TeacherSource, ratio
from fedhubert.objectives.spec import ObjectiveSpec, register


@dataclass(frozen=True)
class LossTerms:
    """Sums over a batch; divide by the frames of the whole step, over all its batches, for means.

    Attributes:
        loss_sum: Scalar to backpropagate: cross-entropy (nats) summed over masked frames, plus
            ``unmasked_weight`` times that of the others, both added up over the sets of labels (as
            fairseq's criterion does), plus ``feature_penalty`` x mean square of the convolution
            features x ``frames``.
        cross_entropy_sum: The first term alone, of the first set, detached.
        correct: Masked frames whose best class is the first set's label, detached int64 scalar.
        masked_frames: How many there are.
        frames: What ``loss_sum`` is to be divided by: the masked frames, or all if the others have
            a weight (as fairseq's criterion does).
    """

    loss_sum: Tensor
    cross_entropy_sum: Tensor
    correct: Tensor
    masked_frames: int
    frames: int

    @property
    def sums(self) -> Mapping[str, Tensor | int]:
        """The figures by the names that reports have for them."""
        return {
            "cross_entropy_sum": self.cross_entropy_sum,
            "masked_frames": self.masked_frames,
            "correct": self.correct,
        }


def masked_prediction(model: HubertModel, batch: LabelledBatch, task: MaskedTask) -> LossTerms:
    """Run ``model`` on ``batch`` (on the same device) and score its masked frames; in training the
    others too, if the task gives them a weight.

    Raises:
        TargetsError: the batch has no labels, or labels for another number of frames than the mask.
    """
    check_labels(batch)
    weight = task.weight_of_unmasked if torch.is_grad_enabled() else 0.0
    asked = {"unmasked": True} if weight else {}
    output = model(batch.waveforms_BN, batch.mask_BT, places=batch.places, **asked)
    return score_masked(output, batch, task.feature_penalty, weight)


def check_labels(batch: LabelledBatch) -> None:
    """Raise :class:`TargetsError` for a batch that :func:`masked_prediction` cannot score."""
    if batch.labels_BT is None:
        raise TargetsError("the batch has no pseudo-labels to predict", setting="targets.kind")
    if batch.labels_BT.shape[:2] != batch.mask_BT.shape:
        raise TargetsError(
            f"labels of shape {tuple(batch.labels_BT.shape)} for a mask of shape "
            f"{tuple(batch.mask_BT.shape)}"
        )


def score_masked(
    output: HubertOutput, batch: LabelledBatch, feature_penalty: float, unmasked_weight: float = 0.0
) -> LossTerms:
    """Score a model's output for a batch that has labels.

    Raises:
        TargetsError: labels of another number of sets than the model has heads.
    """
    sets_BT = sets_of(batch)
    if len(sets_BT) != 1 + len(output.others):
        raise TargetsError(
            f"labels of {len(sets_BT)} sets for {1 + len(output.others)} heads",
            setting="targets.sets",
        )
    target_M = pick(sets_BT[0], batch.places.masked_M) + NUM_SPECIAL_ROWS
    cross_entropy = F.cross_entropy(output.logits_MC, target_M, reduction="sum")
    masked_frames = frames = target_M.numel()
    loss_sum = cross_entropy
    if output.unmasked_logits_UC is not None:
        target_U = pick(sets_BT[0], batch.places.unmasked_U) + NUM_SPECIAL_ROWS
        loss_sum = loss_sum + unmasked_weight * F.cross_entropy(
            output.unmasked_logits_UC, target_U, reduction="sum"
        )
        frames += target_U.numel()
    for labels_BT, scores in zip(sets_BT[1:], output.others, strict=True):
        places = zip(batch.places, scores, (1.0, unmasked_weight), strict=True)
        for places_F, logits_FC, weight in places:
            if logits_FC is not None:
                target_F = pick(labels_BT, places_F) + NUM_SPECIAL_ROWS
                loss_sum = loss_sum + weight * F.cross_entropy(logits_FC, target_F, reduction="sum")
    loss_sum = loss_sum + feature_penalty * frames * output.conv_power
    correct = (output.logits_MC.detach().argmax(dim=-1) == target_M).sum()
    return LossTerms(loss_sum, cross_entropy.detach(), correct, masked_frames, frames)


def sets_of(batch: LabelledBatch) -> Sequence[Tensor]:
    """Return the labels [B, T] of each set that a batch with labels has."""
    assert batch.labels_BT is not None
    several = batch.labels_BT.ndim == 3
    return batch.labels_BT.unbind(dim=2) if several else (batch.labels_BT,)


@register("pretrain")
class MaskedPrediction(ObjectiveSpec):
    """HuBERT's pretraining."""

    counted = "masked_frames"
    words: ClassVar[Mapping[str, str]] = {"loss": "loss", "masked_accuracy": "accuracy"}

    @property
    def sum_names(self) -> tuple[str, ...]:
        return ("cross_entropy_sum", "masked_frames", "correct")

    def loss(self, teacher: TeacherSource | None = None) -> Objective:
        return lambda model, batch: masked_prediction(model, batch, self.task)

    def combine(self, sums: Mapping[str, float]) -> dict[str, object]:
        """Return ``loss`` (nats), ``masked_accuracy`` and ``masked_frames``."""
        frames = sums["masked_frames"]
        return {
            "loss": ratio(sums["cross_entropy_sum"], frames),
            "masked_accuracy": ratio(sums["correct"], frames),
            "masked_frames": int(frames),
        }
