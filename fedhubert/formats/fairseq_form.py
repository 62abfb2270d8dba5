"""The form that fairseq and s3prl's ``hubert_local`` load: their names, their settings, one
embedding row per dictionary symbol."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig, TaskConfig, validate
from fedhubert.config.target_sets import MAX_SETS
from fedhubert.errors import CheckpointError, FedhubertError
from fedhubert.formats.naming import ENCODER, FAIRSEQ, HEAD, LABELS, MASK, OTHER_HEADS
from fedhubert.models.adapters import merged

log = logging.getLogger(__name__)

SPECIAL_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>"]
"""What fairseq's Dictionary holds before the clusters."""


def hubert_local_fields(
    config: ModelConfig, state: Mapping[str, Tensor], label_rate_hz: float = 50.0
) -> dict[str, Any]:
    """Return the entries that make a checkpoint one of s3prl 0.4.18's ``hubert_local``.

    Args:
        config: Sizes of the encoder.
        state: ``state_dict`` in this package's names. Without a head (a student) or a mask
            embedding neutral ones are put in, which the encoder's outputs do not depend on; tensors
            that are no part of HuBERT are left out.
        label_rate_hz: Rate of the labels that the model was trained on.

    Returns:
        ``task_cfg``, ``model_cfg``, ``model_weight`` (the same tensors, not copies, but for the
        heads of several sets of labels) and ``dictionaries_symbols``; plain values and tensors.

    Raises:
        CheckpointError: the encoder has no exact form there (see :func:`fairseq_state`).
    """
    weights = fairseq_state(config, state)
    return {
        "task_cfg": task_settings(label_rate_hz),
        "model_cfg": model_settings(config, label_rate_hz, sets=len(heads_in(state))),
        "model_weight": weights,
        "dictionaries_symbols": dictionaries(weights, state),
    }


