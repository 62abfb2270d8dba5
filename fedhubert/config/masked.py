"""What every task has."""

from __future__ import annotations

from fedhubert.config.base import Model, NonNegative, PositiveFraction, PositiveInt
from fedhubert.config.keys import key
from fedhubert.config.model import ModelConfig


class MaskedTask(Model):
    """What every task has: which frames are hidden, and the penalty on the convolutions' power."""

    name: str
    """The task."""

    mask_probability: PositiveFraction = 0.8
    """Share of the frames in masked spans, before spans overlap; the recipe's. Less for small
    models."""

    mask_probability_start: PositiveFraction | None = None
    """``mask_probability`` at the run's beginning; it then moves over the rounds to that. null: the
    same all along. Small models learn sounds sooner from 0.2 on to 0.65."""

    mask_length_frames: PositiveInt = key(10, unit="frames of 20 ms")
    """Length of a masked span."""

    min_masks: PositiveInt = key(2, unit="spans")
    """Masked spans of an utterance at least."""

    feature_penalty: NonNegative = 10.0
    """Weight of the mean square of the convolutions' outputs; the recipe's 10 silences those of
    tiny models. In task=distill only with pseudo_labels, unless the convolutions are frozen."""

    @property
    def needs_labels(self) -> bool:
        """Whether pseudo-labels are predicted."""
        return True

    @property
    def hides_frames(self) -> bool:
        """Whether the model sees masked frames, which is what trains the mask embedding."""
        return True

    @property
    def predicts_masked(self) -> bool:
        """Whether an objective scores masked frames by the masked-prediction head, which is what
        trains it."""
        return self.needs_labels

    @property
    def weight_of_unmasked(self) -> float:
        """What a frame that is not masked counts beside a masked one, in masked prediction."""
        return 0.0

    @property
    def annotation(self) -> tuple[str, str | None] | None:
        """The key, in the task, that names a column of labels given by people, and that column;
        None: nothing is learned from any."""
        return None

    @property
    def outputs(self) -> tuple[str, int] | None:
        """The key, in the task, of such labels, or of their characters, and how many of them are
        told apart."""
        return None

    @property
    def of_data(self) -> tuple[object, ...]:
        """What of the task a site's data depends on: which utterances are used, and as what."""
        return (self.name,)

    @property
    def encoder_rate(self) -> float:
        """The encoder's learning rate, in rates of the rest of the model."""
        return 1.0

    @property
    def shares_head(self) -> bool:
        """Whether what the objective adds to the model travels, and is one for all clients."""
        return True

    def pooled(self) -> MaskedTask:
        """Return the task as one model learns it from everybody's audio."""
        return self

    def freezes_encoder(self, progress: float) -> bool:
        """Whether the encoder stands still at ``progress`` in [0, 1] of the run."""
        return False

    def check_model(self, model: ModelConfig, init_from: str | None) -> None:
        """Raise ``ValueError`` for a model, or a start from other weights, that does not go with
        the task."""

    def check_run(self, compiled: bool, private: bool, trains: bool) -> None:
        """Raise ``ValueError`` where the task does not go with ``client.compile``, with
        differential privacy, or with a run that is no dry one."""
