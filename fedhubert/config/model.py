"""The encoder and its head."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Model, Positive, PositiveFraction, PositiveInt, Probability
from fedhubert.config.keys import key

ConvLayer = tuple[PositiveInt, PositiveInt, PositiveInt]

NUM_SPECIAL_ROWS = 4
"""Rows that fairseq's Dictionary puts before the clusters (``<s> <pad> </s> <unk>``): cluster i is
row i + 4 of the label embeddings."""

MAX_SETS = 16
"""Of pseudo-labels, each with a head of its own: more than anybody has found useful."""


class ModelConfig(Model):
    """A HuBERT encoder with its masked-prediction head (names as in the HuBERT recipe)."""

    name: str
    """What the model is called in exports and model cards; ``model=NAME`` chooses a group of
    sizes."""

    conv_layers: tuple[ConvLayer, ...]
    """Convolutions before the transformer: (channels, kernel, stride) of each, in samples of the
    layer before. Strides multiply to 320."""

    conv_norm: Literal["group_norm", "layer_norm"] = "group_norm"
    """group_norm after the first convolution (base), or layer_norm after each (large)."""

    conv_bias: bool = False
    """Whether convolutions have a bias."""

    embed_dim: PositiveInt
    """Width of the transformer; a multiple of ``num_heads`` and ``pos_conv_groups``."""

    num_layers: PositiveInt
    """Transformer layers."""

    num_heads: PositiveInt
    """Attention heads of a layer."""

    ffn_dim: PositiveInt
    """Width of a layer's feed-forward part."""

    pos_conv_kernel: PositiveInt = key(128, unit="frames")
    """Kernel of the convolution that gives positions."""

    pos_conv_groups: PositiveInt = 16
    """Groups of the convolution that gives positions."""

    layer_norm_first: bool = False
    """Normalise before each part of a layer (large) instead of after it (base)."""

    dropout: Probability = 0.1
    """After attention, feed-forward part and input of the transformer. 0 where a run hardly sees an
    utterance twice."""

    attention_dropout: Probability = 0.1
    """Of attention weights."""

    activation_dropout: Probability = 0.0
    """Inside the feed-forward part."""

    feature_dropout: Probability = 0.1
    """Of the convolutions' outputs before the transformer."""

    layer_drop: Probability = 0.05
    """Probability of leaving out a whole layer in a step."""

    final_dim: PositiveInt = 256
    """Width of the space in which frames and label embeddings are compared."""

    num_classes: Annotated[int, Field(gt=NUM_SPECIAL_ROWS + 1)] = key(
        504, composed="${add:${targets.num_clusters},4}"
    )
    """Rows of label embeddings: ``targets.num_clusters`` and fairseq's four special ones. Derived:
    leave it out."""

    other_classes: Annotated[
        tuple[Annotated[int, Field(gt=NUM_SPECIAL_ROWS + 1)], ...],
        Field(max_length=MAX_SETS - 1),
    ] = key((), composed="${other_classes:${targets.sets},${targets.num_clusters}}")
    """Rows of label embeddings of the further sets of ``targets.sets``, each in a head of its own.
    Derived: leave it out."""

    logit_temperature: Positive = 0.1
    """Cosines are divided by it before the softmax."""

    label_init: Literal["uniform", "normal"] = "uniform"
    """First label embeddings: uniform as in the recipe; normal leaves the plateau at the start
    sooner (small models)."""

    feature_grad_mult: PositiveFraction = 0.1
    """Factor on the gradient that reaches the convolutions; 0.1 in the recipe of base, 1 for large,
    small models and students."""

    trainable: Annotated[str, Field(pattern=r"^(all|head|bias|adapters|top:[1-9][0-9]{0,2})$")] = (
        key("all", fork=["server_optimizer"])
    )
    """What is trained, beside mask embedding and heads: all, top:N (of the encoder its last N
    layers), adapters (low-rank ones in each layer), bias (its biases), or head (nothing of it).
    What is not trained does not travel: sites get it once. For a model that begins with
    ``init_from``."""

    adapter_rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the adapters (LoRA): each has rank x (inputs + outputs) numbers."""

    adapter_alpha: Positive = 16.0
    """What an adapter adds is scaled by alpha / rank."""

    adapter_projections: Annotated[
        tuple[Literal["query", "key", "value", "output", "feed_forward"], ...], Field(min_length=1)
    ] = ("query", "value")
    """Which linear layers get an adapter: query, key, value and output of attention, and the two of
    the feed-forward part."""

    frozen_part: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """Names what is not trained, as sites keep it. The run fills it in."""

    @model_validator(mode="after")
    def _what_is_trained_exists(self) -> Self:
        if len(set(self.adapter_projections)) < len(self.adapter_projections):
            raise ValueError("adapter_projections names one twice")
        layers = int(self.trainable.removeprefix("top:")) if ":" in self.trainable else 0
        if layers > self.num_layers:
            raise ValueError(
                f"trainable={self.trainable} names more layers than there are (num_layers "
                f"{self.num_layers})"
            )
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.embed_dim % self.pos_conv_groups:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of pos_conv_groups "
                f"{self.pos_conv_groups}"
            )
        stride = 1
        for _, _, layer_stride in self.conv_layers:
            stride *= layer_stride
        if stride != 320:
            raise ValueError(
                f"conv_layers have a total stride of {stride} samples; HuBERT's frames are 320 "
                "samples (50 Hz)"
            )
        return self
