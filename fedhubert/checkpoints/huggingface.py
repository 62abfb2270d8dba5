"""Export to a HuggingFace folder that ``transformers.HubertModel.from_pretrained`` loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fedhubert.checkpoints.files import publish_folder
from fedhubert.config import ModelConfig, validate
from fedhubert.errors import CheckpointError

_PREFIXES = {
    "wav2vec2.feature_extractor.": "feature_extractor.",
    "wav2vec2.encoder.feature_projection.": "feature_projection.",
    "wav2vec2.encoder.transformer.": "encoder.",
    "mask_generator.mask_embedding": "masked_spec_embed",
}
_HEAD = "logit_generator."


def export_huggingface(checkpoint: Mapping[str, Any], out: Path, *, overwrite: bool = False) -> Path:
    """Write a checkpoint (of :func:`~fedhubert.checkpoints.store.load_checkpoint`) to the folder ``out``, which appears whole.

    ``overwrite`` lets the files be replaced in a folder that is not empty.

    Raises:
        CheckpointError: no model configuration in the checkpoint, weights of another model, or ``out`` is in use or cannot be written.
    """
    settings = checkpoint["config"].get("model")
    if not isinstance(settings, dict):
        raise CheckpointError("the checkpoint's config has no `model`: it does not say which shape the weights have")
    config = validate(ModelConfig, settings)
    publish_folder(out, lambda folder: write_huggingface(checkpoint["model"], config, folder), overwrite=overwrite)
    return out


def write_huggingface(state: Mapping[str, Tensor], config: ModelConfig, folder: Path) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``preprocessor_config.json`` to an existing folder.

    The encoder and the mask embedding are exported; the masked-prediction head has no place in ``HubertModel``.

    Raises:
        CheckpointError: ``state`` has a tensor that is no part of HuBERT.
    """
    tensors = {_renamed(name): tensor.contiguous() for name, tensor in state.items() if not name.startswith(_HEAD)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _model_json(config))
    _write_json(folder / "preprocessor_config.json", _preprocessor_json())


def _renamed(name: str) -> str:
    for ours, theirs in _PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise CheckpointError(f"the weights hold `{name}`, which HuBERT does not have")


def _model_json(config: ModelConfig) -> dict[str, Any]:
    """Name everything that the recipe sets: several of HuggingFace's defaults (layer drop, dropouts) are other than HuBERT's."""
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
        "feat_extract_norm": config.conv_norm.removesuffix("_norm"),
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
        "apply_spec_augment": True,  # with a mask probability above 0, HuggingFace's model has the mask embedding
        "mask_time_prob": 0.05,
        "mask_time_length": 10,
        "torch_dtype": "float32",
    }


def _preprocessor_json() -> dict[str, Any]:
    """Waveforms go in as they are, as in pretraining; s3prl's loader needs the file, and the attention mask that it asks for."""
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
