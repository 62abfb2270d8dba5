"""What training asks of an objective: sums over a batch's frames."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fedhubert.models.hubert import HubertModel
from fedhubert.models.masking import FramePlaces


class LabelledBatch(Protocol):
    """What objectives read of a batch: audio, cluster ids (0 .. K - 1) per frame, the frames to mask, and where these stand."""

    @property
    def waveforms_BN(self) -> Tensor: ...
    @property
    def labels_BT(self) -> Tensor | None: ...
    @property
    def mask_BT(self) -> Tensor: ...
    @property
    def places(self) -> FramePlaces: ...


class Terms(Protocol):
    """Sums over the frames of a batch, so that those of several batches, or of pieces of one, add up.

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
