"""Single steps of local training: equivalences, memory, loss scale, FedProx, and the state that passes between rounds."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fedhubert.config import ClientConfig, DataConfig, ModelConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.training.local import Progress
from tests.training.steps import (
    BATCHES,
    PLAIN,
    QUIET,
    TASK,
    gradient,
    model_of,
    relative,
    train,
    vector,
)


def test_one_step_of_adamw_is_torchs_on_the_mean_loss_clipped(
    tiny_model_config: ModelConfig,
) -> None:
    client = ClientConfig(
        accumulate=3, lr=2e-3, schedule="constant", warmup_fraction=0.0, grad_clip_norm=0.5
    )
    model, by_hand = (model_of(tiny_model_config, **QUIET) for _ in range(2))
    result = train(model, BATCHES[:3], client=client)
    optimizer = torch.optim.AdamW(
        by_hand.parameters(), lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01
    )
    total, frames = gradient(by_hand, BATCHES[:3])
    for parameter in by_hand.parameters():
        assert parameter.grad is not None
        parameter.grad *= min(1.0, 0.5 / float(total.norm() / frames)) / frames
    optimizer.step()
    assert result.grad_norm == pytest.approx(float(total.norm() / frames), rel=1e-5)
    assert result.grad_norm > 0.5  # so that clipping was at work
    start = vector(model_of(tiny_model_config, **QUIET))
    assert (
        relative(vector(model) - start, vector(by_hand) - start) < 1e-3
    )  # Adam divides by small numbers
    assert relative(vector(model), vector(by_hand)) < 1e-6


def test_clients_with_one_sgd_step_each_are_their_micro_batches_accumulated(
    tiny_model_config: ModelConfig,
) -> None:
    client = ClientConfig(lr=0.1, **PLAIN)
    start = vector(model_of(tiny_model_config, **QUIET))
    updates, weights = [], []
    for number in range(4):
        model = model_of(tiny_model_config, **QUIET)
        result = train(model, [BATCHES[number]], client=client, partition=number)
        updates.append(vector(model) - start)
        weights.append(result.masked_frames)
    central = model_of(tiny_model_config, **QUIET)
    train(central, BATCHES[:4], client=client.model_copy(update={"accumulate": 4}))
    federated = sum(update * weight for update, weight in zip(updates, weights, strict=True)) / sum(
        weights
    )
    assert len(set(weights)) > 1 and relative(federated, vector(central) - start) < 1e-5


def test_rounds_that_keep_the_optimiser_are_one_long_run(tiny_model_config: ModelConfig) -> None:
    """With dropout and layer drop, a schedule and accumulation: neither the draws nor the rates restart with a round."""
    client = ClientConfig(accumulate=2, lr=1e-3, warmup_fraction=0.4, optimizer_policy="keep")
    whole, parts = (model_of(tiny_model_config) for _ in range(2))
    train(whole, BATCHES, 3, client=client)
    state: dict[str, Any] | None = None
    for number in range(3):
        stream = BATCHES[2 * number : 2 * number + 2]
        state = train(
            parts, stream, client=client, progress=Progress(number + 1, 3, 1), optimizer_state=state
        ).optimizer_state
    assert torch.equal(vector(whole), vector(parts))


def test_dropout_draws_anew_at_every_position_and_on_every_client(
    tiny_model_config: ModelConfig,
) -> None:
    def trained(position: int, partition: int, **changes: Any) -> torch.Tensor:
        batch = Batch(BATCHES[0].waveforms_BN, BATCHES[0].labels_BT, BATCHES[0].mask_BT, position)
        model = model_of(tiny_model_config, **changes)
        train(model, [batch], client=ClientConfig(), partition=partition)
        return vector(model)

    drawn = [trained(*key) for key in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])
    assert torch.equal(trained(0, 0, **QUIET), trained(1, 1, **QUIET))


def test_checkpointed_activations_give_the_same_step(tiny_model_config: ModelConfig) -> None:
    models = [model_of(tiny_model_config, dropout=0.3, layer_drop=0.0) for _ in range(2)]
    models[1].set_activation_checkpointing(True)
    for model in models:
        train(model, BATCHES, 2, client=ClientConfig(lr=0.1, **PLAIN))
    assert relative(vector(models[1]), vector(models[0])) < 1e-6


def test_the_number_of_loader_threads_changes_nothing(
    tiny_model_config: ModelConfig, tone_folder: Path
) -> None:
    paths = sorted(path.relative_to(tone_folder).as_posix() for path in tone_folder.rglob("*.wav"))
    infos = [soundfile.info(str(tone_folder / path)) for path in paths]
    sizes, rates = (
        np.array([info.frames for info in infos]),
        np.array([info.samplerate for info in infos], np.int32),
    )
    manifest = Manifest(tone_folder, paths, [""] * len(paths), sizes, rates, {})
    trained = []
    for workers in (0, 1, 3):
        data = DataConfig(min_seconds=0.5, max_seconds=1.5, batch_seconds=3.0, num_workers=workers)
        plan = BatchPlan(manifest.lengths(), np.arange(len(manifest)), data, 0, 0)
        labels = LabelSource(lambda row: np.arange(500) % 100, 100)
        stream = load_batches(manifest, plan, range(100), labels, mask_spec(TASK), data)
        model = model_of(tiny_model_config)
        train(model, stream, 4, client=ClientConfig(accumulate=2))
        trained.append(vector(model))
    assert torch.equal(trained[0], trained[1]) and torch.equal(trained[0], trained[2])
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("fedhubert-loader")
    ]