def round_fields(run: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return :func:`hubert_local_fields` for a round checkpoint, by the run's configuration; with a
    warning, nothing where they do not exist."""
    settings = run.get("model")
    if not isinstance(settings, Mapping) or not any(name.startswith(ENCODER) for name in state):
        return {}
    try:
        config = validate(ModelConfig, settings)
        whole = merged(state, config.adapter_alpha)
        return hubert_local_fields(config, whole, label_rate_of(run))
    except FedhubertError as error:
        log.warning("this checkpoint will not load in s3prl: %s", error)
        return {}


def label_rate_of(run: Mapping[str, Any]) -> float:
    """Return the label rate in Hz that a run's configuration (plain values) names; 50, the
    encoder's own, if it names none."""
    targets = run.get("targets")
    return float(targets.get("label_rate_hz", 50.0)) if isinstance(targets, Mapping) else 50.0


def fairseq_state(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder, mask embedding and head in fairseq's names; see
    :func:`hubert_local_fields`. Heads of several sets of labels are one, each with its own rows of
    the projection (``untie_final_proj``).

    Raises:
        CheckpointError: the last convolution is as wide as the encoder: fairseq leaves the
            projection between them out there.
    """
    if config.conv_layers[-1][0] == config.embed_dim:
        raise CheckpointError(
            f"the last convolution and the encoder are both {config.embed_dim} wide "
            "(model.conv_layers, model.embed_dim): fairseq's HuBERT has no "
            "projection between them then, so these weights have no exact form there; use --format "
            "huggingface or torchaudio"
        )
    complete = {
        name: tensor for name, tensor in state.items() if name.startswith((ENCODER, MASK, HEAD))
    }
    complete = _neutral_head(config) | complete if LABELS not in complete else complete
    heads = heads_in(state)
    if len(heads) > 1:
        joined = {name: torch.cat([state[f"{head}{name}"] for head in heads]) for name in _HEAD}
        complete |= {f"{HEAD}{name}": tensor for name, tensor in joined.items()}
    complete.setdefault("mask_generator.mask_embedding", torch.zeros(config.embed_dim))
    naming = FAIRSEQ[config.conv_norm]
    renamed = {naming.theirs(name): tensor for name, tensor in complete.items()}
    return {name: tensor for name, tensor in renamed.items() if name is not None}


_HEAD = ("label_embeddings", "final_proj.weight", "final_proj.bias")


def heads_in(state: Mapping[str, Tensor]) -> list[str]:
    """Return what the names of each head begin with, that of the first set first."""
    others = [f"{OTHER_HEADS}{number}." for number in range(MAX_SETS)]
    return [HEAD, *(head for head in others if f"{head}label_embeddings" in state)]


def dictionaries(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the dictionary of each set of labels; ``weights``: of :func:`fairseq_state`."""
    others = [len(state[f"{head}label_embeddings"]) for head in heads_in(state)[1:]]
    return [symbols(rows) for rows in (len(weights["label_embs_concat"]) - sum(others), *others)]


def _neutral_head(config: ModelConfig) -> dict[str, Tensor]:
    """A head for which all classes are equally likely; no zero vectors, whose direction has no
    gradient to speak of."""
    return {
        "logit_generator.final_proj.weight": torch.eye(config.final_dim, config.embed_dim),
        "logit_generator.final_proj.bias": torch.zeros(config.final_dim),
        LABELS: torch.ones(config.num_classes, config.final_dim),
    }


def symbols(num_classes: int) -> list[str]:
    """Return the dictionary that goes with ``num_classes`` rows: four special symbols, then the
    clusters' numbers."""
    return SPECIAL_SYMBOLS + [str(cluster) for cluster in range(num_classes - NUM_SPECIAL_ROWS)]


def task_settings(label_rate_hz: float) -> dict[str, Any]:
    """Return fairseq's ``hubert_pretraining`` settings: waveforms go in as they are."""
    return {
        "_name": "hubert_pretraining",
        "label_rate": label_rate_hz,
        "sample_rate": 16000,
        "normalize": False,
    }


def model_settings(
    config: ModelConfig, label_rate_hz: float, task: TaskConfig | None = None, sets: int = 1
) -> dict[str, Any]:
    """Return fairseq's ``hubert`` settings (the fields of its ``HubertConfig`` that this package
    sets); ``sets``: of labels, with a head each."""
    task = task or TaskConfig()
    return {
        "_name": "hubert",
        "label_rate": label_rate_hz,
        "extractor_mode": "default" if config.conv_norm == "group_norm" else "layer_norm",
        "conv_feature_layers": str([tuple(layer) for layer in config.conv_layers]),
        "conv_bias": config.conv_bias,
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.embed_dim,
        "encoder_ffn_embed_dim": config.ffn_dim,
        "encoder_attention_heads": config.num_heads,
        "activation_fn": "gelu",
        "layer_norm_first": config.layer_norm_first,
        "conv_pos": config.pos_conv_kernel,
        "conv_pos_groups": config.pos_conv_groups,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "dropout_input": config.feature_dropout,
        "dropout_features": config.feature_dropout,
        "encoder_layerdrop": config.layer_drop,
        "feature_grad_mult": config.feature_grad_mult,
        "final_dim": config.final_dim,
        "untie_final_proj": sets > 1,
        "target_glu": False,
        "logit_temp": config.logit_temperature,
        "mask_prob": task.mask_probability,
        "mask_length": task.mask_length_frames,
        "skip_masked": False,
        "skip_nomask": True,
    }


def fairseq_checkpoint(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    label_rate_hz: float,
    task: TaskConfig,
    updates: int,
) -> dict[str, Any]:
    """Return a checkpoint in the layout of fairseq's trainer, of plain values and tensors.

    A true one pickles fairseq's ``Dictionary`` in ``task_state``; here each dictionary is the list
    of its symbols. The other entries are those that fairseq's ``_upgrade_state_dict`` looks for.
    """
    weights = fairseq_state(config, state)
    history = {
        "num_updates": updates,
        "criterion_name": "HubertCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {},
    }
    return {
        "args": None,
        "cfg": {
            "_name": None,
            "task": task_settings(label_rate_hz),
            "model": model_settings(config, label_rate_hz, task, len(heads_in(state))),
        },
        "model": weights,
        "task_state": {"dictionaries": dictionaries(weights, state)},
        "optimizer_history": [history],
        "last_optimizer_state": None,
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }
