"""The encoder and its head."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Model, Positive, PositiveFraction, PositiveInt, Probability

ConvLayer = tuple[PositiveInt, PositiveInt, PositiveInt]

NUM_SPECIAL_ROWS = 4
"""Rows that fairseq's Dictionary puts before the clusters (``<s> <pad> </s> <unk>``): cluster i is row i + 4 of the label embeddings."""


class ModelConfig(Model):
    """A HuBERT encoder with its masked-prediction head (names as in the HuBERT recipe)."""

    name: str
    conv_layers: tuple[ConvLayer, ...]
    conv_norm: Literal["group_norm", "layer_norm"] = "group_norm"
    conv_bias: bool = False
    embed_dim: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    ffn_dim: PositiveInt
    pos_conv_kernel: PositiveInt = 128
    pos_conv_groups: PositiveInt = 16
    layer_norm_first: bool = False
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    feature_dropout: Probability = 0.1
    layer_drop: Probability = 0.05
    final_dim: PositiveInt = 256
    num_classes: Annotated[int, Field(gt=NUM_SPECIAL_ROWS + 1)] = 504
    logit_temperature: Positive = 0.1
    label_init: Literal["uniform", "normal"] = "uniform"
    feature_grad_mult: PositiveFraction = 0.1

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.embed_dim % self.pos_conv_groups:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of pos_conv_groups {self.pos_conv_groups}")
        stride = 1
        for _, _, layer_stride in self.conv_layers:
            stride *= layer_stride
        if stride != 320:
            raise ValueError(f"conv_layers have a total stride of {stride} samples; HuBERT's frames are 320 samples (50 Hz)")
        return self
