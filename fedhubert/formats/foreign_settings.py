"""Settings of other tools' HuBERT as fields of :class:`~fedhubert.config.ModelConfig`.

A setting with which their model would compute something else than ours is refused by name.
"""

import ast
from collections.abc import Mapping
from typing import Any

from fedhubert.errors import CheckpointError, quoted
from fedhubert.models.frames import HUBERT_CONV_LAYERS

Fields = dict[str, Any]

_HUGGINGFACE = {  # ours: (theirs, their default, which their files may leave out)
    "embed_dim": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "ffn_dim": ("intermediate_size", 3072),
    "conv_bias": ("conv_bias", False),
    "pos_conv_kernel": ("num_conv_pos_embeddings", 128),
    "pos_conv_groups": ("num_conv_pos_embedding_groups", 16),
    "layer_norm_first": ("do_stable_layer_norm", False),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.1),
    "feature_dropout": ("feat_proj_dropout", 0.0),
    "layer_drop": ("layerdrop", 0.1),
}
_HUGGINGFACE_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "layer_norm_eps": 1e-5,
}
_FAIRSEQ = {
    "embed_dim": ("encoder_embed_dim", 768),
    "num_layers": ("encoder_layers", 12),
    "num_heads": ("encoder_attention_heads", 12),
    "ffn_dim": ("encoder_ffn_embed_dim", 3072),
    "conv_bias": ("conv_bias", False),
    "pos_conv_kernel": ("conv_pos", 128),
    "pos_conv_groups": ("conv_pos_groups", 16),
    "layer_norm_first": ("layer_norm_first", False),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "feature_dropout": ("dropout_input", 0.0),
    "layer_drop": ("encoder_layerdrop", 0.0),
    "feature_grad_mult": ("feature_grad_mult", 1.0),
    "logit_temperature": ("logit_temp", 0.1),
}
_FAIRSEQ_FIXED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "target_glu": False,
}
_TORCHAUDIO = {
    "conv_norm": "extractor_mode",
    "conv_bias": "extractor_conv_bias",
    "embed_dim": "encoder_embed_dim",
    "feature_dropout": "encoder_projection_dropout",
    "pos_conv_kernel": "encoder_pos_conv_kernel",
    "pos_conv_groups": "encoder_pos_conv_groups",
    "num_layers": "encoder_num_layers",
    "num_heads": "encoder_num_heads",
    "attention_dropout": "encoder_attention_dropout",
    "ffn_dim": "encoder_ff_interm_features",
    "activation_dropout": "encoder_ff_interm_dropout",
    "dropout": "encoder_dropout",
    "layer_norm_first": "encoder_layer_norm_first",
    "layer_drop": "encoder_layer_drop",
}


def from_huggingface(settings: Mapping[str, Any], where: str) -> Fields:
    """Translate a ``config.json``; raises :class:`CheckpointError` if it is not of a HuBERT that
    this package can hold."""
    if settings.get("model_type") != "hubert":
        raise CheckpointError(
            f"{where}: model_type is {quoted(settings.get('model_type'))}, and only `hubert` can "
            "be imported"
        )
    _fixed(settings, _HUGGINGFACE_FIXED, where)
    fields = _translated(settings, _HUGGINGFACE)
    default = [list(column) for column in zip(*HUBERT_CONV_LAYERS, strict=True)]
    columns = [
        settings.get(name, value)
        for name, value in zip(("conv_dim", "conv_kernel", "conv_stride"), default, strict=True)
    ]
    if len({len(column) for column in columns}) != 1:
        raise CheckpointError(
            f"{where}: conv_dim, conv_kernel and conv_stride are not equally long"
        )
    return fields | {
        "conv_layers": tuple(zip(*columns, strict=True)),
        "conv_norm": f"{settings.get('feat_extract_norm', 'group')}_norm",
    }


def from_fairseq(settings: Mapping[str, Any], where: str) -> Fields:
    """Translate fairseq's ``hubert`` settings (s3prl's ``model_cfg``); raises
    :class:`CheckpointError` like :func:`from_huggingface`."""
    _fixed(settings, _FAIRSEQ_FIXED, where)
    mode = settings.get("extractor_mode", "default")
    if mode not in ("default", "layer_norm"):
        raise CheckpointError(
            f"{where}: extractor_mode is {quoted(mode)}, and only `default` and `layer_norm` can "
            "be imported"
        )
    fields = _translated(settings, _FAIRSEQ) | {
        "conv_norm": "group_norm" if mode == "default" else "layer_norm"
    }
    layers = settings.get("conv_feature_layers")
    return fields | {
        "conv_layers": HUBERT_CONV_LAYERS if layers is None else _parsed_layers(layers, where)
    }


def from_torchaudio(arguments: Mapping[str, Any], where: str) -> Fields:
    """Translate the arguments of torchaudio's ``wav2vec2_model`` or ``hubert_pretrain_model``;
    raises :class:`CheckpointError` if one is missing."""
    missing = [theirs for theirs in _TORCHAUDIO.values() if theirs not in arguments]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}")
    layers = arguments.get("extractor_conv_layer_config") or HUBERT_CONV_LAYERS
    fields = {ours: arguments[theirs] for ours, theirs in _TORCHAUDIO.items()} | {
        "conv_layers": tuple(map(tuple, layers))
    }
    return fields | {
        name: arguments[name] for name in ("feature_grad_mult",) if arguments.get(name) is not None
    }


def _translated(settings: Mapping[str, Any], table: Mapping[str, tuple[str, Any]]) -> Fields:
    return {ours: settings.get(theirs, default) for ours, (theirs, default) in table.items()}


def _fixed(settings: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{where}: {name} is {quoted(settings[name])}; fedhubert's HuBERT has {value!r}, "
                "so it would compute something else"
            )


def _parsed_layers(text: Any, where: str) -> tuple[tuple[int, int, int], ...]:
    """Read ``[(512,10,5)] + [(512,3,2)] * 4`` without evaluating it."""
    try:
        layers = _evaluated(ast.parse(text, mode="eval").body) if isinstance(text, str) else text
        return tuple(
            (int(channels), int(kernel), int(stride)) for channels, kernel, stride in layers
        )
    except (SyntaxError, ValueError, TypeError):
        raise CheckpointError(
            f"{where}: conv_feature_layers is {quoted(text)}, not a list of (channels, kernel, "
            "stride)"
        ) from None


def _evaluated(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_evaluated(node.left), *_evaluated(node.right)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        times = _evaluated(node.right)
        if not isinstance(times, int) or not 0 < times <= 64:
            raise ValueError
        return _evaluated(node.left) * times
    return ast.literal_eval(node)
