"""The parts of a training step that ``torch.compile`` may take over, and the same parts as they
are.

A part is compiled once for each length of crop, whatever the number of crops (a single one makes
one graph more), and all transformer layers share one graph. So with ``client.compile`` the lengths
of training crops come from a short list (see :class:`fedhubert.data.batching.BatchPlan`). What
depends on chance (which layers are dropped, how many frames are masked) stays outside.

Shape suffixes: B batch, N samples at 16 kHz, T 50-Hz frames, D encoder width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from fedhubert.models.convolutions import extract, takes_products

BACKEND = "inductor"
"""What compiles the graphs; the tests have another, which needs no C++ compiler."""
_MOST_GRAPHS = 128
"""Of one part; torch's own limit is 8, after which it would go on uncompiled."""

Part = Callable[..., Tensor]


class Parts(NamedTuple):
    """How a model runs its convolutions, what lies between them and the layers, and a layer."""

    extract: Part
    embed: Part
    layer: Part


def embed(transformer: Any, x_BTD: Tensor) -> Tensor:
    """Return the first layer's input: positions added, normalised (unless the layers do that
    first), and dropout."""
    x_BTD = x_BTD + transformer.pos_conv_embed(x_BTD)
    # torchaudio's name for the opposite of the model's own setting
    if transformer.layer_norm_first:
        x_BTD = transformer.layer_norm(x_BTD)
    return cast(Tensor, transformer.dropout(x_BTD))


def apply_layer(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    """Return a transformer layer's output [B, T, D]."""
    return cast(Tensor, layer(x_BTD)[0])


AS_THEY_ARE = Parts(extract, embed, apply_layer)


def compiled_parts() -> Parts:
    """Return the parts compiled; torch compiles when they first run, and may raise anything
    then."""
    import torch._dynamo.config

    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
    convolve = _compiled(_convolve)

    def run_convolutions(extractor: object, waveforms_BN: Tensor) -> Tensor:
        # On the CPU our own products are faster than what would be compiled, and torch cannot look
        # into them.
        run = extract if takes_products(extractor, waveforms_BN) else convolve
        return run(extractor, waveforms_BN)

    return Parts(run_convolutions, _compiled(embed), _compiled(apply_layer))


def _convolve(extractor: Any, waveforms_BN: Tensor) -> Tensor:
    """torchaudio's convolutions: what is worth recomputing in the backward pass the compiler
    decides."""
    return cast(Tensor, extractor(waveforms_BN, None)[0])


def _compiled(part: Part) -> Part:
    import torch._dynamo

    run = torch.compile(part, dynamic=False, backend=BACKEND)

    def with_any_number_of_rows(module: object, x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return run(module, x)

    return with_any_number_of_rows
