"""What training asks of an objective: sums over a batch's frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedhubert.data.batching import Utterance
from fedhubert.models.hubert import HubertModel
from fedhubert.models.masking import FramePlaces


class LabelledBatch(Protocol):
    """What objectives read of a batch: audio, cluster ids (0 .. K - 1) per frame, the frames to
    mask, and where these stand; of whole utterances how long each is, and what was said of it."""

    @property
    def waveforms_BN(self) -> Tensor: ...
    @property
    def labels_BT(self) -> Tensor | None: ...
    @property
    def mask_BT(self) -> Tensor: ...
    @property
    def places(self) -> FramePlaces: ...
    @property
    def utterances(self) -> tuple[Utterance, ...] | None: ...


class Terms(Protocol):
    """Sums over the frames of a batch, so that those of several batches, or of pieces of one, add
    up.

    Attributes:
        loss_sum: Scalar to backpropagate.
        frames: What to divide it by, added up over the whole step.
        sums: All figures to report, by name, each to be added up; tensors are detached scalars.
    """

    @property
    def loss_sum(self) -> Tensor: ...
    @property
    def frames(self) -> int: ...
    @property
    def sums(self) -> Mapping[str, Tensor | int]: ...


class Objective(Protocol):
    """Runs a model on a batch (on the same device) and scores it."""

    def __call__(self, model: HubertModel, batch: LabelledBatch, /) -> Terms: ...


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of a batch, float32 without gradients.

    Attributes:
        layers: Layer (from 1) -> its output [B, T, D].
        logits_BTC: Scores of all frames, if the task needs them.
        conv_BTD: Convolutional features, where the student shares the teacher's frozen
            convolutions.
    """

    layers: Mapping[int, Tensor]
    logits_BTC: Tensor | None = None
    conv_BTD: Tensor | None = None


class TeacherSource(Protocol):
    """Gives a teacher's output for unmasked waveforms [B, N]; a row's does not depend on the
    others."""

    def __call__(self, waveforms_BN: Tensor, /) -> TeacherOutput: ...


def ratio(numerator: float, denominator: float) -> float:
    """Return a mean from a sum over frames and their number; of no frames it is the sum."""
    return float(numerator) / max(1.0, float(denominator))
