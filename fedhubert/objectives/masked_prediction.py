"""HuBERT's objective: name the pseudo-label of every masked frame (Hsu et al. 2021; unmasked frames carry no weight).

Shape suffixes: B batch, N samples at 16 kHz, T 50-Hz frames, M masked frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, MaskedTask
from fedhubert.errors import TargetsError
from fedhubert.models.hubert import HubertModel, HubertOutput
from fedhubert.objectives.objective import LabelledBatch


@dataclass(frozen=True)
class LossTerms:
    """Sums over the masked frames of a batch; divide by the masked frames of the whole step, over all its batches, for means.

    Attributes:
        loss_sum: Scalar to backpropagate: cross-entropy (nats) summed, plus ``feature_penalty`` x mean square of the convolution
            features x masked frames.
        cross_entropy_sum: The first term alone, detached.
        correct: Masked frames whose best class is the label, detached int64 scalar.
        masked_frames: How many there are.
    """

    loss_sum: Tensor
    cross_entropy_sum: Tensor
    correct: Tensor
    masked_frames: int

    @property
    def frames(self) -> int:
        """What ``loss_sum`` is to be divided by."""
        return self.masked_frames

    @property
    def sums(self) -> Mapping[str, Tensor | int]:
        """The figures by the names that reports have for them."""
        return {"cross_entropy_sum": self.cross_entropy_sum, "masked_frames": self.masked_frames, "correct": self.correct}


def masked_prediction(model: HubertModel, batch: LabelledBatch, task: MaskedTask) -> LossTerms:
    """Run ``model`` on ``batch`` (on the same device) and score its masked frames.

    Raises:
        TargetsError: the batch has no labels, or labels for another number of frames than the mask.
    """
    check_labels(batch)
    return score_masked(model(batch.waveforms_BN, batch.mask_BT), batch, task.feature_penalty)


def check_labels(batch: LabelledBatch) -> None:
    """Raise :class:`TargetsError` for a batch that :func:`masked_prediction` cannot score."""
    if batch.labels_BT is None:
        raise TargetsError("the batch has no pseudo-labels to predict", setting="targets.kind")
    if batch.labels_BT.shape != batch.mask_BT.shape:
        raise TargetsError(f"labels of shape {tuple(batch.labels_BT.shape)} for a mask of shape {tuple(batch.mask_BT.shape)}")


def score_masked(output: HubertOutput, batch: LabelledBatch, feature_penalty: float) -> LossTerms:
    """Score a model's output for a batch that has labels."""
    assert batch.labels_BT is not None
    target_M = batch.labels_BT[batch.mask_BT] + NUM_SPECIAL_ROWS
    cross_entropy = F.cross_entropy(output.logits_MC, target_M, reduction="sum")
    masked_frames = target_M.numel()
    loss_sum = cross_entropy + feature_penalty * masked_frames * output.conv_power
    correct = (output.logits_MC.detach().argmax(dim=-1) == target_M).sum()
    return LossTerms(loss_sum, cross_entropy.detach(), correct, masked_frames)
