"""What is learned: masked prediction or a teacher's outputs, and the pseudo-labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, WrapValidator, field_validator, model_validator

from fedhubert.config import elsewhere
from fedhubert.config.base import Model, NonNegative, Positive, PositiveFraction, PositiveInt
from fedhubert.config.model import ModelConfig


class MaskedTask(Model):
    """What every task has: which frames are hidden, and the penalty on the convolutions' power."""

    name: str
    mask_probability: PositiveFraction = 0.8
    mask_length_frames: PositiveInt = 10
    min_masks: PositiveInt = 2
    feature_penalty: NonNegative = 10.0

    @property
    def needs_labels(self) -> bool:
        """Whether pseudo-labels are predicted."""
        return True

    @property
    def weight_of_unmasked(self) -> float:
        """What a frame that is not masked counts beside a masked one, in masked prediction."""
        return 0.0

    def check_model(self, model: ModelConfig, init_from: str | None) -> None:
        """Raise ``ValueError`` for a model, or a start from other weights, that does not go with the task."""


class TaskConfig(MaskedTask):
    """What is learned: masked prediction of pseudo-labels.

    ``unmasked_weight`` is fairseq's ``pred_nomask_weight`` and torchaudio's ``unmasked_weight``: 0 in the released recipes.
    """

    name: Literal["pretrain"] = "pretrain"
    unmasked_weight: NonNegative = 0.0

    @property
    def weight_of_unmasked(self) -> float:
        return self.unmasked_weight


class ObjectivesConfig(Model):
    """Weights of the distillation objectives (see :mod:`fedhubert.objectives.distillation`); 0 leaves one out."""

    layers: NonNegative = 1.0
    hints: NonNegative = 0.0
    logits: NonNegative = 0.0
    pseudo_labels: NonNegative = 0.0

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the objectives that have a weight."""
        return tuple(name for name, weight in self if weight > 0.0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.active:
            raise ValueError("all weights are 0: give layers, hints, logits or pseudo_labels one")
        return self


class DistillConfig(MaskedTask):
    """A student that learns from a frozen teacher.

    Attributes:
        teacher: Where the server finds the teacher; it is not sent to sites.
        teacher_sha256, teacher_model: Digest and sizes of what is used of the teacher. The server fills them in; where a digest is given, another
            teacher is refused.
        layers: Teacher layers, from 1, that the student's last layer predicts, each through a linear head.
        hints: Pairs (student layer, teacher layer), from 1.
        init: What the student takes over: ``conv``, or ``prefix`` (all before the layers, and as many layers as it has; needs the teacher's width).
        teacher_cache: Keep the teacher's outputs on the site, in at most ``teacher_cache_bytes``; results are the same.
    """

    name: Literal["distill"] = "distill"
    objectives: ObjectivesConfig = ObjectivesConfig()
    layers: tuple[PositiveInt, ...] = (4, 8, 12)
    cosine_weight: NonNegative = 1.0
    hints: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    temperature: Positive = 1.0
    teacher: str | None = None
    teacher_sha256: str | None = None
    teacher_model: ModelConfig | None = None
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    teacher_cache: bool = True
    teacher_cache_bytes: PositiveInt = 20_000_000_000
    init: Literal["conv", "prefix"] = "conv"
    freeze_conv: bool = False

    @property
    def needs_labels(self) -> bool:
        return self.objectives.pseudo_labels > 0.0

    @property
    def predicts_masked(self) -> bool:
        """Whether an objective scores masked frames, with the student's masked-prediction head."""
        return self.objectives.pseudo_labels > 0.0 or self.objectives.logits > 0.0

    @property
    def layer_heads(self) -> tuple[int, ...]:
        """Teacher layers that the student's last layer predicts."""
        return self.layers if self.objectives.layers > 0.0 else ()

    @property
    def hint_heads(self) -> tuple[tuple[int, int], ...]:
        """Pairs (student layer, teacher layer) in use."""
        return self.hints if self.objectives.hints > 0.0 else ()

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Teacher layers in use, in order."""
        return tuple(sorted({*self.layer_heads, *(theirs for _, theirs in self.hint_heads)}))

    @property
    def needs_teacher_head(self) -> bool:
        """Whether the teacher's distribution over clusters is learned from."""
        return self.objectives.logits > 0.0

    @property
    def needs_whole_teacher(self) -> bool:
        """Whether the student may take over layers that no objective looks at."""
        return self.init == "prefix"

    def check_model(self, model: ModelConfig, init_from: str | None) -> None:
        if not self.teacher:
            raise ValueError(
                "task=distill needs task.teacher: a round checkpoint, a run's folder, or a file that `init_from` takes"
            )
        deepest = max((ours for ours, _ in self.hint_heads), default=0)
        if deepest > model.num_layers:
            raise ValueError(f"task.hints names layer {deepest} of the student, which has {model.num_layers} (model.num_layers)")
        if self.freeze_conv and init_from:
            raise ValueError(
                "task.freeze_conv=true takes the teacher's convolutions, and init_from brings others: leave one of them out"
            )

    @model_validator(mode="after")
    def _layers_given(self) -> Self:
        for name in self.objectives.active:
            if name in ("layers", "hints") and (
                not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name))
            ):
                raise ValueError(f"objectives.{name} has a weight, so `{name}` must name at least one, and none of them twice")
        return self


