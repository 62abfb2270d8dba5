"""The teacher of a distillation: what its task needs of it, run in evaluation mode."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.models.frozen import ENCODER, NO_HEAD, UNUSED, FrozenModel, layer_of
from fedhubert.models.hubert import HubertModel, build_hubert

_HEAD = "logit_generator."
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TaughtTask(Protocol):
    """What a task with a teacher says of it: :class:`~fedhubert.config.DistillConfig` is one.

    Attributes:
        teacher: Where the server finds it.
        teacher_sha256: The digest of what is used of it, once that is known.
        teacher_precision: Of its weights: ``fp32`` or ``bf16``.
        teacher_cache, teacher_cache_bytes: Whether a site keeps its outputs, and in how much of its
            disk.
        teacher_layers: Its layers that are learned from, from 1, in order.
        needs_teacher_head: Whether its distribution over clusters is learned from.
        needs_whole_teacher: Whether all of its layers are needed, whatever is learned from.
        freeze_conv: Whether its convolutions' features are the student's, too.
    """

    @property
    def teacher(self) -> str | None: ...
    @property
    def teacher_sha256(self) -> str | None: ...
    @property
    def teacher_precision(self) -> str: ...
    @property
    def teacher_cache(self) -> bool: ...
    @property
    def teacher_cache_bytes(self) -> int: ...
    @property
    def teacher_layers(self) -> tuple[int, ...]: ...
    @property
    def needs_teacher_head(self) -> bool: ...
    @property
    def needs_whole_teacher(self) -> bool: ...
    @property
    def freeze_conv(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Teacher(FrozenModel):
    """A frozen HuBERT, without what the task does not need.

    ``state`` has the names of :class:`~fedhubert.models.hubert.HubertModel`: the encoder up to the
    deepest layer needed, and the head where its cluster distribution is. ``key`` is a SHA-256.
    """

    noun = "teacher"
    key_noun = "SHA-256 of a teacher"
    error = CheckpointError
    setting = "task.teacher"
    key_setting = "task.teacher_sha256"

    @classmethod
    def cut(cls, config: ModelConfig, state: Mapping[str, Tensor], task: TaughtTask) -> "Teacher":
        """Return what ``task`` needs of a trained model.

        Raises:
            ConfigError: it has fewer layers than the task names.
            CheckpointError: it has no cluster head, and the task's ``logits`` need one; weights
                that do not fit its sizes.
        """
        needs_head = task.needs_teacher_head
        if needs_head and not any(name.startswith(_HEAD) for name in state):
            raise CheckpointError(
                "task.objectives.logits needs a teacher with a cluster head, and this one has none",
                setting="task.teacher",
            )
        deepest = max(task.teacher_layers, default=1)
        if deepest > config.num_layers:
            raise ConfigError(
                f"task.layers or task.hints name layer {deepest}, the teacher has "
                f"{config.num_layers}",
                setting="task.layers",
            )
        # `init=prefix` may take more layers than the objectives look at: such a teacher stays
        # whole.
        depth = config.num_layers if needs_head or task.needs_whole_teacher else deepest
        fixed = {
            "name": "teacher",
            "num_layers": depth,
            **UNUSED,
            **({} if needs_head else NO_HEAD),
        }
        kept = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in state.items()
            if (name.startswith(ENCODER) and layer_of(name) < depth)
            or (needs_head and name.startswith(_HEAD))
        }
        teacher = cls(config.model_copy(update=fixed), kept)
        teacher.build(torch.device("cpu"))
        return teacher

    def build(self, device: torch.device, precision: str = "fp32") -> HubertModel:
        """Return the model in evaluation mode, without gradients; raises :class:`CheckpointError`
        when the weights do not fit its sizes."""
        model = build_hubert(self.config, seed=0)
        absent = {
            name
            for name in model.state_dict()
            if not name.startswith(ENCODER) and name not in self.state
        }
        try:
            missing, unexpected = model.load_state_dict(dict(self.state), strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"the teacher's weights do not fit its configuration: {error}",
                setting="task.teacher",
            ) from None
        if set(missing) - absent or unexpected:
            raise CheckpointError(
                f"the teacher's weights: missing {missing}, unexpected {unexpected}",
                setting="task.teacher",
            )
        return model.to(device, _DTYPES[precision]).eval().requires_grad_(False)
