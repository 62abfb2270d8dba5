"""Encoders under evaluation: a checkpoint of whatever tool, its untrained twin, and MFCC, all as
layers of 50-Hz frames.

Shape suffixes: N samples at 16 kHz, T frames = (N - 400) // 320 + 1, D width.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import ModelConfig
from fedhubert.formats.importing import ImportedEncoder, encoder_sha256, import_encoder
from fedhubert.formats.starting import load_into
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.layers import model_layers
from fedhubert.seeding import derive_seed
from fedhubert.targets.mfcc import mfcc_features

Features = npt.NDArray[np.float32]

_SAME_HEAD = {"num_classes": 504, "final_dim": 256, "label_init": "uniform"}
"""A head takes its share of random numbers: with one head for all, the untrained encoder depends on
the encoder's sizes alone."""


@dataclass(frozen=True)
class Encoder:
    """Something that turns a waveform into layers of frames.

    Attributes:
        name: ``checkpoint``, ``random init`` or ``mfcc``.
        key: Stands for weights and structure in the feature cache; empty for features too cheap to
            cache.
        layers: Their numbers: 0 is what the first transformer layer receives, i the output of layer
            i.
        forward: From a waveform float32[N] to one float32[T, D] per layer.
        parameters: How many the encoder has.
    """

    name: str
    key: str
    layers: tuple[int, ...]
    forward: Callable[[Features], list[Features]]
    parameters: int = 0


def load_encoder(source: str | Path, device: torch.device | None = None) -> tuple[Encoder, Encoder]:
    """Return an encoder, and the same architecture with fresh weights.

    Args:
        source: A round or a run's folder, a HuggingFace folder, or any other file or name that
            :func:`~fedhubert.formats.importing.import_encoder` reads.
        device: Where the model runs; the CPU by default.

    Raises:
        CheckpointError: it cannot be read, or holds no HuBERT.
    """
    imported = import_encoder(source)
    device = device or torch.device("cpu")
    trained = build_hubert(imported.config, 0)
    load_into(trained, imported)
    untrained = build_hubert(
        imported.config.model_copy(update=_SAME_HEAD), derive_seed(0, "evaluation/random init")
    )
    return _encoder("checkpoint", trained, imported, device), _encoder(
        "random init", untrained, imported, device
    )


def mfcc_encoder() -> Encoder:
    """Thirteen cepstra with deltas and accelerations, every second of their 100-Hz frames: as many
    frames as a model has."""
    return Encoder(
        "mfcc", "", (0,), lambda waveform: [np.ascontiguousarray(mfcc_features(waveform)[::2])]
    )


def _encoder(
    name: str, model: HubertModel, imported: ImportedEncoder, device: torch.device
) -> Encoder:
    model.to(device).eval()

    def forward(waveform: Features) -> list[Features]:
        if imported.normalize:
            # HuggingFace's feature extractor
            waveform = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        with torch.inference_mode():
            layers = model_layers(model, torch.from_numpy(waveform)[None].to(device))
        return [layer[0].float().cpu().numpy() for layer in layers]

    key = _structure(
        imported.config, encoder_sha256(model.state_dict()), bool(imported.normalize), device
    )
    layers = tuple(range(imported.config.num_layers + 1))
    return Encoder(
        name,
        key,
        layers,
        forward,
        sum(parameter.numel() for parameter in model.wav2vec2.parameters()),
    )


def _structure(config: ModelConfig, weights: str, normalize: bool, device: torch.device) -> str:
    """Weights alone do not say how they are applied."""
    text = (
        f"{weights} {config.num_heads} {config.layer_norm_first} {config.conv_norm} "
        f"{config.conv_layers} {normalize} {device.type}"
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
