"""The student of a distillation: a HuBERT encoder with linear heads that predict a teacher's
layers.

The heads are parameters like all others: they are trained, aggregated and kept in checkpoints.
Exports leave them out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedhubert.config import DistillConfig, ModelConfig
from fedhubert.errors import ConfigError
from fedhubert.models.hubert import HubertModel
from fedhubert.models.narrowing import narrowed
from fedhubert.seeding import derive_seed

HEADS = "distill_heads."
"""What the names of the heads' parameters begin with."""

_CONV = "wav2vec2.feature_extractor."
_BEFORE_LAYERS = (
    _CONV,
    "wav2vec2.encoder.feature_projection.",
    "wav2vec2.encoder.transformer.pos_conv_embed.",
    "wav2vec2.encoder.transformer.layer_norm.",
)
_LAYERS = "wav2vec2.encoder.transformer.layers."


def add_heads(model: HubertModel, task: DistillConfig, seed: int) -> None:
    """Give a model its heads, and freeze what the task does not train, so that it does not travel.

    ``distill_heads.layers.L``: from the last layer to the teacher's layer L;
    ``distill_heads.hints.S-L``: from layer S to the teacher's layer L.

    Raises:
        ConfigError: see :func:`check_fit`.
    """
    teacher = check_fit(model.config, task)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "distill/heads"))
        ours, theirs = model.config.embed_dim, teacher.embed_dim
        layers = nn.ModuleDict({str(layer): nn.Linear(ours, theirs) for layer in task.layer_heads})
        hints = nn.ModuleDict(
            {f"{student}-{layer}": nn.Linear(ours, theirs) for student, layer in task.hint_heads}
        )
        model.distill_heads = nn.ModuleDict({"layers": layers, "hints": hints})
    if task.freeze_conv:
        model.wav2vec2.feature_extractor.requires_grad_(False)
    if not task.predicts_masked:
        model.mask_generator.requires_grad_(False)
        model.logit_generator.requires_grad_(False)


def check_fit(student: ModelConfig, task: DistillConfig) -> ModelConfig:
    """Return the teacher's sizes.

    Raises:
        ConfigError: the teacher's are not known yet; it lacks a layer, or has other convolutions
            (``init=channels``: fewer channels; ``init=none``: other kernels or strides), another
            width (``init=prefix``), or other classes (``logits``) than the student; by the key.
    """
    teacher = task.teacher_model
    if teacher is None:
        raise ConfigError(
            "the teacher's sizes are not known: give task.teacher", setting="task.teacher"
        )
    own = task.init in ("channels", "none")
    names = [] if own else ["conv_layers", "conv_norm", "conv_bias"]
    if task.init == "channels":
        names += ["conv_norm", "conv_bias"]
    if task.init == "prefix":
        names += [
            "embed_dim",
            "num_heads",
            "ffn_dim",
            "pos_conv_kernel",
            "pos_conv_groups",
            "layer_norm_first",
        ]
    if task.objectives.logits > 0.0:
        names += ["num_classes"]
    for name in names:
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            remedy = (
                "set targets.num_clusters to the teacher's"
                if name == "num_classes"
                else f"set model.{name} to the teacher's"
            )
            if name == "conv_layers":
                remedy += ", or let the student have its own (task.init=channels or none)"
            raise ConfigError(
                f"model.{name} is {ours}, but the teacher's is {theirs}: {remedy}",
                setting=f"model.{name}",
            )
    if _steps(student) != _steps(teacher):
        raise ConfigError(
            f"model.conv_layers has kernels and strides {_steps(student)}, the teacher "
            f"{_steps(teacher)}: their frames would not meet; "
            "the student may have other channels alone",
            setting="model.conv_layers",
        )
    channels = [[out for out, _, _ in config.conv_layers] for config in (student, teacher)]
    if task.init == "channels" and any(map(int.__gt__, *channels)):
        raise ConfigError(
            f"model.conv_layers has {channels[0]} channels, the teacher {channels[1]}: "
            "task.init=channels takes some of its; set task.init=none",
            setting="model.conv_layers",
        )
    deepest = max(task.teacher_layers, default=0)
    if deepest > teacher.num_layers or (
        task.init == "prefix" and student.num_layers > teacher.num_layers
    ):
        raise ConfigError(
            f"the teacher has {teacher.num_layers} layers, fewer than task.layers, task.hints or "
            "task.init=prefix ask for",
            setting="task.layers",
        )
    return teacher


def _steps(config: ModelConfig) -> list[tuple[int, int]]:
    """Kernel and stride of each convolution."""
    return [(kernel, stride) for _, kernel, stride in config.conv_layers]


def init_from_teacher(
    model: HubertModel, state: Mapping[str, Tensor], task: DistillConfig
) -> list[str]:
    """Copy the teacher's part of ``model`` (``task.init``) from the teacher's ``state``; returns
    the names of what was copied.

    Raises:
        ConfigError: a tensor that the teacher lacks or has in another shape, by name.
    """
    own = model.state_dict()
    if task.init == "channels":
        taken = narrowed(state, [channels for channels, _, _ in model.config.conv_layers])
        model.load_state_dict(own | taken)
        return list(taken)
    wanted = {"none": (), "conv": (_CONV,), "prefix": _BEFORE_LAYERS}[task.init]
    names = [
        name
        for name in own
        if name.startswith(wanted) or (task.init == "prefix" and name.startswith(_LAYERS))
    ]
    for name in names:
        found = state.get(name)
        if found is None or found.shape != own[name].shape:
            has = "lacks it" if found is None else f"has {tuple(found.shape)}"
            raise ConfigError(
                f"task.init={task.init}: {name} is {tuple(own[name].shape)} in the student, the "
                f"teacher {has}",
                setting="model",
            )
    model.load_state_dict(own | {name: state[name] for name in names})
    return names
