"""The settings that the steps share: HuBERT under the recipe, at full or toy size."""

from typing import Any

import torch

from fedhubert.config import Config
from fedhubert.data.batching import Batch
from fedhubert.models import compiled
from fedhubert.models.hubert import HubertModel, build_hubert
from tests.accelerator.context import Context
from tests.benchmarks.step import configuration, noise

TOY = {"feature_grad_mult": 0.1, "pos_conv_groups": 4}
"""Changes of the tiny model. On CPUs with AMX, oneDNN's bf16 convolution of its 16 groups of 12 channels is wrong; of 48 it is right."""
NO_DRAWS = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feature_dropout": 0.0,
    "layer_drop": 0.0,
}


def recipe(
    context: Context, model: str | None = None, precision: str = "bf16", **changes: Any
) -> Config:
    """Return the recipe (504 classes, layer drop off) for HuBERT base, or a tiny one at toy size; ``changes`` are of the model."""
    config = configuration("hubert_tiny" if context.quick else model or "hubert_base")
    changes = (TOY if context.quick else {}) | changes
    client = config.client.model_copy(update={"precision": precision})
    return config.model_copy(
        update={"client": client, "model": config.model.model_copy(update=changes)}
    )


def crops(context: Context, config: Config, rows: int, seconds: float) -> Batch:
    """Return a batch of noise on the device; at toy size two short rows."""
    batch = noise(config, 2, 0.8) if context.quick else noise(config, rows, seconds)
    return batch.to(context.device)


def build(context: Context, config: Config, *, compile_it: bool = False) -> HubertModel:
    """Return the model on the device, in training mode."""
    model = build_hubert(config.model, seed=0).to(context.device).train()
    compiled.BACKEND = backend(context)
    model.set_compiled(compile_it)
    return model


def backend(context: Context) -> str:
    """Return what ``torch.compile`` uses: its compiler, but for toy sizes its tracer alone, since C++ takes minutes."""
    return "aot_eager" if context.quick else "inductor"


def full_precision() -> None:
    """Take float32 at its word: no TF32 in products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
