"""Narrow convolutions out of wide ones: of each layer the channels that matter most, as in the
pruning of filters (Li et al. 2017, arXiv 1608.08710, section 3.1).

Shape suffixes: O channels out, I channels in, K taps.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CONV = "wav2vec2.feature_extractor.conv_layers."
_PROJECTION = "wav2vec2.encoder.feature_projection."
_TINY = 1e-12


def narrowed(state: Mapping[str, Tensor], channels: Sequence[int]) -> dict[str, Tensor]:
    """Return the convolutions of a model, and the norm behind them, with so many ``channels`` in
    each layer.

    A channel matters by the length of its own weights (under a norm: the norm's) times that of
    those that the next layer reads it by. A filter that loses inputs is as long as it was.

    Args:
        state: The model's tensors, in the names of
            :class:`~fedhubert.models.hubert.HubertModel`.

    Raises:
        KeyError: a tensor is missing.
    """
    found: dict[str, Tensor] = {}
    weights = [state[f"{CONV}{layer}.conv.weight"].float() for layer in range(len(channels))]
    projection_OI = (
        state[f"{_PROJECTION}projection.weight"] * state[f"{_PROJECTION}layer_norm.weight"]
    )
    readers = [*weights[1:], projection_OI.float()]
    kept_I: Tensor | None = None
    for layer, (weight_OIK, reader, count) in enumerate(
        zip(weights, readers, channels, strict=True)
    ):
        own_O = _lengths(weight_OIK)
        norm_O = state.get(f"{CONV}{layer}.layer_norm.weight")
        matters_O = (own_O if norm_O is None else norm_O.abs()) * _lengths(reader.transpose(0, 1))
        kept_O = torch.sort(torch.topk(matters_O, count).indices).values
        if kept_I is not None:
            weight_OIK = weight_OIK[:, kept_I]
            longer_O = own_O / _lengths(weight_OIK).clamp_min(_TINY)
            weight_OIK = weight_OIK * longer_O[:, None, None]
        found[f"{CONV}{layer}.conv.weight"] = weight_OIK[kept_O]
        for name in ("conv.bias", "layer_norm.weight", "layer_norm.bias"):
            if (per_channel := state.get(f"{CONV}{layer}.{name}")) is not None:
                found[f"{CONV}{layer}.{name}"] = per_channel[kept_O]
        kept_I = kept_O
    for name in ("weight", "bias"):
        found[f"{_PROJECTION}layer_norm.{name}"] = state[f"{_PROJECTION}layer_norm.{name}"][kept_I]
    return found


def _lengths(weights: Tensor) -> Tensor:
    """Length of each row's weights."""
    lengths: Tensor = torch.linalg.vector_norm(weights.flatten(1), dim=1)
    return lengths
