"""Export to a HuggingFace directory that ``transformers.HubertModel.from_pretrained`` loads."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedhubert.config import ModelConfig

_RENAMED = (
    (r"^wav2vec2\.feature_extractor\.", "feature_extractor."),
    (r"^wav2vec2\.encoder\.feature_projection\.", "feature_projection."),
    (r"^wav2vec2\.encoder\.transformer\.pos_conv_embed\.", "encoder.pos_conv_embed."),
    (r"^wav2vec2\.encoder\.transformer\.", "encoder."),
    (r"^mask_generator\.mask_embedding$", "masked_spec_embed"),
)


def write_huggingface(state: dict[str, torch.Tensor], config: ModelConfig, folder: Path) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``preprocessor_config.json`` to an existing folder.

    The encoder and the mask embedding are exported; the masked-prediction head has no place in ``HubertModel``.
    """
    tensors = {renamed: tensor.contiguous() for name, tensor in state.items() if (renamed := _renamed(name)) is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _model_json(config))
    _write_json(folder / "preprocessor_config.json", _preprocessor_json())


def _renamed(name: str) -> str | None:
    for pattern, replacement in _RENAMED:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def _model_json(config: ModelConfig) -> dict[str, Any]:
    channels, kernels, strides = zip(*config.conv_layers, strict=True)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim,
        "hidden_act": "gelu",
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.feature_dropout,
        "feat_proj_layer_norm": True,
        "layerdrop": config.layer_drop,
        "layer_norm_eps": 1e-5,
        "feat_extract_norm": "group" if config.conv_norm == "group_norm" else "layer",
        "feat_extract_activation": "gelu",
        "conv_dim": list(channels),
        "conv_kernel": list(kernels),
        "conv_stride": list(strides),
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": len(config.conv_layers),
        "num_conv_pos_embeddings": config.pos_conv_kernel,
        "num_conv_pos_embedding_groups": config.pos_conv_groups,
        "conv_pos_batch_norm": False,
        "do_stable_layer_norm": config.layer_norm_first,
        "apply_spec_augment": True,
        "mask_time_prob": 0.05,
        "torch_dtype": "float32",
    }


def _preprocessor_json() -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": False,
        "return_attention_mask": True,
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
