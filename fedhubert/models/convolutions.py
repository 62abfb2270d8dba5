"""The convolutions of a HuBERT encoder: torchaudio's layers, run so that training wide ones takes
little memory, and on the CPU less time.

Shape suffixes: B batch, N samples at 16 kHz; T and S frames before and after a convolution, C and O
channels, K taps.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

WIDE = 256
"""Channels from which memory is saved and, on the CPU, products taken: 256 take 5 % less time than
torchaudio's layers, 512 15 %, 64 30 % more."""


def extract(extractor: Any, waveforms_BN: Tensor) -> Tensor:
    """Return [B, T, C]: what the ``torchaudio.models.wav2vec2.components.FeatureExtractor`` does.

    Of wide convolutions only the outputs are kept for the backward pass; norm and GELU are
    recomputed from them, which takes 1 % of a step's time.
    """
    layers = extractor.conv_layers
    if not _is_wide(extractor):
        return cast(Tensor, extractor(waveforms_BN, None)[0])
    x_BCT = layers[0].conv(waveforms_BN.unsqueeze(1))
    if takes_products(extractor, waveforms_BN):
        return _extract_by_products(layers, x_BCT)
    for before, after in pairwise(layers):
        x_BCT = recomputed(_activate_and_convolve, before, after, x_BCT)
    return _activate(layers[-1], x_BCT).transpose(1, 2)


def takes_products(extractor: object, waveforms_BN: Tensor) -> bool:
    """Whether :func:`extract` convolves by matrix products: wide layers, on the CPU, in full
    precision."""
    precise = waveforms_BN.dtype in (
        torch.float32,
        torch.float64,
    ) and not torch.is_autocast_enabled("cpu")
    return waveforms_BN.device.type == "cpu" and precise and _is_wide(extractor)


def _is_wide(extractor: Any) -> bool:
    return bool(max(layer.conv.out_channels for layer in extractor.conv_layers) >= WIDE)


def recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Return ``function``'s result, keeping only its arguments for the backward pass; it draws no
    random numbers.

    Recomputing stops at the input of the last operation: that one is not done twice.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _normalize(layer: Any, x_BCT: Tensor) -> Tensor:
    return x_BCT if layer.layer_norm is None else cast(Tensor, layer.layer_norm(x_BCT))


def _activate(layer: object, x_BCT: Tensor) -> Tensor:
    return F.gelu(_normalize(layer, x_BCT))


def _activate_and_convolve(before: object, after: Any, x_BCT: Tensor) -> Tensor:
    return cast(Tensor, after.conv(_activate(before, x_BCT)))


def _extract_by_products(layers: Any, x_BCT: Tensor) -> Tensor:
    """Return what :func:`extract` does, from the first convolution's output. After the first norm,
    which may be over time, channels come last."""
    activate: Callable[[object, Tensor], Tensor] = _activate_first
    x = x_BCT
    for before, after in pairwise(layers):
        norm = () if before.layer_norm is None else tuple(before.layer_norm.parameters())
        x = _ActivateAndConvolve.apply(
            activate, before, after.conv.stride[0], x, after.conv.weight, after.conv.bias, *norm
        )
        activate = _activate_last
    return activate(layers[-1], x)


def _activate_first(layer: object, x_BCT: Tensor) -> Tensor:
    return F.gelu(_normalize(layer, x_BCT).transpose(1, 2).contiguous())


def _activate_last(layer: Any, x_BTC: Tensor) -> Tensor:
    return F.gelu(
        x_BTC if layer.layer_norm is None else nn.LayerNorm.forward(layer.layer_norm, x_BTC)
    )


class _ActivateAndConvolve(torch.autograd.Function):
    """Norm, GELU and a convolution with channels last, by matrix products on views of its input;
    only what the norm receives is kept.

    With channels last, the taps within one stride lie beside each other, and the next frame's begin
    a stride further on: they are the rows of a matrix that need not be copied together. A kernel
    longer than its stride makes several such products. For HuBERT's largest layer the backward pass
    takes half of ``conv1d``'s time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activate: Any,
        before: object,
        stride: int,
        x: Tensor,
        weight_OCK: Tensor,
        bias_O: Tensor | None,
        *norm: Tensor,
    ) -> Tensor:
        ctx.activate, ctx.before, ctx.stride, ctx.norm = activate, before, stride, norm
        ctx.save_for_backward(x, weight_OCK)
        x_BTC, taps_KCO = activate(before, x), _taps(weight_OCK)
        frames = (x_BTC.shape[1] - len(taps_KCO)) // stride + 1
        y_BSO = x_BTC.new_zeros(len(x_BTC), frames, len(weight_OCK))
        if bias_O is not None:
            y_BSO += bias_O
        for x_TC, y_SO in zip(x_BTC, y_BSO, strict=True):
            for rows, product in _products(x_TC, taps_KCO, stride, frames):
                y_SO.addmm_(rows, product)
        return cast(Tensor, y_BSO)

    @staticmethod
    def backward(ctx: Any, dy_BSO: Tensor) -> object:
        x, weight_OCK = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x_BTC = ctx.activate(ctx.before, x)
        activated, x_BTC = get_gradient_edge(x_BTC), x_BTC.detach()
        dy_BSO, taps_KCO = dy_BSO.contiguous(), _taps(weight_OCK)
        dtaps_KCO = torch.zeros_like(taps_KCO)
        for x_TC, dy_SO in zip(x_BTC, dy_BSO, strict=True):
            for rows, dproduct in _products(x_TC, dtaps_KCO, ctx.stride, len(dy_SO)):
                dproduct.addmm_(rows.T, dy_SO)
        # GELU's derivative is taken from its input: the memory of its output is free
        dx_BTC = x_BTC.zero_()
        for dx_TC, dy_SO in zip(dx_BTC, dy_BSO, strict=True):
            for drows, product in _products(dx_TC, taps_KCO, ctx.stride, len(dy_SO)):
                drows.addmm_(dy_SO, product.T)
        trained = [parameter for parameter in ctx.norm if parameter.requires_grad]
        dx, *dtrained = torch.autograd.grad(activated, [x, *trained], dx_BTC)
        dnorm = [dtrained.pop(0) if parameter.requires_grad else None for parameter in ctx.norm]
        dbias_O = dy_BSO.sum((0, 1)) if ctx.needs_input_grad[5] else None
        return None, None, None, dx, dtaps_KCO.permute(2, 1, 0), dbias_O, *dnorm


def _taps(weight_OCK: Tensor) -> Tensor:
    return weight_OCK.detach().permute(2, 1, 0).contiguous()


def _products(
    x_TC: Tensor, taps_KCO: Tensor, stride: int, frames: int
) -> list[tuple[Tensor, Tensor]]:
    """Return views of one utterance [frames, taps * C] and of the weights [taps * C, O] whose
    products add up to the convolution."""
    kernel, channels, out = taps_KCO.shape
    found = []
    for first in range(0, kernel, stride):
        taps = min(stride, kernel - first)
        offset = x_TC.storage_offset() + first * channels
        rows = x_TC.as_strided((frames, taps * channels), (stride * channels, 1), offset)
        found.append((rows, taps_KCO[first : first + taps].view(taps * channels, out)))
    return found
