"""Sizes of an encoder from the shapes of its tensors, for files that do not say them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchaudio.models import wav2vec2_model

from fedhubert.config import ModelConfig
from fedhubert.formats.naming import ENCODER, LABELS
from fedhubert.models.frames import HUBERT_CONV_LAYERS
from fedhubert.models.reference import torchaudio_arguments

_CONVS = "wav2vec2.feature_extractor.conv_layers"
_LAYERS = "wav2vec2.encoder.transformer.layers"
_POSITIONS = "wav2vec2.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"

SHAPED = (
    "conv_norm",
    "conv_bias",
    "embed_dim",
    "num_layers",
    "ffn_dim",
    "pos_conv_kernel",
    "pos_conv_groups",
)
"""Fields that the shapes alone tell."""

STRUCTURE = ("conv_layers", *SHAPED, "num_heads", "layer_norm_first")
"""Fields that decide what the encoder computes."""

RELEASED = {  # embed_dim, ffn_dim, conv_norm
    (768, 3072, "group_norm"): {"num_heads": 12, "layer_norm_first": False},
    (1024, 4096, "layer_norm"): {"num_heads": 16, "layer_norm_first": True},
    (1280, 5120, "layer_norm"): {"num_heads": 16, "layer_norm_first": True},
}
"""What no shape tells, for the widths of HuBERT base, large and extra large (Hsu et al. 2021, table
1)."""


def missing_tensors(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names without which :func:`sizes_of` cannot tell the sizes."""
    needed = [f"{_CONVS}.0.conv.weight", f"{_LAYERS}.0.attention.q_proj.weight", _POSITIONS]
    return [
        name
        for name in [*needed, f"{_LAYERS}.0.feed_forward.intermediate_dense.weight"]
        if name not in state
    ]


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of :data:`SHAPED`, those of a head that is there, and ``conv_channels`` and
    ``conv_kernels``."""
    convolutions = [
        state[f"{_CONVS}.{index}.conv.weight"]
        for index in _numbers(state, rf"{_CONVS}\.(\d+)\.conv\.weight")
    ]
    positions = state[_POSITIONS]
    embed_dim = state[f"{_LAYERS}.0.attention.q_proj.weight"].shape[0]
    sizes: dict[str, Any] = {
        "conv_norm": "layer_norm" if f"{_CONVS}.1.layer_norm.weight" in state else "group_norm",
        "conv_bias": f"{_CONVS}.0.conv.bias" in state,
        "embed_dim": embed_dim,
        "num_layers": len(list(_numbers(state, rf"{_LAYERS}\.(\d+)\.attention\.q_proj\.weight"))),
        "ffn_dim": state[f"{_LAYERS}.0.feed_forward.intermediate_dense.weight"].shape[0],
        "pos_conv_kernel": positions.shape[2],
        "pos_conv_groups": embed_dim // positions.shape[1],
        "conv_channels": [weight.shape[0] for weight in convolutions],
        "conv_kernels": [weight.shape[2] for weight in convolutions],
    }
    if LABELS in state:
        sizes |= {"num_classes": state[LABELS].shape[0], "final_dim": state[LABELS].shape[1]}
    return sizes


def recipe_strides(kernels: list[int]) -> list[int] | None:
    """Return HuBERT's strides if these are HuBERT's kernels."""
    return (
        [stride for _, _, stride in HUBERT_CONV_LAYERS]
        if kernels == [kernel for _, kernel, _ in HUBERT_CONV_LAYERS]
        else None
    )


def encoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of an encoder with these sizes, in our names; allocates
    nothing."""
    arguments = {
        name: value
        for name, value in torchaudio_arguments(config).items()
        if name.startswith(("extractor_", "encoder_"))
    }
    with torch.device("meta"):
        encoder = wav2vec2_model(**arguments, aux_num_out=None)
    return {
        f"{ENCODER}{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()
    }


def _numbers(state: Iterable[str], pattern: str) -> list[int]:
    return sorted(int(match.group(1)) for name in state if (match := re.fullmatch(pattern, name)))
