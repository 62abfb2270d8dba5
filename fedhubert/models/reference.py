"""torchaudio's model of the same sizes, whose encoder and initial weights ours has."""

from typing import Any

from torchaudio.models import hubert_pretrain_model

from fedhubert.config import ModelConfig


def torchaudio_arguments(config: ModelConfig) -> dict[str, object]:
    """Return the arguments with which ``torchaudio.models.hubert_pretrain_model`` builds this model
    (all tensors of the same name and shape)."""
    return {
        "extractor_mode": config.conv_norm,
        "extractor_conv_layer_config": list(config.conv_layers),
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.embed_dim,
        "encoder_projection_dropout": config.feature_dropout,
        "encoder_pos_conv_kernel": config.pos_conv_kernel,
        "encoder_pos_conv_groups": config.pos_conv_groups,
        "encoder_num_layers": config.num_layers,
        "encoder_num_heads": config.num_heads,
        "encoder_attention_dropout": config.attention_dropout,
        "encoder_ff_interm_features": config.ffn_dim,
        "encoder_ff_interm_dropout": config.activation_dropout,
        "encoder_dropout": config.dropout,
        "encoder_layer_norm_first": config.layer_norm_first,
        "encoder_layer_drop": config.layer_drop,
        "num_classes": config.num_classes,
        "final_dim": config.final_dim,
        "feature_grad_mult": None,
        "mask_prob": 0.8,
        "mask_selection": "static",
        "mask_other": 0.0,
        "mask_length": 10,
        "no_mask_overlap": False,
        "mask_min_space": 1,
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "mask_channel_length": 10,
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "skip_masked": False,
        "skip_nomask": True,
    }


def torchaudio_model(config: ModelConfig) -> Any:
    """torchaudio's pretraining model: for its encoder and its initial weights. Its masking and its
    head stay unused."""
    return hubert_pretrain_model(**torchaudio_arguments(config))
