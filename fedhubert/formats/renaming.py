"""The tensors of other tools' files under our names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats.naming import (
    ENCODER,
    FAIRSEQ,
    HEAD,
    HUGGINGFACE,
    LABELS,
    PROJECTION,
    TORCHAUDIO_ENCODER,
    Naming,
)
from fedhubert.formats.sources import ImportSource

_OURS = Naming(
    tuple(
        (prefix, prefix)
        for prefix in (ENCODER, "mask_generator.mask_embedding", "logit_generator.")
    )
)
_ANCHORS = (  # a tensor that each naming has, the longest name first: the others' are endings of it
    ("wav2vec2.encoder.feature_projection.layer_norm.weight", "ours"),
    ("encoder.feature_projection.layer_norm.weight", "torchaudio"),
    ("feature_projection.layer_norm.weight", "huggingface"),
    ("encoder.pos_conv.0.bias", "fairseq"),
)
_NO_PART = (
    "lm_head.",
    "projector.",
    "classifier.",
    "layer_weights",
    "quantizer.",
    "project_q.",
    "project_hid.",
    "proj.",
    "aux.",
)
"""Heads and leftovers of fine-tuning and of wav2vec 2.0, which the encoder's outputs do not depend
on."""


def in_our_names(found: ImportSource) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names in float32, and the names of those that are no part of
    HuBERT."""
    naming, prefix = _naming(found)
    state: dict[str, Tensor] = {}
    ignored = []
    for name, tensor in found.tensors.items():
        inside = name.startswith(prefix)
        ours = naming.ours(name.removeprefix(prefix)) if inside else None
        if ours is None:
            known = found.format == "fedhubert" or name.removeprefix(prefix).startswith(
                _NO_PART
            )  # a student's round has other heads
            if inside and not known:
                raise CheckpointError(f"{found.where} holds `{name}`, which HuBERT does not have")
            ignored.append(name)
            continue
        for old, new in (("conv.weight_g", "original0"), ("conv.weight_v", "original1")):
            if ours.endswith(f"pos_conv_embed.{old}"):
                ours = ours.removesuffix(old) + f"conv.parametrizations.weight.{new}"
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{found.where}: `{name}` is of type {tensor.dtype}; import the model before it "
                "was quantised"
            )
        state[ours] = tensor.detach().to(torch.float32).contiguous()
    ignored += _without_several_heads(state)
    return state, ignored


def _without_several_heads(state: dict[str, Tensor]) -> list[str]:
    """Take heads of several sets of labels out of ``state``, which fairseq keeps as one with a
    projection each; returns their names."""
    projection, labels = state.get(f"{HEAD}final_proj.weight"), state.get(LABELS)
    if projection is None or labels is None or len(projection) == labels.shape[1]:
        return []
    names = [name for name in state if name.startswith(HEAD)]
    for name in names:
        del state[name]
    return names


def _naming(found: ImportSource) -> tuple[Naming, str]:
    """Return whose names these are, and what stands before all of them (``hubert.``, ``module.``,
    ``w2v_encoder.w2v_model.``)."""
    for anchor, kind in _ANCHORS:
        prefixes = [name.removesuffix(anchor) for name in found.tensors if name.endswith(anchor)]
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{found.where} holds {len(prefixes)} encoders, under "
                f"{', '.join(map(repr, prefixes))}: save one of them alone"
            )
        if prefixes:
            layer_norm = any(".2.1." in name for name in found.tensors)
            fairseq = FAIRSEQ["layer_norm" if layer_norm else "group_norm"]
            namings = {
                "ours": _OURS,
                "torchaudio": TORCHAUDIO_ENCODER,
                "huggingface": HUGGINGFACE,
                "fairseq": fairseq,
            }
            return namings[kind], prefixes[0]
    shown = ", ".join(list(found.tensors)[:3])
    raise CheckpointError(
        f"{found.where} holds no HuBERT in the names of fairseq, HuggingFace or torchaudio (its "
        f"first tensors: {shown})"
    )


def identity_projection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what fairseq leaves out where the convolutions are as wide as the encoder."""
    width = state["wav2vec2.encoder.feature_projection.layer_norm.weight"].shape[0]
    if width != state["wav2vec2.encoder.transformer.layers.0.attention.q_proj.weight"].shape[0]:
        return {}  # not left out but missing
    return {f"{PROJECTION}weight": torch.eye(width), f"{PROJECTION}bias": torch.zeros(width)}


def with_special_rows(labels: Tensor, found: ImportSource, like: ModelConfig | None) -> Tensor:
    """Put fairseq's special rows before torchaudio's clusters: pointing away from their mean, so
    that they are never predicted."""
    if found.format == "weights" and like is not None and len(labels) == like.num_classes:
        return labels
    return torch.cat([-labels.mean(0, keepdim=True).expand(NUM_SPECIAL_ROWS, -1), labels])
