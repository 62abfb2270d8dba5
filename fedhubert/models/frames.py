"""Samples and frames: what the convolutions make of a length."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ConvLayers = Sequence[tuple[int, int, int]]
HUBERT_CONV_LAYERS: ConvLayers = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
"""Channels, kernel and stride of the convolutions that turn 16 kHz audio into 50-Hz frames."""


def frames_of(
    num_samples: npt.ArrayLike, conv_layers: ConvLayers = HUBERT_CONV_LAYERS
) -> npt.NDArray[np.int64]:
    """Return T for N samples at 16 kHz (elementwise): (N - 400) // 320 + 1 with HuBERT's
    convolutions, 0 where N is too short for a frame."""
    frames = np.asarray(num_samples, np.int64)
    for _, kernel, stride in conv_layers:
        frames = np.where(frames >= kernel, (frames - kernel) // stride + 1, 0)
    return frames


def num_frames(num_samples: int, conv_layers: ConvLayers = HUBERT_CONV_LAYERS) -> int:
    """Return :func:`frames_of` one number of samples."""
    return int(frames_of(num_samples, conv_layers))
