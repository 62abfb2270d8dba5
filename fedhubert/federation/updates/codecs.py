"""How vectors travel: float32, bfloat16, float16 scaled into its range, or int8 with a scale per
output channel; or as integers on a ring, which need to know more
(:mod:`fedhubert.federation.updates.ring`).

int8 is rounded stochastically, so that the mean over many clients is not biased, and what a
client's rounding left over is added to its next update (error feedback: Seide et al. 2014;
Karimireddy et al. 2019); see :mod:`fedhubert.clients.state`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config.federated import UpdateCodec
from fedhubert.federation.updates.exact_sum import UpdateRejected
from fedhubert.federation.updates.ring import RING_BITS, ring_bytes
from fedhubert.training.parameters import tensor_of

CodecName = UpdateCodec
EncodedArrays = dict[str, npt.NDArray[Any]]

VALUES, SCALES = "update", "scales"
_FP16_PEAK_EXPONENT = 14  # values are scaled below 2**15, half of what float16 holds
_INT8_MAX = 127


def channels(shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, list[int]]:
    """Return the length of each int8 channel and the number of channels of each parameter.

    A matrix or convolution has one channel per output (its first dimension), a vector is one
    channel.
    """
    counts = [_num_channels(shape) for shape in shapes]
    lengths = [math.prod(shape) // count for shape, count in zip(shapes, counts, strict=True)]
    return torch.tensor(lengths).repeat_interleave(torch.tensor(counts)), counts


def _num_channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1


def encode(
    codec: CodecName, vector: torch.Tensor, shapes: Sequence[tuple[int, ...]], seed: int = 0
) -> EncodedArrays:
    """Return the arrays that stand for a float32 ``vector`` [P] of parameters of ``shapes``;
    ``seed`` is for int8's rounding. Not for codecs of a ring."""
    assert codec not in RING_BITS, "needs its ring, and the weight"
    if codec == "fp32":
        return {VALUES: vector.numpy()}
    if codec == "bf16":  # NumPy has no bfloat16: its bits travel as integers
        return {VALUES: vector.to(torch.bfloat16).view(torch.int16).numpy()}
    if codec == "fp16":
        peak = float(vector.abs().max()) if vector.numel() else 0.0
        exponent = _FP16_PEAK_EXPONENT - math.frexp(peak)[1] if 0.0 < peak < math.inf else 0
        scale = math.ldexp(1.0, min(exponent, 126))
        return {
            VALUES: (vector * scale).to(torch.float16).numpy(),
            SCALES: np.array([1.0 / scale], np.float32),
        }
    return _encode_int8(vector, shapes, seed)


def decode(
    codec: CodecName, arrays: Mapping[str, npt.NDArray[Any]], shapes: Sequence[tuple[int, ...]]
) -> torch.Tensor:
    """Return the float32 vector [P] that ``arrays`` stand for; not for codecs of a ring.

    Raises:
        UpdateRejected: arrays of another codec, length or type, or scales that are not finite.
    """
    assert codec not in RING_BITS, "needs its ring, and the weight"
    numel = sum(math.prod(shape) for shape in shapes)
    if codec == "fp32":
        return tensor_of(_checked(arrays, VALUES, np.float32, numel))
    if codec == "bf16":
        return (
            tensor_of(_checked(arrays, VALUES, np.int16, numel))
            .view(torch.bfloat16)
            .to(torch.float32)
        )
    if codec == "fp16":
        scale = _scales(arrays, 1)
        return tensor_of(_checked(arrays, VALUES, np.float16, numel)).to(torch.float32).mul_(scale)
    lengths, counts = channels(shapes)
    values, scales = (
        tensor_of(_checked(arrays, VALUES, np.int8, numel)),
        _scales(arrays, len(lengths)),
    )
    decoded = torch.empty(numel)
    for out, part, scale in zip(
        _split(decoded, shapes), _split(values, shapes), torch.split(scales, counts), strict=True
    ):
        torch.mul(part.view(len(scale), -1), scale[:, None], out=out.view(len(scale), -1))
    return decoded


def num_bytes(codec: CodecName, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the bytes of an update of parameters of ``shapes``."""
    if codec in RING_BITS:
        return ring_bytes(codec, sum(math.prod(shape) for shape in shapes))
    width, scales = {
        "fp32": (4, 0),
        "bf16": (2, 0),
        "fp16": (2, 1),
        "int8": (1, sum(map(_num_channels, shapes))),
    }[codec]
    return width * sum(math.prod(shape) for shape in shapes) + 4 * scales


def _encode_int8(
    vector: torch.Tensor, shapes: Sequence[tuple[int, ...]], seed: int
) -> EncodedArrays:
    generator = torch.Generator().manual_seed(seed)
    lengths, counts = channels(shapes)
    values, scales = torch.empty(vector.numel(), dtype=torch.int8), torch.empty(len(lengths))
    for part, out, scale in zip(
        _split(vector, shapes), _split(values, shapes), torch.split(scales, counts), strict=True
    ):
        rows = part.view(len(scale), -1)
        torch.div(rows.abs().amax(dim=1), _INT8_MAX, out=scale)
        step = torch.where(scale > 0, scale, 1.0)[:, None]
        rounded = (
            (rows / step)
            .add_(torch.rand(rows.shape, generator=generator))
            .floor_()
            .clamp_(-_INT8_MAX, _INT8_MAX)
        )
        out.view(len(scale), -1).copy_(rounded)
    return {VALUES: values.numpy(), SCALES: scales.numpy()}


def _split(vector: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
    return torch.split(vector, [math.prod(shape) for shape in shapes])


def _checked(
    arrays: Mapping[str, npt.NDArray[Any]], name: str, dtype: Any, length: int
) -> npt.NDArray[Any]:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.shape != (length,):
        raise UpdateRejected("shape")
    return array


def _scales(arrays: Mapping[str, npt.NDArray[Any]], length: int) -> torch.Tensor:
    scales = tensor_of(_checked(arrays, SCALES, np.float32, length))
    if not bool(((scales >= 0) & (scales < torch.inf)).all()):
        raise UpdateRejected("not_finite")
    return scales