Task = Annotated[TaskConfig | DistillConfig, Field(discriminator="name"), WrapValidator(elsewhere.task), SerializeAsAny()]


class TargetsConfig(Model):
    """Where the pseudo-labels come from.

    ``source`` names what k-means sees: ``mfcc`` (100 Hz), or ``layer:N`` (50 Hz), the output of the N-th transformer layer, counted from 1, of
    the model in ``checkpoint``.
    """

    kind: Literal["kmeans", "precomputed"] = "kmeans"
    source: str = "mfcc"
    checkpoint: str | None = None
    num_clusters: Annotated[int, Field(ge=2)] = 500
    label_rate_hz: Literal[50, 100] = 100
    labels: str | None = None
    max_iterations: PositiveInt = 30
    tolerance: NonNegative = 1e-4
    max_frames_per_client: PositiveInt = 200_000
    seed_frames_per_client: PositiveInt = 20_000
    min_frames: PositiveInt = 20
    group_frames: PositiveInt = 1
    label_column: str | None = None
    label_values: tuple[str, ...] = ()

    @property
    def layer(self) -> int | None:
        """The transformer layer that k-means sees, from 1; None for MFCC and precomputed labels."""
        return int(self.source.removeprefix("layer:")) if self.kind == "kmeans" and self.source != "mfcc" else None

    @field_validator("source")
    @classmethod
    def _source_known(cls, source: str) -> str:
        if not re.fullmatch(r"mfcc|layer:[1-9][0-9]{0,2}", source):
            raise ValueError(f"{source!r} is neither mfcc nor layer:N with N from 1 on")
        return source

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_source(cls, values: Any) -> Any:
        """``label_rate_hz: null`` means the rate at which the source's labels come."""
        if isinstance(values, Mapping) and values.get("label_rate_hz") is None:
            return {**values, "label_rate_hz": 50 if str(values.get("source", "mfcc")).startswith("layer:") else 100}
        return values

    @model_validator(mode="after")
    def _labels_given(self) -> Self:
        if self.kind == "precomputed" and not self.labels:
            raise ValueError("kind=precomputed needs `labels`: a .km file, or column:NAME for a manifest column")
        rate_hz = 50 if self.layer else 100
        if self.kind == "kmeans" and self.label_rate_hz != rate_hz:
            raise ValueError(
                f"label_rate_hz={self.label_rate_hz}, but labels of source={self.source} come at {rate_hz} Hz; leave it out"
            )
        if bool(self.label_column) != bool(self.label_values):
            raise ValueError(
                "label_column and label_values belong together: the values, in an agreed order, keep their names on the sites"
            )
        if len(set(self.label_values)) < len(self.label_values):
            raise ValueError("label_values names a value twice")
        return self
