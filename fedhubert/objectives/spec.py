"""What the rest of the system has to know of an objective, and where to find one by its task's
name.

A new one is a file in this room: its loss (see :mod:`fedhubert.objectives.objective`), and a class
registered by the name of its task.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fedhubert.config import DataConfig, MaskedTask, ModelConfig
from fedhubert.config.elsewhere import TASKS
from fedhubert.data.annotated import Annotations
from fedhubert.data.manifest import Manifest
from fedhubert.errors import ConfigError
from fedhubert.models.adapters import add_adapters
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.teacher import TaughtTask
from fedhubert.models.trainable import freeze
from fedhubert.objectives.objective import Objective, TeacherSource
from fedhubert.registry import Registry


class ObjectiveSpec:
    """An objective under the settings of ``task``: by default one of a plain HuBERT that needs no
    teacher."""

    fixed_crops: ClassVar[bool] = False
    """Whether an utterance is cut in the same place in every epoch."""

    whole_utterances: ClassVar[bool] = False
    """Whether utterances are heard from beginning to end, for labels of their own, and not in crops
    of equal length."""

    counted: ClassVar[str] = "frames"
    """The sum, and the figure, that counts the frames scored."""

    words: ClassVar[Mapping[str, str]] = {"loss": "loss"}
    """Figures for the log, and what they are called there."""

    def __init__(self, task: MaskedTask) -> None:
        self.task = task

    @property
    def needs_labels(self) -> bool:
        """Whether pseudo-labels are predicted."""
        return self.task.needs_labels

    @property
    def taught(self) -> TaughtTask | None:
        """What is asked of a teacher; None: there is none."""
        return None

    @property
    def sum_names(self) -> tuple[str, ...]:
        """Return the names of the sums that the loss reports, in a fixed order: what a secure sum
        has of a client's figures."""
        raise ConfigError(
            f"task={self.task.name} does not name its sums (ObjectiveSpec.sum_names), which "
            "secure.protocol=pairwise goes by",
            setting="secure.protocol",
        )

    @property
    def trained_sum_names(self) -> tuple[str, ...]:
        """Return those of them that training reports, too; the others are figures of scores
        alone."""
        return self.sum_names

    def largest(self, frames: float, utterances: float) -> Mapping[str, float]:
        """Return what the sums over so many 50-Hz frames, of so many utterances, can be at most:
        what a server believes. Names that are left out are bounded by those of masked
        prediction."""
        return {}

    def annotations(self, manifest: Manifest, data: DataConfig) -> Annotations | None:
        """Return what was said of each utterance of a manifest, as numbers; None for an objective
        on pseudo-labels, or on none.

        Raises:
            DataError: the manifest lacks the column that the task names.
            ConfigError: the task names none, or a package that the task needs is not installed.
        """
        return None

    def build_model(self, config: ModelConfig, seed: int) -> HubertModel:
        """Build what is trained, from configuration and seed alone.

        Modules that the objective adds end in ``_head`` or ``_heads``: they are trained and kept
        with the rest, and exports leave them out.

        Raises:
            ConfigError: a model that does not fit its teacher.
        """
        return build_hubert(config, seed)

    def example_labels(self, num_samples: int) -> tuple[int, ...]:
        """Return labels that an utterance of so many samples may have, to measure speed with; of an
        objective on whole utterances."""
        raise NotImplementedError

    def init_from_teacher(self, model: HubertModel, state: Mapping[str, Tensor]) -> list[str]:
        """Copy the teacher's part of ``model`` from the teacher's ``state``; returns the names of
        what was copied.

        Raises:
            ConfigError: a tensor that the teacher lacks or has in another shape, by name.
        """
        return []

    def loss(self, teacher: TeacherSource | None = None) -> Objective:
        """Return what training calls with a model and a batch; ``teacher`` where one is needed."""
        raise NotImplementedError

    def metrics(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return what is reported of the loss's sums, added up over batches and clients; empty
        without any.

        Raises:
            KeyError: a sum is missing.
        """
        return self.combine(sums) if sums else {}

    def combine(self, sums: Mapping[str, float]) -> dict[str, object]:
        """Return ``loss``, :attr:`counted` and whatever else there is to report, by name; raises
        ``KeyError``."""
        raise NotImplementedError

    def device_bytes(self, teacher_bytes: int) -> float:
        """Return the memory that a client's device holds for the objective beside the model, for
        ``fedhubert plan``."""
        if self.taught is None:
            return 0.0
        return teacher_bytes / 2 if self.taught.teacher_precision == "bf16" else teacher_bytes

    def site_bytes(self, teacher_bytes: int) -> float:
        """Return the bytes that a site keeps on its disk for the objective, labels not counted, for
        ``fedhubert plan``."""
        if self.taught is None:
            return 0.0
        return teacher_bytes + self.taught.teacher_cache * self.taught.teacher_cache_bytes


_OBJECTIVES: Registry[type[ObjectiveSpec]] = Registry(__package__)

register = _OBJECTIVES.register
"""Decorator: ``@register("pretrain")`` before an :class:`ObjectiveSpec`; the name is that of the
task."""


def register_task(task: type[MaskedTask]) -> type[MaskedTask]:
    """Decorator: let the configuration take a task whose keys do not stand in
    :mod:`fedhubert.config`."""
    TASKS[task.model_fields["name"].default] = task
    return task


def spec_of(task: MaskedTask) -> ObjectiveSpec:
    """Return the objective of a task."""
    return _OBJECTIVES[task.name](task)


def build_model(config: ModelConfig, task: MaskedTask, seed: int) -> HubertModel:
    """Build what ``task`` trains: see :meth:`ObjectiveSpec.build_model`; what ``model.trainable``
    leaves out is frozen, and adapters are added."""
    model = spec_of(task).build_model(config, seed)
    if config.trainable == "adapters":
        add_adapters(model, seed)
    freeze(model, config.trainable)
    return model
