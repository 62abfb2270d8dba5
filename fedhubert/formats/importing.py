"""Encoders of other tools, or of earlier runs, as the start of a run (``init_from``) or as a
teacher."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig, validate
from fedhubert.errors import CheckpointError
from fedhubert.files import on_server
from fedhubert.formats.naming import (
    ENCODER,
    FAIRSEQ,
    HUGGINGFACE,
    LABELS,
    PROJECTION,
    TORCHAUDIO_ENCODER,
    Naming,
)
from fedhubert.formats.sizes import (
    RELEASED,
    SHAPED,
    STRUCTURE,
    encoder_shapes,
    missing_tensors,
    recipe_strides,
    sizes_of,
)
from fedhubert.formats.sources import ImportSource, find, is_name
from fedhubert.models.hubert import HubertModel

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class ImportedEncoder:
    """An encoder read by :func:`import_encoder`.

    Attributes:
        config: Its sizes. Fields that only training uses are the file's where it states them, else
            the defaults.
        state: Its tensors, float32, in the names of :class:`~fedhubert.models.hubert.HubertModel`:
            all of the encoder's; those of the mask embedding and of the head where the file has
            them.
        source_format: ``fedhubert``, ``huggingface``, ``s3prl``, ``fairseq``, ``torchaudio`` or
            ``weights``.
        sha256: Digest of the encoder's names and values: the same encoder has the same one in every
            format.
        normalize: Whether it asks for waveforms of zero mean and unit variance; None where the file
            does not say. This package feeds waveforms as they are.
        assumed: Fields of ``config`` that neither the file nor its shapes tell.
        ignored: Tensors of the file that are no part of HuBERT.
    """

    config: ModelConfig
    state: Mapping[str, Tensor]
    source_format: str
    sha256: str
    normalize: bool | None
    assumed: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_into` did: the model's tensors that were ``used`` from the file, and those
    that ``missed`` and stay as they were."""

    used: tuple[str, ...]
    missed: tuple[str, ...]


def import_encoder(source: str | Path, *, like: ModelConfig | None = None) -> ImportedEncoder:
    """Read an encoder, whatever tool wrote it; nothing in the file is run.

    Args:
        source: A HuggingFace folder; a folder or file of ``fedhubert export``; a round or a run's
            folder; a checkpoint of fairseq or of s3prl's ``hubert_local``; a state dict in the
            names of any of these; ``hf:facebook/hubert-base-ls960`` (of the HuggingFace hub); or
            ``torchaudio:HUBERT_BASE`` (any HuBERT in ``torchaudio.pipelines``).
        like: Where the file is silent about what no shape tells (the number of heads, the strides,
            pre- or post-norm), it is as in this one. Without, as in the released HuBERTs of that
            width.

    Raises:
        CheckpointError: nothing there, damaged, holding objects that would run code, with tensors
            missing or of other shapes, or silent on something that must be known; the message names
            it.
    """
    found = find(source)
    state, ignored = _in_our_names(found)
    lacking = missing_tensors(state)
    if lacking:
        raise CheckpointError(f"{found.where} lacks {', '.join(lacking)}")
    if PROJECTION + "weight" not in state:
        state |= _identity_projection(state)
    if found.format in ("torchaudio", "weights") and any(
        name.endswith(LABELS) for name in found.tensors
    ):
        state[LABELS] = _with_special_rows(state[LABELS], found, like)
    fields, assumed = _completed(found, sizes_of(state), like)
    config = validate(ModelConfig, {"name": Path(str(source)).stem} | fields)
    _check(state, config, found.where)
    return ImportedEncoder(
        config,
        state,
        found.format,
        encoder_sha256(state),
        found.normalize,
        tuple(assumed),
        tuple(ignored),
    )


def import_on_server(source: str, *, like: ModelConfig | None = None) -> ImportedEncoder:
    """Like :func:`import_encoder`, for a path in the server's part of the configuration: relative
    ones start where those of ``out`` do."""
    return import_encoder(source if is_name(source) else on_server(source), like=like)


def load_into(model: HubertModel, imported: ImportedEncoder) -> LoadReport:
    """Copy an imported encoder into ``model``, and the mask embedding and the head where the file
    has them in the model's sizes.

    Raises:
        CheckpointError: the encoder has other sizes than the model; every one that differs is
            named.
    """
    ours, theirs = model.config, imported.config
    wrong = [name for name in STRUCTURE if getattr(ours, name) != getattr(theirs, name)]
    if wrong:
        listed = ", ".join(
            f"model.{name} is {getattr(ours, name)} and the file has {getattr(theirs, name)}"
            for name in wrong
        )
        raise CheckpointError(
            f"the imported encoder does not fit the model: {listed}", setting=f"model.{wrong[0]}"
        )
    state = model.state_dict()
    fitting = {
        name: tensor for name, tensor in imported.state.items() if tensor.shape == state[name].shape
    }
    head = {name for name in state if name.startswith("logit_generator.")}
    if not head <= fitting.keys():  # half a head is none
        fitting = {name: tensor for name, tensor in fitting.items() if name not in head}
    model.load_state_dict(state | fitting)
    return LoadReport(
        tuple(name for name in state if name in fitting),
        tuple(name for name in state if name not in fitting),
    )


