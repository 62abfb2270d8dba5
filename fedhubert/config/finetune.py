"""Fine-tuning: what is learned from labels that people gave to utterances."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedhubert.config.base import Fraction, NonNegative, Positive, PositiveInt
from fedhubert.config.keys import key
from fedhubert.config.masked import MaskedTask
from fedhubert.config.model import ModelConfig

MOST_LABELS = 32
"""The most labels of ``task=classify``: their confusions are so many squared."""
MOST_CHARACTERS = 4096
"""The most characters of ``task=ctc``."""


class FineTuneTask(MaskedTask):
    """What tasks have in common that train an encoder, with a head, on labels of utterances.

    Utterances are heard whole. Frames and channels are masked in training alone (SpecAugment,
    1904.08779, on the transformer's input, as fairseq and HuggingFace do it).
    """

    mask_probability: Fraction = 0.0
    """Share of the frames in masked spans, before spans overlap, in training; 0: none."""

    feature_penalty: NonNegative = 0.0
    """Weight of the mean square of the convolutions' outputs; 0: none."""

    channel_mask_probability: Fraction = 0.0
    """Share of the transformer's input channels that are zeroed in spans in training; 0: none."""

    channel_mask_length: PositiveInt = key(64, unit="channels")
    """Length of a span of zeroed channels."""

    head: Literal["shared", "personal"] = "shared"
    """personal: each client has a head of its own, which stays in its site's state folder; the
    encoder alone travels, and is all that checkpoints and exports have."""

    freeze_share: Fraction = 0.1
    """Share of the run in which the head alone is trained, at its beginning; 1: all of it. The
    encoder's updates are zeros then."""

    encoder_lr_factor: Positive = 1.0
    """The encoder's learning rate at the clients, in rates of the head. A server's adaptive
    optimiser (FedAdam, FedYogi, FedAdagrad) takes it out again."""

    @property
    def needs_labels(self) -> bool:
        return False

    @property
    def hides_frames(self) -> bool:
        return self.mask_probability > 0.0

    @property
    def encoder_rate(self) -> float:
        return self.encoder_lr_factor

    @property
    def shares_head(self) -> bool:
        return self.head == "shared"

    def pooled(self) -> FineTuneTask:
        return self.model_copy(update={"head": "shared"})

    def check_model(self, model: ModelConfig, init_from: str | None) -> None:
        if not self.shares_head and (model.trainable == "head" or self.freeze_share == 1.0):
            raise ValueError(
                "task.head=personal: a head that does not travel, and an encoder that is not "
                "trained, leave nothing to learn together: let some of the encoder be trained "
                "(model.trainable, task.freeze_share)"
            )

    def freezes_encoder(self, progress: float) -> bool:
        return progress < self.freeze_share

    def check_run(self, compiled: bool, private: bool, trains: bool) -> None:
        if compiled:
            raise ValueError(
                f"task={self.name} hears whole utterances, of any length, and client.compile=true "
                "makes a graph for each: set client.compile=false"
            )
        if private and self.freeze_share > 0.0:
            raise ValueError(
                "task.freeze_share: the noise of differential privacy would move the frozen "
                "encoder: set task.freeze_share=0"
            )


class ClassifyConfig(FineTuneTask):
    """One label for each utterance, from a mean over its frames."""

    name: Literal["classify"] = "classify"
    """The task; ``task=NAME`` chooses it with its keys."""

    label_column: str | None = key(None, site="class-column", composed="???")
    """The manifest's column of labels. A site with a manifest of its own has to name its own column
    (``class-column``), or it takes no part."""

    labels: Annotated[tuple[str, ...], Field(max_length=MOST_LABELS)] = key((), composed="???")
    """The labels to tell apart, in an agreed order: [yes,no]. Utterances with another are left
    out."""

    projection_dim: PositiveInt = 256
    """Width of the projection between the layers' mix and the labels (SUPERB's 256)."""

    @property
    def annotation(self) -> tuple[str, str | None]:
        return "label_column", self.label_column

    @property
    def outputs(self) -> tuple[str, int]:
        return "labels", len(self.labels)

    @property
    def of_data(self) -> tuple[object, ...]:
        return (self.name, self.label_column, self.labels)

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) < max(2, len(labels)):
            raise ValueError("name at least two labels, and none of them twice")
        if "" in labels:
            raise ValueError("a label may not be empty: utterances without any are left out")
        return labels


class CtcConfig(FineTuneTask):
    """Characters by connectionist temporal classification (CTC, Graves et al. 2006)."""

    name: Literal["ctc"] = "ctc"
    """The task; ``task=NAME`` chooses it with its keys."""

    mask_probability: Fraction = 0.05
    """Share of the frames in masked spans, before spans overlap, in training; 0: none."""

    text_column: str | None = key(None, site="text-column", composed="???")
    """The manifest's column of transcripts, which stay at the site. A site with a manifest of its
    own has to name its own column (``text-column``), or it takes no part."""

    vocabulary: Annotated[str | None, Field(max_length=MOST_CHARACTERS)] = (
        "abcdefghijklmnopqrstuvwxyz'"
    )
    """Characters to write, beside the space: "abc...'". Texts are brought to its case, other
    punctuation becomes a space, any other character an error. null: ``dry_run=true`` counts those
    of the sites and says what to give."""

    @property
    def annotation(self) -> tuple[str, str | None]:
        return "text_column", self.text_column

    @property
    def outputs(self) -> tuple[str, int]:
        return "vocabulary", len(self.vocabulary or "")

    @property
    def of_data(self) -> tuple[object, ...]:
        return (self.name, self.text_column, self.vocabulary)

    def check_run(self, compiled: bool, private: bool, trains: bool) -> None:
        super().check_run(compiled, private, trains)
        if trains and self.vocabulary is None:
            raise ValueError(
                "task.vocabulary=null asks the sites for their characters, with dry_run=true; give "
                "what that says"
            )

    @field_validator("vocabulary")
    @classmethod
    def _characters_differ(cls, vocabulary: str | None) -> str | None:
        if vocabulary is None:
            return None
        if not vocabulary or len(set(vocabulary)) < len(vocabulary):
            raise ValueError("name at least one character, and none of them twice")
        if any(character.isspace() or character == "|" for character in vocabulary):
            raise ValueError("the space is in it anyway, and `|` stands for it: leave both out")
        cased = {character for character in vocabulary if character.lower() != character.upper()}
        if any(c.islower() for c in cased) and any(c.isupper() for c in cased):
            raise ValueError("letters of both cases: texts are brought to one")
        return vocabulary
