"""Several processes take the steps of one: the same losses and weights, whatever a step is made of, and no hanging where one dies."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.config import ClientConfig, ModelConfig
from fedhubert.errors import RankError, TrainingError
from fedhubert.objectives import masked_prediction as objectives
from fedhubert.training.local import LocalResult
from fedhubert.training.rank_pool import RankPool, pool_of
from fedhubert.training.ranks import ALONE, Ranks

from .steps import BATCHES, CPU, model_of, train, vector

STEPS = 2
DROPPING = {"dropout": 0.1, "layer_drop": 0.5}
"""Of two layers one is often dropped, here in one rank and there in another."""


@dataclass(frozen=True)
class Trained:
    result: LocalResult
    vector: np.ndarray


def steps_of(
    ranks: Ranks,
    config: ModelConfig,
    client: ClientConfig,
    batches: int = len(BATCHES),
    most_utterances: int = 10,
) -> Trained:
    """What one rank does; a batch of more than ``most_utterances`` does not fit into its memory."""
    torch.set_num_threads(1)
    original = objectives.masked_prediction

    def masked_prediction(model, batch, task):  # type: ignore[no-untyped-def]
        if len(batch.waveforms_BN) > most_utterances:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, task)

    objectives.masked_prediction = masked_prediction
    try:
        model = model_of(config, **DROPPING)
        own = ranks.deal(range(batches), client.accumulate)
        result = train(model, [BATCHES[number] for number in own], batches // client.accumulate, client=client, ranks=ranks)
    finally:
        objectives.masked_prediction = original
    return Trained(result, vector(model).numpy())


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    pool = RankPool([CPU, CPU], 300.0)
    yield pool
    pool.close()


def same_steps(pool: RankPool, config: ModelConfig, client: ClientConfig, **given: int) -> float:
    """Hold the ranks' steps against one process's; return how far the weights are apart."""
    alone = steps_of(ALONE, config, client, **given)
    ranks = pool.run(steps_of, config, client, **given)
    for each in ranks:
        assert np.array_equal(each.vector, ranks[0].vector)
        assert each.result.steps == alone.result.steps
        assert each.result.grad_norm == pytest.approx(alone.result.grad_norm, rel=1e-5)
    for name, value in alone.result.metrics.items():
        assert sum(each.result.metrics.get(name, 0) for each in ranks) == pytest.approx(value, rel=1e-6), name
    assert sum(each.result.frames for each in ranks) == alone.result.frames
    assert sum(each.result.micro_batches for each in ranks) == alone.result.micro_batches
    assert [each.result.optimizer_state is None for each in ranks[1:]] == [True] * (len(ranks) - 1)
    return float(np.linalg.norm(ranks[0].vector - alone.vector) / np.linalg.norm(alone.vector))