def start_from(model: HubertModel, source: str) -> dict[str, Any]:
    """Start ``model`` from the encoder at ``source`` (``init_from``), say so in the log, and return
    its lineage as plain values.

    Raises:
        CheckpointError: it cannot be read, or has other sizes than the model.
    """
    imported = import_on_server(source, like=model.config)
    report = load_into(model, imported)
    log.info(
        "starting from %s (%s, encoder SHA-256 %s): %d tensors used, %d missed%s",
        source,
        imported.source_format,
        imported.sha256[:12],
        len(report.used),
        len(report.missed),
        f" ({', '.join(report.missed)})" if report.missed else "",
    )
    if imported.assumed:
        log.warning(
            "%s does not say %s: taken from the configuration", source, ", ".join(imported.assumed)
        )
    if imported.normalize:
        log.warning(
            "%s asks for normalised waveforms (zero mean, unit variance); here they go in as they are",
            source,
        )
    return {
        "format": imported.source_format,
        "encoder_sha256": imported.sha256,
        "missed": list(report.missed),
    }


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a digest of the encoder's tensors in ``state`` (our names): their names, shapes and
    float32 values."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith(ENCODER)):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _in_our_names(found: ImportSource) -> tuple[dict[str, Tensor], list[str]]:
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
                f"{found.where}: `{name}` is of type {tensor.dtype}; import the model before it was quantised"
            )
        state[ours] = tensor.detach().to(torch.float32).contiguous()
    return state, ignored


def _naming(found: ImportSource) -> tuple[Naming, str]:
    """Return whose names these are, and what stands before all of them (``hubert.``, ``module.``,
    ``w2v_encoder.w2v_model.``)."""
    for anchor, kind in _ANCHORS:
        prefixes = [name.removesuffix(anchor) for name in found.tensors if name.endswith(anchor)]
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{found.where} holds {len(prefixes)} encoders, under {', '.join(map(repr, prefixes))}: save one of them alone"
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
        f"{found.where} holds no HuBERT in the names of fairseq, HuggingFace or torchaudio (its first tensors: {shown})"
    )


def _identity_projection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What fairseq leaves out where the convolutions are as wide as the encoder."""
    width = state["wav2vec2.encoder.feature_projection.layer_norm.weight"].shape[0]
    if width != state["wav2vec2.encoder.transformer.layers.0.attention.q_proj.weight"].shape[0]:
        return {}  # not left out but missing
    return {f"{PROJECTION}weight": torch.eye(width), f"{PROJECTION}bias": torch.zeros(width)}


def _with_special_rows(labels: Tensor, found: ImportSource, like: ModelConfig | None) -> Tensor:
    """Put fairseq's special rows before torchaudio's clusters: pointing away from their mean, so
    that they are never predicted."""
    if found.format == "weights" and like is not None and len(labels) == like.num_classes:
        return labels
    return torch.cat([-labels.mean(0, keepdim=True).expand(NUM_SPECIAL_ROWS, -1), labels])


def _completed(
    found: ImportSource, sizes: dict[str, Any], like: ModelConfig | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a ``ModelConfig``, and which of them were assumed."""
    channels, kernels = sizes.pop("conv_channels"), sizes.pop("conv_kernels")
    wrong = [name for name in SHAPED if found.fields.get(name, sizes[name]) != sizes[name]]
    if wrong:
        listed = ", ".join(
            f"{name} {found.fields[name]} (the weights: {sizes[name]})" for name in wrong
        )
        raise CheckpointError(f"{found.where}: its settings and its weights disagree: {listed}")
    fields, assumed = sizes | found.fields, []
    released = RELEASED.get((fields["embed_dim"], fields["ffn_dim"], fields["conv_norm"]), {})
    for name in ("num_heads", "layer_norm_first"):
        if name not in fields:
            assumed.append(name)
            fields[name] = released.get(name) if like is None else getattr(like, name)
    if "conv_layers" not in fields:
        assumed.append("conv_layers")
        strides = (
            recipe_strides(kernels)
            if like is None
            else [stride for _, _, stride in like.conv_layers]
        )
        if strides is not None and len(strides) == len(kernels):
            fields["conv_layers"] = tuple(zip(channels, kernels, strides, strict=True))
    unknown = [name for name in assumed if fields.get(name) is None]
    if unknown:
        raise CheckpointError(
            f"{found.where} does not say {', '.join(unknown)}, and its shapes do not tell: use a format that does (a HuggingFace folder, s3prl's "
            "file with model_cfg), or set the model's sizes in the configuration"
        )
    return fields, assumed


def _check(state: Mapping[str, Tensor], config: ModelConfig, where: str) -> None:
    """Hold the encoder's tensors against those of a model of its sizes."""
    expected = encoder_shapes(config)
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(name for name in state.keys() - expected.keys() if name.startswith(ENCODER))
    for names, verb in (
        (missing, "lacks"),
        (extra, "has, beside what an encoder of its sizes has,"),
    ):
        if names:
            raise CheckpointError(
                f"{where} {verb} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            )
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if tuple(state[name].shape) != shape
    ]
    if wrong:
        raise CheckpointError(f"{where}: {'; '.join(wrong[:3])}")
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{where}: {', '.join(broken[:3])} has values that are not finite")
