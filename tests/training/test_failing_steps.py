"""Steps that go wrong: memory that runs out, streams that break, losses that are not finite."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.config import ClientConfig, ModelConfig, TaskConfig
from fedhubert.data.batching import Batch
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives import masked_prediction as objectives
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.training import stepping
from fedhubert.training.local import evaluate
from tests.training.steps import BATCHES, CPU, PLAIN, QUIET, TASK, model_of, relative, train, vector


def running_out_of_memory(limit: int, calls: list[int]) -> Any:
    """The objective on a device that holds ``limit`` utterances."""

    def objective(model: HubertModel, batch: Batch, task: TaskConfig) -> Any:
        calls.append(len(batch.waveforms_BN))
        if calls[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return masked_prediction(model, batch, task)

    return objective


def test_memory_that_runs_out_late_in_a_step_counts_nothing_twice(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches fit, the third does not: the step is taken again as a whole."""
    client = ClientConfig(
        accumulate=5, lr=1e3, **PLAIN
    )  # updates large beside the weights' rounding
    start = vector(model_of(tiny_model_config, **QUIET))
    roomy, tight = (model_of(tiny_model_config, **QUIET) for _ in range(2))
    stream = [BATCHES[0], BATCHES[2], BATCHES[4], BATCHES[1], BATCHES[3]]
    expected = train(roomy, stream, client=client)
    calls: list[int] = []
    monkeypatch.setattr(objectives, "masked_prediction", running_out_of_memory(2, calls))
    result = train(tight, stream, client=client)
    in_one, in_two, in_four = [2, 1, 5], [1, 1, 1, 3], [1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert calls == [*in_one, *in_two, *in_four]
    assert relative(vector(tight) - start, vector(roomy) - start) < 1e-6
    assert (result.micro_batches, result.masked_frames, result.correct) == (
        5,
        expected.masked_frames,
        expected.correct,
    )
    assert result.audio_s == pytest.approx(expected.audio_s)
    assert result.cross_entropy_sum == pytest.approx(expected.cross_entropy_sum, rel=1e-6)


def test_evaluation_splits_what_does_not_fit_too(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model_config)
    expected = evaluate(model, iter(BATCHES), task=TASK, device=CPU)
    calls: list[int] = []
    monkeypatch.setattr(objectives, "masked_prediction", running_out_of_memory(2, calls))
    result = evaluate(model, iter(BATCHES), task=TASK, device=CPU)
    assert max(calls[2:]) <= 3 and (result.masked_frames, result.correct) == (
        expected.masked_frames,
        expected.correct,
    )
    assert result.cross_entropy_sum == pytest.approx(expected.cross_entropy_sum, rel=1e-6)


def test_no_memory_for_the_optimiser_is_an_error_with_a_remedy(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(TrainingError, match="the optimiser's state do not fit") as error:
        train(model_of(tiny_model_config), client=ClientConfig())
    assert error.value.setting == "client.device"


class Stream:
    """A loader that says whether it was closed."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches, self.closed = iter(batches), False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        self.closed = True


def broken(batch: Batch) -> Batch:
    return Batch(
        torch.full_like(batch.waveforms_BN, float("nan")),
        batch.labels_BT,
        batch.mask_BT,
        batch.position,
    )


def test_the_loader_is_closed_whatever_happens(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config)
    whole, failing, evaluated, unlabelled = (
        Stream(BATCHES),
        Stream([broken(BATCHES[0])]),
        Stream(BATCHES),
        Stream([]),
    )
    train(model, whole, client=ClientConfig())
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(model, failing, client=ClientConfig())
    evaluate(model, evaluated, task=TASK, device=CPU)
    with pytest.raises(TrainingError, match="no batch"):
        train(model, unlabelled, client=ClientConfig())
    assert whole.closed and failing.closed and evaluated.closed and unlabelled.closed


def test_a_failed_step_leaves_the_weights_alone(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config)
    before = vector(model)
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(model, [BATCHES[0], broken(BATCHES[1])], client=ClientConfig(accumulate=2))
    model.logit_generator.label_embeddings.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(TrainingError, match="gradient is not finite"):
        train(model, client=ClientConfig())
    assert torch.equal(vector(model), before)


def test_batches_that_run_out_make_a_last_smaller_step(tiny_model_config: ModelConfig) -> None:
    result = train(model_of(tiny_model_config), BATCHES[:5], 9, client=ClientConfig(accumulate=2))
    assert (result.steps, result.micro_batches) == (3, 5)
    assert result.audio_s == pytest.approx(
        sum(batch.waveforms_BN.numel() for batch in BATCHES[:5]) / 16000
    )


def test_fp16_takes_the_step_of_fp32_at_any_first_loss_scale(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale that overflows is lowered and the same step taken again: none is skipped."""
    start = vector(model_of(tiny_model_config, **QUIET))
    updates = {}
    for name, scale in (("fp32", 1.0), ("fp16", 128.0), ("overflowing", 2.0**22)):
        monkeypatch.setattr(stepping, "_FIRST_LOSS_SCALE", scale)
        client = ClientConfig(
            accumulate=3, lr=0.1, **PLAIN, precision="fp32" if name == "fp32" else "fp16"
        )
        model = model_of(tiny_model_config, **QUIET)
        result = train(model, BATCHES[:3], client=client)
        updates[name] = vector(model) - start
        assert result.steps == 1 and np.isfinite(result.grad_norm)
    assert 0 < relative(updates["fp16"], updates["fp32"]) < 0.02
    assert relative(updates["overflowing"], updates["fp16"]) < 0.02


def test_fp16_gives_up_when_no_loss_scale_helps(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config)
    model.logit_generator.label_embeddings.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="gradient is not finite"):
        train(model, client=ClientConfig(precision="fp16"))
