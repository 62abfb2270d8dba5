"""The teacher of a distillation: read on the server, named by its content, brought to the sites."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhubert.config import Config, ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats.importing import encoder_sha256, import_on_server
from fedhubert.models.hubert import HubertModel
from fedhubert.models.teacher import Teacher
from fedhubert.objectives.objective import Objective
from fedhubert.objectives.spec import spec_of
from fedhubert.training.teacher_runner import TeacherRunner

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class ServerTeacher:
    """A run's teacher on the server.

    Attributes:
        teacher: What the task needs of it.
        encoder_parameters: Of the whole encoder that it was cut from.
        lineage: What checkpoints say of it.
    """

    teacher: Teacher
    encoder_parameters: int
    lineage: Mapping[str, object]


def load_teacher(source: str) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Return sizes and tensors (our names, float32) of the trained model at ``source``: whatever
    ``init_from`` takes.

    Raises:
        CheckpointError: nothing usable there.
    """
    imported = import_on_server(source)
    if imported.assumed:
        log.warning(
            "%s does not say %s: taken as in the released HuBERTs of its width",
            source,
            ", ".join(imported.assumed),
        )
    if imported.normalize:
        log.warning(
            "%s asks for normalised waveforms (zero mean, unit variance); here they go in as they "
            "are",
            source,
        )
    return imported.config, imported.state


def with_teacher(config: Config) -> tuple[Config, ServerTeacher | None]:
    """Return ``config`` with its teacher's digest and sizes filled in, and the teacher; as it is,
    and None, for other tasks.

    Raises:
        CheckpointError: nothing usable at ``task.teacher``, or another teacher than the digest that
            is given names.
        ConfigError: a teacher that lacks what the task asks for.
    """
    task = spec_of(config.task).taught
    if task is None:
        return config, None
    sizes, state = load_teacher(str(task.teacher))
    teacher = Teacher.cut(sizes, state, task)
    if task.teacher_sha256 not in (None, teacher.key):
        raise CheckpointError(
            f"task.teacher={task.teacher} gives a teacher with SHA-256 {teacher.key}, "
            f"task.teacher_sha256 names another: {task.teacher_sha256}",
            setting="task.teacher",
        )
    filled = config.task.model_copy(
        update={"teacher_sha256": teacher.key, "teacher_model": teacher.config}
    )
    parameters = sum(
        tensor.numel() for name, tensor in state.items() if name.startswith("wav2vec2.")
    )
    lineage = {
        "encoder_sha256": encoder_sha256(state),
        "sha256": teacher.key,
        "encoder_parameters": parameters,
    }
    return config.model_copy(update={"task": filled}), ServerTeacher(teacher, parameters, lineage)


def prepare_student(model: HubertModel, config: Config, teacher: ServerTeacher) -> None:
    """Give the student its teacher's part, and say how large the two are."""
    spec = spec_of(config.task)
    copied = spec.init_from_teacher(model, teacher.teacher.state)
    ours = encoder_size(model)
    log.info(
        "student %s: %.2f M encoder parameters, %.2f times smaller than its teacher's %.2f M; %d "
        "tensors taken over%s",
        config.model.name,
        ours / 1e6,
        teacher.encoder_parameters / ours,
        teacher.encoder_parameters / 1e6,
        len(copied),
        ", the convolutions frozen" if spec.taught and spec.taught.freeze_conv else "",
    )


def encoder_size(model: HubertModel) -> int:
    """Return the number of the encoder's parameters, frozen ones included."""
    return sum(int(parameter.numel()) for parameter in model.wav2vec2.parameters())


def server_objective(
    config: Config, teacher: ServerTeacher | None, device: torch.device | None = None
) -> Objective:
    """Return what the task trains and scores on ``device`` (None: the CPU), with its teacher, if it
    has one, and no cache of its outputs."""
    spec, on = spec_of(config.task), device or torch.device("cpu")
    return spec.loss(
        TeacherRunner(teacher.teacher, spec.taught, on) if teacher and spec.taught else None
    )
