"""What an export starts from: a round checkpoint whose configuration has been read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedhubert.config import MaskedTask, ModelConfig, Task, TaskConfig, validate
from fedhubert.errors import CheckpointError
from fedhubert.formats.fairseq_form import label_rate_of
from fedhubert.formats.naming import HEAD, MASK, OTHER_HEADS
from fedhubert.models.heads import is_objectives_own

HEADS_STAY = (
    "It was fine-tuned with a head for each client (task.head=personal), which stayed at their "
    "sites: this is the encoder alone."
)
"""Said of a model whose heads are not in its checkpoint."""
_TASK: TypeAdapter[MaskedTask] = TypeAdapter(Task)


@dataclass(frozen=True)
class Source:
    """A checkpoint to export.

    Attributes:
        config: Sizes of the encoder.
        state: Its weights in this package's names, without the heads that its objective added, and
            without the mask embedding and the masked-prediction head where no objective trained
            them.
        heads: The tensors of those heads.
        other_heads: Those of further sets of labels.
        run: The run's configuration, plain values; it may hold the model's part alone.
        round: The round that the model comes out of.
        metrics: ``federated_metrics`` of that round.
    """

    config: ModelConfig
    state: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    run: Mapping[str, Any]
    round: int
    metrics: Mapping[str, Any]
    other_heads: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "Source":
        """Read what :func:`~fedhubert.runs.store.load_checkpoint` returned.

        Raises:
            CheckpointError: the checkpoint does not say which shape its weights have.
            ConfigError: it says so in a way that this version does not know.
        """
        run = checkpoint["config"]
        if not isinstance(run.get("model"), dict):
            raise CheckpointError(
                "the checkpoint's config has no `model`: it does not say which shape the weights "
                "have"
            )
        config = validate(ModelConfig, run["model"])
        learned = _learned(run)
        untrained = (
            *(() if learned.hides_frames else (MASK,)),
            *(() if learned.predicts_masked else (HEAD,)),
        )
        state = {
            name: tensor
            for name, tensor in checkpoint["model"].items()
            if not is_objectives_own(name) and not name.startswith(untrained)
        }
        others = {
            name: tensor
            for name, tensor in checkpoint["model"].items()
            if name.startswith(OTHER_HEADS)
        }
        heads = {
            name: tensor for name, tensor in checkpoint["model"].items() if is_objectives_own(name)
        }
        return cls(
            config, state, heads, run, checkpoint["round"], checkpoint["federated_metrics"], others
        )

    @property
    def learned(self) -> MaskedTask:
        """The run's task; masked prediction where the checkpoint does not say, or says it in a way
        that this version does not know."""
        return _learned(self.run)

    @property
    def label_rate_hz(self) -> float:
        """Rate of the labels that the model was trained on."""
        return label_rate_of(self.run)

    @property
    def task(self) -> TaskConfig:
        """The masks that the model was trained with; the recipe's where the run had no masked
        prediction."""
        known = self.run.get("task") or {}
        masks = {
            name: known[name]
            for name in ("mask_probability", "mask_length_frames")
            if known.get(name)
        }
        return validate(TaskConfig, masks)


def _learned(run: Mapping[str, Any]) -> MaskedTask:
    """The run's task; masked prediction where the checkpoint does not say, or says it in a way that
    this version does not know."""
    try:
        return _TASK.validate_python(run["task"]) if run.get("task") else TaskConfig()
    except ValidationError:
        return TaskConfig()
