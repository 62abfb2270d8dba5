"""Exports that run by themselves, without this package: what they are asked for, and how they are
held against the model that was trained.

Shape suffixes: B batch, N samples at 16 kHz, T 50-Hz frames, D encoder width.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.formats.answers import answers_of
from fedhubert.formats.naming import ENCODER, HEAD, MASK
from fedhubert.formats.source import Source
from fedhubert.models.hubert import build_hubert
from fedhubert.models.layers import LayerEncoder, ScoringEncoder

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating]
Run = Callable[[Floats], Sequence[Floats]]
"""From waveforms [B, N] to layers [B, T, D], or scores."""

ROUNDING, TIMES_OWN = 5e-6, 4.0
"""The most by which results in float32 may differ, since sums are taken in another order: as a
share of a layer's largest value, or, for audio on which that is not enough (the norms of a quiet
utterance), as a multiple of how far the model itself is in float32 from what it gives in
float64."""


@dataclass(frozen=True)
class ProgramSettings:
    """How a program is written.

    Attributes:
        layers: Its outputs: 0 is the transformer's input, i the output of layer i; none named: what
            a fine-tuned model says, or the last one.
        int8: Matrix products in 8 bits.
        audio: Waveforms [N] at 16 kHz on which it is compared with the model, too.
    """

    layers: tuple[int, ...] = ()
    int8: bool = False
    audio: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """How far a program is from the model that it was made of.

    Attributes:
        difference: Largest difference of two values.
        share: Largest difference as a share of the largest value of its layer.
        rounding: Whether no difference is more than rounding makes.
        cosine: Mean cosine of two frames, of the layer where it is smallest.
        least_cosine: Smallest cosine of two frames.
    """

    difference: float
    share: float
    rounding: bool
    cosine: float
    least_cosine: float


def encoder_of(source: Source, settings: ProgramSettings) -> LayerEncoder:
    """Return the layers that are asked for, as a module of their own; where none is named and the
    model was fine-tuned, what it says.

    Raises:
        ConfigError: a layer that the model does not have, or one that is named twice.
        CheckpointError: the weights have a tensor that is no part of HuBERT, or lack one.
    """
    deepest = source.config.num_layers
    layers = settings.layers or (deepest,)
    if not set(layers) <= set(range(deepest + 1)) or len(set(layers)) < len(layers):
        raise ConfigError(
            f"--layers {','.join(map(str, layers))}: the model has layers 0 to {deepest}; name "
            "each once",
            setting="--layers",
        )
    unknown = [name for name in source.state if not name.startswith((ENCODER, MASK, HEAD))]
    if unknown:
        raise CheckpointError(f"the weights hold `{unknown[0]}`, which HuBERT does not have")
    model = build_hubert(source.config, 0)
    try:
        model.load_state_dict({**model.state_dict(), **source.state})
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the checkpoint's `model`: {error}") from None
    if not settings.layers and (answers := answers_of(source)):
        return ScoringEncoder(model, answers.head(source.heads))
    return LayerEncoder(model, layers)


def least_samples(config: ModelConfig, frames: int = 1) -> int:
    """Return how many samples make so many frames."""
    samples = frames
    for _, kernel, stride in reversed(config.conv_layers):
        samples = (samples - 1) * stride + kernel
    return samples


def made_batches(least: int) -> list[Floats]:
    """Return batches [B, N] of gliding tones in noise: single ones and several, of ``least``
    samples up to 10 s."""
    random = np.random.default_rng(0)
    batches = []
    for rows, samples in ((1, least), (3, least + 319), (2, 30_001), (1, 160_000)):
        time_s = np.arange(samples) / 16_000
        pitch_hz = random.uniform(100, 300, (rows, 1))
        tones = np.sin(2 * np.pi * (pitch_hz + 100 * time_s) * time_s)
        noise = random.standard_normal((rows, samples))
        batches.append((0.1 * tones + 0.02 * noise).astype(np.float32))
    return batches


def agreement(encoder: LayerEncoder, run: Run, batches: Sequence[Floats]) -> Agreement:
    """Compare a program with the model on ``batches`` of waveforms.

    Raises:
        CheckpointError: a result of another shape, or one that is not finite.
    """
    differences: list[float] = []
    shares: list[float] = []
    rounding = True
    cosines: list[list[npt.NDArray[np.float64]]] = [[] for _ in encoder.names]
    for waveforms_BN in batches:
        ours, theirs = _layers(encoder, waveforms_BN), run(waveforms_BN)
        for mine, other, kept in zip(ours, theirs, cosines, strict=True):
            if mine.shape != other.shape or not np.isfinite(other).all():
                raise CheckpointError(
                    f"the program gives {other.shape} for waveforms {waveforms_BN.shape}, the "
                    f"model {mine.shape}, or values that are not finite"
                )
            differences.append(float(np.abs(mine - other).max()))
            shares.append(differences[-1] / float(np.abs(mine).max()))
            kept.append(_cosines(mine, other))
        if max(shares[-len(ours) :]) > ROUNDING:
            exact = _layers(copy.deepcopy(encoder).double(), waveforms_BN.astype(np.float64))
            rounding &= all(map(_is_rounding, theirs, ours, exact))
    frames = [np.concatenate(kept) for kept in cosines]
    return Agreement(
        max(differences),
        max(shares),
        rounding,
        min(float(of_layer.mean()) for of_layer in frames),
        min(float(of_layer.min()) for of_layer in frames),
    )


def _layers(encoder: LayerEncoder, waveforms_BN: Array) -> list[Array]:
    with torch.inference_mode():
        return [layer_BTD.numpy() for layer_BTD in encoder(torch.from_numpy(waveforms_BN))]


def _is_rounding(theirs: Array, ours: Array, exact: Array) -> bool:
    own = float(np.abs(ours - exact).max())
    allowed = max(ROUNDING * float(np.abs(exact).max()), TIMES_OWN * own)
    return float(np.abs(theirs - exact).max()) <= allowed


def _cosines(a_BTD: Array, b_BTD: Array) -> npt.NDArray[np.float64]:
    """Cosine of each two frames [B * T]."""
    x, y = a_BTD.astype(np.float64), b_BTD.astype(np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.asarray((x * y).sum(-1) / np.maximum(norms, 1e-30)).ravel()


def must_be_equal(found: Agreement, batches: Sequence[Floats]) -> str:
    """Return the words for a program in float32.

    Raises:
        CheckpointError: it is further from the model than rounding takes it.
    """
    lengths = [waveforms_BN.shape[1] for waveforms_BN in batches]
    words = (
        f"differs from torch by {found.difference:.1e} at most, {found.share:.1e} of its layer's "
        "largest value, "
        f"over {len(batches)} batches of {min(lengths)} to {max(lengths)} samples"
    )
    if not found.rounding:
        raise CheckpointError(f"the program {words}: that is no rounding")
    return words


def refuse_chunks(checkpoint: Mapping[str, object]) -> NoReturn:
    """Say why no chunk of audio gives what the whole would.

    Raises:
        ConfigError: always.
    """
    norm = Source.of(checkpoint).config.conv_norm
    because = (
        "the group norm of the first convolution takes mean and variance over the whole input, and "
        if norm == "group_norm"
        else ""
    )
    raise ConfigError(
        f"--streaming-chunk: chunks would not give what the whole gives: {because}attention and "
        "the convolution of positions see what comes "
        "before and after a frame. Cut the audio at pauses (`fedhubert prepare --cut 15`) and give "
        "each part whole, as in training",
        setting="--streaming-chunk",
    )
