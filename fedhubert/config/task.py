"""What is learned: masked prediction, a teacher's outputs, or what people said of utterances."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, WrapValidator, model_validator

from fedhubert.config import elsewhere
from fedhubert.config.base import Model, NonNegative, Positive, PositiveInt
from fedhubert.config.finetune import ClassifyConfig, CtcConfig
from fedhubert.config.keys import key
from fedhubert.config.masked import MaskedTask
from fedhubert.config.model import ModelConfig


class TaskConfig(MaskedTask):
    """What is learned: masked prediction of pseudo-labels."""

    name: Literal["pretrain"] = "pretrain"
    """The task; ``task=NAME`` chooses it with its keys."""

    unmasked_weight: NonNegative = 0.0
    """Weight of the loss on frames that are not masked (fairseq's ``pred_nomask_weight``): 0 in the
    released recipes; small models learn several times faster with 1."""

    @property
    def weight_of_unmasked(self) -> float:
        return self.unmasked_weight


class ObjectivesConfig(Model):
    """Weights of the distillation objectives (see :mod:`fedhubert.objectives.distillation`); 0
    leaves one out."""

    layers: NonNegative = 1.0
    """Weight of the teacher's layers from the student's last one: L1 and cosine (DistilHuBERT)."""

    hints: NonNegative = 0.0
    """Weight of pairs of layers: mean squared error."""

    logits: NonNegative = 0.0
    """Weight of the teacher's cluster distribution on masked frames."""

    pseudo_labels: NonNegative = 0.0
    """Weight of HuBERT's own loss on k-means targets of the teacher (DiceHuBERT): with
    ``targets=layer``."""

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
    """A student that learns from a frozen teacher."""

    name: Literal["distill"] = "distill"
    """The task; ``task=NAME`` chooses it with its keys."""

    objectives: ObjectivesConfig = ObjectivesConfig()
    """Weights of what the student learns; 0 leaves one out."""

    layers: tuple[PositiveInt, ...] = (4, 8, 12)
    """Teacher layers, from 1, that the student's last layer predicts, each through a linear
    head."""

    cosine_weight: NonNegative = 1.0
    """Weight of the cosine term beside L1 in the objective ``layers``."""

    hints: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    """Pairs [student layer, teacher layer], from 1, of the objective ``hints``."""

    temperature: Positive = 1.0
    """Both distributions of the objective ``logits`` are softened by it."""

    teacher: str | None = key(
        None, resume="free", site="teacher", server_only=True, path=True, composed="???"
    )
    """A round checkpoint or a run's folder, or what ``init_from`` takes (HuggingFace, fairseq,
    s3prl, torchaudio). Resuming goes by its digest."""

    teacher_sha256: str | None = None
    """Refuse another teacher than the one with this digest; null: the run fills it in."""

    teacher_model: ModelConfig | None = None
    """Sizes of what is used of the teacher. The run fills it in."""

    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """The teacher's weights; bf16: half their memory."""

    teacher_cache: bool = key(True, resume="free")
    """Keep the teacher's outputs (fp16) on each site: later epochs skip its forward pass; same
    results."""

    teacher_cache_bytes: PositiveInt = key(20_000_000_000, unit="bytes", resume="free")
    """The most that a site's cache of the teacher's outputs takes on its disk."""

    init: Literal["conv", "prefix", "channels", "none"] = "conv"
    """What the student takes over of the teacher: its convolutions, or (prefix; same width) also
    projection, positions and first layers; of a teacher with wider ones the channels that matter
    most; or none."""

    freeze_conv: bool = False
    """The convolutions stay the teacher's; they do not travel, and their outputs are cached,
    too."""

    @property
    def needs_labels(self) -> bool:
        return self.objectives.pseudo_labels > 0.0

    @property
    def hides_frames(self) -> bool:
        return self.predicts_masked

    @property
    def predicts_masked(self) -> bool:
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
                "task=distill needs task.teacher: a round checkpoint, a run's folder, or a file "
                "that `init_from` takes"
            )
        if model.other_classes:
            raise ValueError("task=distill has one set of pseudo-labels: leave targets.sets out")
        deepest = max((ours for ours, _ in self.hint_heads), default=0)
        if deepest > model.num_layers:
            raise ValueError(
                f"task.hints names layer {deepest} of the student, which has {model.num_layers} "
                "(model.num_layers)"
            )
        if self.freeze_conv and self.init in ("channels", "none"):
            raise ValueError(
                "task.freeze_conv=true keeps the teacher's convolutions, and "
                f"task.init={self.init} gives the student others: leave one of them out"
            )
        if self.freeze_conv and init_from:
            raise ValueError(
                "task.freeze_conv=true takes the teacher's convolutions, and init_from brings "
                "others: leave one of them out"
            )

    @model_validator(mode="after")
    def _layers_given(self) -> Self:
        for name in self.objectives.active:
            if name in ("layers", "hints") and (
                not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name))
            ):
                raise ValueError(
                    f"objectives.{name} has a weight, so `{name}` must name at least one, and none "
                    "of them twice"
                )
        return self


Task = Annotated[
    TaskConfig | DistillConfig | ClassifyConfig | CtcConfig,
    Field(discriminator="name"),
    WrapValidator(elsewhere.task),
    SerializeAsAny(),
]
