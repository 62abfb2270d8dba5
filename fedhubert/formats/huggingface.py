"""Export to a HuggingFace folder that ``transformers.HubertModel.from_pretrained`` loads; of a
fine-tuned model one that ``transformers.pipeline`` takes."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fedhubert.config import ModelConfig
from fedhubert.formats.huggingface_heads import head_of
from fedhubert.formats.naming import HEAD, HUGGINGFACE, exported
from fedhubert.formats.source import Source


def write_huggingface(source: Source, folder: Path) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``preprocessor_config.json`` to an existing
    folder.

    The encoder and the mask embedding are exported; the masked-prediction head has no place in
    ``HubertModel``. A fine-tuned model brings its head, and of ``task=ctc`` its tokenizer.

    Raises:
        CheckpointError: the weights have a tensor that is no part of HuBERT.
    """
    tensors = {
        name: tensor.contiguous()
        for name, tensor in exported(source.state, HUGGINGFACE, without=(HEAD,)).items()
    }
    # with a mask probability above 0, HuggingFace's model has the mask embedding
    values = _model_json(source.config) | {
        "mask_time_prob": 0.05 if "masked_spec_embed" in tensors else 0.0
    }
    head, files = head_of(source.heads), {"preprocessor_config.json": _preprocessor_json()}
    if head is not None:
        tensors = {f"hubert.{name}": tensor for name, tensor in tensors.items()}
        tensors |= head.tensors(source.heads)
        values |= {"architectures": [head.architecture]}
        values |= head.settings(source.run["task"], source.config)
        files |= {name: dict(held) for name, held in head.files(source.run["task"]).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, held in {"config.json": values, **files}.items():
        _write_json(folder / name, held)


def _model_json(config: ModelConfig) -> dict[str, Any]:
    """Name everything that the recipe sets: several of HuggingFace's defaults (layer drop,
    dropouts) are other than HuBERT's."""
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
        "apply_spec_augment": True,
        "mask_time_length": 10,
        "torch_dtype": "float32",
    }


def _preprocessor_json() -> dict[str, Any]:
    """Waveforms go in as they are, as in pretraining; s3prl's loader needs the file, and the
    attention mask that it asks for."""
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
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
