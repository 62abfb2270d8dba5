"""Models, batches and steps for tests of the trainer."""

from typing import Any

import numpy as np
import torch

from fedhubert.config import ClientConfig, ModelConfig, TaskConfig
from fedhubert.data.batching import Batch
from fedhubert.data.loading import mask_spec
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import span_mask
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.seeding import generator
from fedhubert.training.local import LocalResult, Progress, train_locally
from fedhubert.training.parameters import ParameterLayout

CPU = torch.device("cpu")
TASK = TaskConfig()
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "feature_dropout": 0.0, "layer_drop": 0.0}
PLAIN = {
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "grad_clip_norm": 0.0,
}


def batch_of(position: int, utterances: int, num_samples: int) -> Batch:
    rng = generator(0, "test", position)
    frames = num_frames(num_samples)
    return Batch(
        torch.from_numpy(rng.standard_normal((utterances, num_samples), dtype=np.float32)),
        torch.from_numpy(rng.integers(0, 100, (utterances, frames))),
        torch.from_numpy(span_mask(utterances, frames, mask_spec(TASK), rng)),
        position,
    )


SIZES = ((2, 6400), (4, 9600), (1, 16000), (3, 8000), (5, 6400), (2, 12800))
BATCHES = [batch_of(position, *size) for position, size in enumerate(SIZES)]
"""Micro-batches with different numbers of masked frames."""


def model_of(config: ModelConfig, **changes: Any) -> HubertModel:
    return build_hubert(config.model_copy(update=changes), seed=0)


def train(
    model: HubertModel,
    stream: Any = BATCHES,
    steps: int = 1,
    *,
    client: ClientConfig,
    **changes: Any,
) -> LocalResult:
    arguments = {
        "task": TASK,
        "progress": Progress(1, 1, steps),
        "seed": 0,
        "partition": 0,
        "device": CPU,
    }
    return train_locally(model, iter(stream), client=client, **(arguments | changes))


def vector(model: HubertModel) -> torch.Tensor:
    return ParameterLayout.of(model).to_vector(model)


def gradient(model: HubertModel, batches: list[Batch]) -> tuple[torch.Tensor, int]:
    """The sum of the batches' gradients, by hand, and their masked frames."""
    model.zero_grad()
    frames = 0
    for batch in batches:
        terms = masked_prediction(model, batch, TASK)
        torch.autograd.backward(terms.loss_sum)
        frames += terms.masked_frames
    return torch.cat(
        [
            parameter.grad.reshape(-1)
            for parameter in model.parameters()
            if parameter.grad is not None
        ]
    ), frames


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())
