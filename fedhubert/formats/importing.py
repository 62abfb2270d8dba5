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

from fedhubert.config import ModelConfig, validate
from fedhubert.errors import CheckpointError
from fedhubert.files import on_server
from fedhubert.formats.naming import ENCODER, LABELS, PROJECTION
from fedhubert.formats.renaming import identity_projection, in_our_names, with_special_rows
from fedhubert.formats.sizes import (
    RELEASED,
    SHAPED,
    encoder_shapes,
    missing_tensors,
    recipe_strides,
    sizes_of,
)
from fedhubert.formats.sources import ImportSource, find, is_name

log = logging.getLogger(__name__)


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
    state, ignored = in_our_names(found)
    lacking = missing_tensors(state)
    if lacking:
        raise CheckpointError(f"{found.where} lacks {', '.join(lacking)}")
    if PROJECTION + "weight" not in state:
        state |= identity_projection(state)
    if found.format in ("torchaudio", "weights") and any(
        name.endswith(LABELS) for name in found.tensors
    ):
        state[LABELS] = with_special_rows(state[LABELS], found, like)
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


def encoder_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a digest of the encoder's tensors in ``state`` (our names): their names, shapes and
    float32 values."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith(ENCODER)):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


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
            f"{found.where} does not say {', '.join(unknown)}, and its shapes do not tell: use a "
            "format that does (a HuggingFace folder, s3prl's "
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
                f"{where} {verb} "
                f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
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
