"""Local training: the steps that fairseq would take, the same bits anywhere, and what happens when things go wrong."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.config import ClientConfig, ModelConfig, TaskConfig
from fedhubert.data.batching import Batch
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.objectives import masked_prediction as objectives
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.training import local
from fedhubert.training.local import Progress, evaluate, train_locally
from fedhubert.training.parameters import ParameterLayout

CPU = torch.device("cpu")
TASK = TaskConfig(mask_probability=0.65, mask_length_frames=5)
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "feature_dropout": 0.0, "layer_drop": 0.0}


def batch_of(position: int, utterances: int = 3, num_samples: int = 9600) -> Batch:
    """A batch whose labels follow the waveform's loudness, so that there is something to learn."""
    rng = np.random.default_rng(position)
    frames = (num_samples - 400) // 320 + 1
    loud = rng.integers(0, 4, (utterances, -(-frames // 15)))
    labels = np.repeat(loud, 15, axis=1)[:, :frames]
    gain = np.repeat(0.02 * 4.0**labels, 320, axis=1)
    waveforms = rng.standard_normal((utterances, num_samples)) * np.pad(
        gain, ((0, 0), (0, num_samples - gain.shape[1])), mode="edge"
    )
    mask = span_mask(utterances, frames, MaskSpec(0.65, 5, 2), rng)
    return Batch(
        torch.from_numpy(waveforms.astype(np.float32)),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(mask),
        position,
    )


def batches(count: int, start: int = 0) -> Iterator[Batch]:
    return iter(
        [
            batch_of(position, utterances=2 + position % 3)
            for position in range(start, start + count)
        ]
    )


def train(
    model: HubertModel, client: ClientConfig, steps: int, **changes: Any
) -> local.LocalResult:
    arguments: dict[str, Any] = {
        "client": client,
        "task": TASK,
        "progress": Progress(1, 1, steps),
        "seed": 0,
        "partition": 0,
        "device": CPU,
    }
    stream = changes.pop("batches", batches(steps * client.accumulate))
    return train_locally(model, stream, **(arguments | changes))


def vector(model: HubertModel) -> torch.Tensor:
    return ParameterLayout.of(model).to_vector(model)


@pytest.fixture()
def quiet(tiny_model_config: ModelConfig) -> HubertModel:
    return build_hubert(tiny_model_config.model_copy(update=QUIET), seed=0)


def test_accumulated_micro_batches_are_normalised_as_data_parallel_fairseq_does(
    quiet: HubertModel,
) -> None:
    """One SGD step on three micro-batches with unequal numbers of masked frames: sum of gradients over sum of masked frames, by hand."""
    client = ClientConfig(
        optimizer="sgd",
        lr=0.1,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.0,
        grad_clip_norm=0.0,
        accumulate=3,
    )
    before = vector(quiet)
    total, frames = torch.zeros_like(before), 0
    for batch in batches(3):
        quiet.zero_grad()
        terms = masked_prediction(quiet, batch, TASK)
        terms.loss_sum.backward()
        total += torch.cat(
            [
                (p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1)
                for p in quiet.parameters()
            ]
        )
        frames += terms.masked_frames
    result = train(quiet, client, 1)
    assert (result.steps, result.micro_batches, result.masked_frames) == (1, 3, frames)
    expected = before - 0.1 * total / frames
    assert float((vector(quiet) - expected).norm() / (0.1 * total / frames).norm()) < 1e-5


def test_gradients_are_clipped_to_the_norm(quiet: HubertModel) -> None:
    client = ClientConfig(
        optimizer="sgd",
        lr=1.0,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.0,
        grad_clip_norm=0.01,
    )
    before = vector(quiet)
    result = train(quiet, client, 1)
    assert result.grad_norm > 0.01
    assert float((vector(quiet) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_exactly_the_micro_batches_of_its_steps_are_consumed(quiet: HubertModel) -> None:
    stream = batches(10)
    result = train(quiet, ClientConfig(accumulate=2), 3, batches=stream)
    assert result.micro_batches == 6
    assert next(stream).position == 6


def test_the_same_seed_gives_the_same_bits_and_other_generators_are_left_alone(
    tiny_model_config: ModelConfig,
) -> None:
    client = ClientConfig(lr=1e-3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        model = build_hubert(tiny_model_config, seed=0)
        train(model, client, 3, seed=seed)
        runs.append(vector(model))
        torch.rand(7 * seed)
        torch.set_rng_state(state)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    model = build_hubert(tiny_model_config, seed=0)
    train(model, client, 1)
    evaluate(model, batches(1), task=TASK, device=CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_running_out_halves_the_micro_batch_and_keeps_the_step(
    quiet: HubertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ClientConfig(optimizer="sgd", lr=0.1, schedule="constant", warmup_fraction=0.0)
    reference = copy.deepcopy(quiet)
    train(reference, client, 2)
    sizes: list[int] = []

    def too_large(model: HubertModel, batch: Batch, task: TaskConfig) -> Any:
        sizes.append(len(batch.waveforms_BN))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return masked_prediction(model, batch, task)

    monkeypatch.setattr(objectives, "masked_prediction", too_large)
    train(quiet, client, 2)
    assert max(sizes[1:]) <= 3 and sizes.count(3) == 1  # the split is remembered
    assert float((vector(quiet) - vector(reference)).norm() / vector(reference).norm()) < 1e-6


def test_an_utterance_that_does_not_fit_alone_is_an_error_with_a_remedy(
    quiet: HubertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: HubertModel, batch: Batch, task: TaskConfig) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(objectives, "masked_prediction", never)
    with pytest.raises(TrainingError, match=r"data\.max_seconds"):
        train(quiet, ClientConfig(), 1)


def test_a_loss_that_is_not_finite_is_an_error(quiet: HubertModel) -> None:
    batch = batch_of(0)
    batch.waveforms_BN[0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"client\.lr"):
        train(quiet, ClientConfig(), 1, batches=iter([batch]))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_it_learns(tiny_model_config: ModelConfig, precision: str) -> None:
    """The labels are the waveform's loudness: a model that ignores its input stays at log(4) nats."""
    quiet = build_hubert(
        tiny_model_config.model_copy(
            update={**QUIET, "label_init": "normal", "feature_grad_mult": 1.0}
        ),
        seed=0,
    )
    client = ClientConfig(lr=3e-3, schedule="constant", precision=precision)
    held_out = [batch_of(1000), batch_of(1001)]
    task = TASK.model_copy(update={"feature_penalty": 0.0})

    def loss() -> float:
        result = evaluate(quiet, iter(held_out), task=task, device=CPU)
        return result.cross_entropy_sum / result.masked_frames

    before = loss()
    train(quiet, client, 120, batches=batches(120), task=task)
    assert before > math.log(4) and loss() < math.log(4) - 0.1


def test_evaluation_is_without_dropout_and_leaves_the_mode(tiny_model_config: ModelConfig) -> None:
    model = build_hubert(tiny_model_config.model_copy(update={"dropout": 0.5}), seed=0).train()
    first, second = (evaluate(model, batches(2), task=TASK, device=CPU) for _ in range(2))
    assert first == second and model.training


def test_training_can_be_asked_to_stop_between_steps(quiet: HubertModel) -> None:
    asked: list[None] = []
    result = train(
        quiet, ClientConfig(), 5, should_stop=lambda: asked.append(None) or len(asked) > 1
    )
    assert result.steps == 2 == result.micro_batches
    assert train(quiet, ClientConfig(), 5, should_stop=lambda: True).steps == 1
    with pytest.raises(TrainingError, match="no batch"):
        train(quiet, ClientConfig(), 5, batches=iter([]))
