"""The teacher of a distillation: what its task needs of it, named by its content, kept as safetensors, run in evaluation mode."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedhubert.config import DistillConfig, ModelConfig, from_json
from fedhubert.errors import CheckpointError, ConfigError, FedhubertError
from fedhubert.models.hubert import HubertModel, build_hubert

_ENCODER, _HEAD = "wav2vec2.", "logit_generator."
_LAYERS = "wav2vec2.encoder.transformer.layers."
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen HuBERT, without what the task does not need.

    Attributes:
        config: Its sizes; what only training uses is left at one fixed value, so that it does not change :attr:`sha256`.
        state: Its tensors in the names of :class:`~fedhubert.models.hubert.HubertModel`, float32 on the CPU: the encoder up to the deepest layer
            needed, and the head where its cluster distribution is.
    """

    config: ModelConfig
    state: Mapping[str, Tensor]

    @classmethod
    def cut(cls, config: ModelConfig, state: Mapping[str, Tensor], task: DistillConfig) -> "Teacher":
        """Return what ``task`` needs of a trained model.

        Raises:
            ConfigError: it has fewer layers than the task names.
            CheckpointError: it has no cluster head, and the task's ``logits`` need one; weights that do not fit its sizes.
        """
        needs_head = task.objectives.logits > 0.0
        if needs_head and not any(name.startswith(_HEAD) for name in state):
            raise CheckpointError(
                "task.objectives.logits needs a teacher with a cluster head, and this one has none", setting="task.teacher"
            )
        deepest = max(task.teacher_layers, default=1)
        if deepest > config.num_layers:
            raise ConfigError(
                f"task.layers or task.hints name layer {deepest}, the teacher has {config.num_layers}", setting="task.layers"
            )
        # `init=prefix` may take more layers than the objectives look at: such a teacher stays whole.
        depth = config.num_layers if needs_head or task.init == "prefix" else deepest
        off = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "feature_dropout", "layer_drop"), 0.0)
        fixed: dict[str, object] = {
            "name": "teacher",
            "label_init": "uniform",
            "feature_grad_mult": 1.0,
            "num_layers": depth,
            **off,
        }
        if not needs_head:
            fixed |= {"num_classes": 6, "final_dim": 1, "logit_temperature": 0.1}
        kept = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in state.items()
            if (name.startswith(_ENCODER) and _layer_of(name) < depth) or (needs_head and name.startswith(_HEAD))
        }
        teacher = cls(config.model_copy(update=fixed), kept)
        teacher.build(torch.device("cpu"))
        return teacher

    @cached_property
    def sha256(self) -> str:
        """Digest of configuration and weights."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for name in sorted(self.state):
            tensor = self.state[name]
            digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
            digest.update(np.ascontiguousarray(tensor.numpy(), dtype="<f4").data)
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state.values())

    @property
    def has_head(self) -> bool:
        """Whether it can tell its cluster distribution."""
        return any(name.startswith(_HEAD) for name in self.state)

    def build(self, device: torch.device, precision: str = "fp32") -> HubertModel:
        """Return the model in evaluation mode, without gradients; raises :class:`CheckpointError` when the weights do not fit its sizes."""
        model = build_hubert(self.config, seed=0)
        absent = {name for name in model.state_dict() if not name.startswith(_ENCODER) and name not in self.state}
        try:
            missing, unexpected = model.load_state_dict(dict(self.state), strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"the teacher's weights do not fit its configuration: {error}", setting="task.teacher"
            ) from None
        if set(missing) - absent or unexpected:
            raise CheckpointError(f"the teacher's weights: missing {missing}, unexpected {unexpected}", setting="task.teacher")
        return model.to(device, _DTYPES[precision]).eval().requires_grad_(False)


def teacher_file(folder: Path, sha256: str) -> Path:
    """Return where a teacher is kept; raises :class:`CheckpointError` for a digest that is none (it names a file)."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise CheckpointError("not the SHA-256 of a teacher", setting="task.teacher_sha256")
    return folder / f"{sha256}.safetensors"


def save_teacher(teacher: Teacher, folder: Path) -> None:
    """Keep ``teacher`` in ``folder``, whole or not at all; raises :class:`CheckpointError` when it cannot be written."""
    path = teacher_file(folder, teacher.sha256)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(teacher.state), scratch, metadata={"model": teacher.config.model_dump_json()})
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        raise CheckpointError(f"cannot keep the teacher in {folder}: {error}", setting="client.state_dir") from None


def find_teacher(folder: Path, sha256: str) -> Teacher | None:
    """Return a teacher from ``folder``, or None where it is not there or not what it was: it is then sent again."""
    path = teacher_file(folder, sha256)
    try:
        with safe_open(path, framework="pt") as file:
            config = from_json(ModelConfig, file.metadata()["model"])
            teacher = Teacher(config, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return teacher if teacher.sha256 == sha256 else None
    except (OSError, SafetensorError, FedhubertError, KeyError, TypeError):
        return None


def teacher_from_arrays(config_json: str, arrays: Mapping[str, np.ndarray], sha256: str) -> Teacher:
    """Return a teacher that was sent.

    Raises:
        CheckpointError: not the one announced.
        ConfigError: a configuration that is none.
    """
    state = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in arrays.items()}
    teacher = Teacher(from_json(ModelConfig, config_json), state)
    if teacher.sha256 != sha256:
        raise CheckpointError("the teacher that arrived is not the one announced", setting="task.teacher")
    return teacher


def _layer_of(name: str) -> int:
    """Return the transformer layer (from 0) that a parameter belongs to, -1 for what lies before them."""
    return int(name.removeprefix(_LAYERS).split(".")[0]) if name.startswith(_LAYERS) else -1
