"""A HuBERT encoder's layers, as they are looked at and deployed: nothing is masked or dropped.

Shape suffixes: B batch, N samples at 16 kHz, T 50-Hz frames, D encoder width.
"""

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from fedhubert.models.heads import ClassifyHead
from fedhubert.models.hubert import HubertModel


def model_layers(model: HubertModel, waveforms_BN: Tensor) -> list[Tensor]:
    """Return what the first transformer layer receives and what each layer gives, [B, T, D] each,
    for a model in evaluation mode.

    The last one ends with the norm that closes a ``layer_norm_first`` encoder, as HuggingFace's
    last hidden state does.
    """
    layers = _as_they_are(model, waveforms_BN)
    if len(layers) > model.config.num_layers:
        layers[-1] = _closed(model, layers[-1])
    return layers


def _closed(model: HubertModel, last_BTD: Tensor) -> Tensor:
    """Return the transformer's output for its last layer's."""
    norm = model.wav2vec2.encoder.transformer.layer_norm
    return cast(Tensor, norm(last_BTD)) if model.config.layer_norm_first else last_BTD


def _as_they_are(model: HubertModel, waveforms_BN: Tensor) -> list[Tensor]:
    transformer = model.wav2vec2.encoder.transformer
    x_BTD = model.wav2vec2.encoder.feature_projection(
        model.wav2vec2.feature_extractor(waveforms_BN, None)[0]
    )
    x_BTD = x_BTD + transformer.pos_conv_embed(x_BTD)
    if not model.config.layer_norm_first:
        x_BTD = transformer.layer_norm(x_BTD)
    layers = [x_BTD]
    for layer in transformer.layers:
        layers.append(layer(layers[-1])[0])
    return layers


def _plain(conv: nn.Conv1d) -> nn.Conv1d:
    """Return a convolution with a norm on its weight as one with the weight that comes of it.
    (torch's own removal would take the norm from every copy of the module: they share a class.)"""
    plain = nn.Conv1d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        padding=cast(tuple[int], conv.padding),
        groups=conv.groups,
    )
    plain.load_state_dict({"weight": conv.weight, "bias": conv.bias})
    return plain.requires_grad_(False)


class LayerEncoder(nn.Module):
    """Waveforms [B, N] to the chosen layers [B, T, D] each, with nothing in it that they do not
    need: later layers and heads are left out, and the weight norm of the positions' convolution is
    a plain weight.

    Args:
        model: Its weights are copied.
        layers: Numbers of :func:`model_layers`: 0 is the transformer's input, i the output of
            layer i.
    """

    def __init__(self, model: HubertModel, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.names = tuple(f"layer_{layer}" for layer in layers)
        self.model = copy.deepcopy(model).requires_grad_(False)
        del self.model.mask_generator, self.model.logit_generator
        transformer = self.model.wav2vec2.encoder.transformer
        transformer.layers = transformer.layers[: max(self.layers)]
        transformer.pos_conv_embed.conv = _plain(transformer.pos_conv_embed.conv)
        # exporters give a module back in the mode of its outermost part
        self.eval()

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        """Return the layers in the order in which they were chosen."""
        found = model_layers(self.model, waveforms)
        return tuple(found[layer] for layer in self.layers)


class ScoringEncoder(LayerEncoder):
    """Waveforms [B, N] to what a fine-tuned model says of them: the scores of labels [B, C], or of
    characters in each frame [B, T, C].

    Args:
        model: Its weights are copied.
        head: On all layers (:class:`~fedhubert.models.heads.ClassifyHead`), or on the transformer's
            output.
    """

    def __init__(self, model: HubertModel, head: nn.Module) -> None:
        super().__init__(model, [model.config.num_layers])
        self.names = ("scores",)
        self.head = head.requires_grad_(False).eval()

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        """Return the scores."""
        layers = _as_they_are(self.model, waveforms)
        if isinstance(self.head, ClassifyHead):
            return (self.head(layers),)
        return (self.head(_closed(self.model, layers[-1])),)
