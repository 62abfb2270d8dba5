"""What makes the host wait for a GPU happens once a step, however many micro-batches and figures it has; counted on the CPU."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedhubert.config import ClientConfig, ModelConfig, TaskConfig
from fedhubert.data.batching import Batch
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import build_hubert
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.training import local, stepping
from fedhubert.training.stepping import Trainer, fetch

CPU = torch.device("cpu")
NO_DRAWS = {"dropout": 0.0, "attention_dropout": 0.0, "feature_dropout": 0.0, "layer_drop": 0.0}


class Waits(TorchDispatchMode):
    """Counts what reads a tensor's value, or needs it to know a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def batch_of(position: int) -> Batch:
    rng, frames = np.random.default_rng(position), num_frames(6400)
    return Batch(
        torch.from_numpy(rng.standard_normal((2, 6400), dtype=np.float32)),
        torch.from_numpy(rng.integers(0, 100, (2, frames))),
        torch.from_numpy(span_mask(2, frames, MaskSpec(0.65, 5, 2), rng)),
        position,
    ).to(CPU)


@contextmanager
def fetches(monkeypatch: pytest.MonkeyPatch, module: Any) -> Iterator[list[int]]:
    sizes: list[int] = []

    def counted(scalars: Any) -> Any:
        sizes.append(len(scalars))
        return fetch(scalars)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fetch", counted)
        yield sizes


@pytest.mark.parametrize("unmasked_weight", [0.0, 1.0])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_waits_once(
    tiny_model_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
    unmasked_weight: float,
) -> None:
    model = build_hubert(tiny_model_config.model_copy(update=NO_DRAWS), seed=0)
    task = TaskConfig(unmasked_weight=unmasked_weight)
    trainer = Trainer(model, ClientConfig(accumulate=accumulate), task, 0, 0, CPU, 0.0)
    batches = [batch_of(position) for position in range(accumulate)]
    with fetches(monkeypatch, stepping) as sizes, Waits() as waits:
        trainer.step(batches, 1e-3)
    assert not waits.count, waits.count
    assert (
        len(sizes) == 1 and sizes[0] == 1 + 3 * accumulate
    )  # the norm; of each micro-batch: loss, cross-entropy, correct


def test_an_evaluation_waits_once(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_hubert(tiny_model_config.model_copy(update=NO_DRAWS), seed=0)
    batches = [batch_of(position) for position in range(3)]
    with fetches(monkeypatch, local) as sizes, Waits() as waits:
        local.evaluate(model, iter(batches), task=TaskConfig(), device=CPU)
    assert sizes == [6] and not waits.count


def test_generators_are_seeded_once_for_each_piece(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_hubert(tiny_model_config, seed=0)
    trainer = Trainer(model, ClientConfig(accumulate=2), TaskConfig(), 0, 0, CPU, 0.0)
    seeded: list[int] = []
    original = stepping._seed
    monkeypatch.setattr(
        stepping, "_seed", lambda device, seed: (seeded.append(seed), original(device, seed))
    )
    trainer.step([batch_of(0), batch_of(1)], 1e-3)
    assert len(seeded) == len(set(seeded)) == 2


def test_values_come_back_as_they_would_one_by_one() -> None:
    scalars = [
        torch.tensor(0.1),
        torch.tensor(3),
        torch.tensor(1e300, dtype=torch.float64),
        torch.tensor(2**40),
        torch.tensor(float("inf")),
    ]
    assert fetch(scalars) == [scalar.item() for scalar in scalars]
    assert [type(value) for value in fetch(scalars)] == [float, int, float, int, float]
    assert fetch([]) == []
