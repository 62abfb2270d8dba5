"""Single steps of local training: equivalences, memory, loss scale, FedProx, and the state that passes between rounds."""

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from fedhubert.config import ClientConfig, DataConfig, ModelConfig, TaskConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.data.manifest import Manifest
from fedhubert.errors import TrainingError
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import span_mask
from fedhubert.objectives import masked_prediction as objectives
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.seeding import generator
from fedhubert.training import stepping
from fedhubert.training.local import LocalResult, Progress, evaluate, train_locally
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.stepping import Trainer

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


def running_out_of_memory(limit: int, calls: list[int]) -> Any:
    """The objective on a device that holds ``limit`` utterances."""

    def objective(model: HubertModel, batch: Batch, task: TaskConfig) -> Any:
        calls.append(len(batch.waveforms_BN))
        if calls[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return masked_prediction(model, batch, task)

    return objective


# ------------------------------------------------------------------------------------------------------------ equivalences


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


# ------------------------------------------------------------------------------------------------------------------ memory


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


# ----------------------------------------------------------------------------------------------------------- what goes wrong


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


# --------------------------------------------------------------------------------------------------------------- precision


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_set_is_learned_by_heart(tiny_model_config: ModelConfig, precision: str) -> None:
    model = model_of(tiny_model_config, **QUIET, label_init="normal", feature_grad_mult=1.0)
    fixed = BATCHES[:1] * 60

    def loss() -> float:
        result = evaluate(model, iter(fixed[:1]), task=TASK, device=CPU, precision=precision)
        return result.cross_entropy_sum / result.masked_frames

    before = loss()
    client = ClientConfig(lr=4e-3, schedule="constant", precision=precision)
    train(model, fixed, 60, client=client, task=TASK.model_copy(update={"feature_penalty": 0.0}))
    assert before > 4.0 and loss() < 0.5 * before


# ----------------------------------------------------------------------------------------------------------------- FedProx


def test_fedprox_at_mu_0_is_fedavg_to_the_bit(tiny_model_config: ModelConfig) -> None:
    models = [model_of(tiny_model_config) for _ in range(2)]
    train(models[0], BATCHES, 3, client=ClientConfig(accumulate=2))
    train(models[1], BATCHES, 3, client=ClientConfig(accumulate=2), proximal_mu=0.0)
    assert torch.equal(vector(models[0]), vector(models[1]))


def test_fedprox_adds_mu_times_the_way_from_the_start_to_the_mean_gradient(
    tiny_model_config: ModelConfig,
) -> None:
    """Two SGD steps by hand: w1 = w0 - lr g(w0); w2 = w1 - lr (g(w1) + mu (w1 - w0))."""
    client, mu = ClientConfig(lr=0.1, **PLAIN), 3.0
    model, by_hand = (model_of(tiny_model_config, **QUIET) for _ in range(2))
    train(model, BATCHES[:2], 2, client=client, proximal_mu=mu)
    layout, w0 = ParameterLayout.of(by_hand), vector(by_hand)
    total, frames = gradient(by_hand, BATCHES[:1])
    w1 = w0 - 0.1 * total / frames
    layout.load_vector(by_hand, w1)
    total, frames = gradient(by_hand, BATCHES[1:2])
    w2 = w1 - 0.1 * (total / frames + mu * (w1 - w0))
    assert relative(vector(model) - w0, w2 - w0) < 1e-5
    assert (
        relative(vector(model) - w0, w2 - w0 + 0.1 * mu * (w1 - w0)) > 0.05
    )  # that is, without the term


def test_fedprox_pulls_a_layer_that_the_step_dropped(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config, layer_drop=1 - 1e-9)
    trainer = Trainer(model, ClientConfig(lr=0.1, **PLAIN), TASK, 0, 0, CPU, proximal_mu=2.0)
    weight = model.wav2vec2.encoder.transformer.layers[0].feed_forward.output_dense.weight
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    trainer.step([BATCHES[0]], lr=0.1)
    assert torch.allclose(weight, start + 0.8, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- state between rounds


KEEP = ClientConfig(lr=1e-3, optimizer_policy="keep")


def test_a_kept_state_is_plain_tensors_and_is_not_changed_by_the_next_round(
    tiny_model_config: ModelConfig, tmp_path: Path
) -> None:
    model = model_of(tiny_model_config, **QUIET)
    state = train(model, client=KEEP).optimizer_state
    assert state is not None
    torch.save(state, tmp_path / "state.pt")
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    before = copy.deepcopy(state)
    other = copy.deepcopy(model)
    train(model, BATCHES[1:], client=KEEP, optimizer_state=state)
    train(other, BATCHES[1:], client=KEEP, optimizer_state=stored)
    assert torch.equal(vector(model), vector(other))
    for index, entry in before["state"].items():
        assert all(torch.equal(value, state["state"][index][key]) for key, value in entry.items())


def test_the_configuration_wins_over_a_kept_states_hyper_parameters(
    tiny_model_config: ModelConfig,
) -> None:
    model = model_of(tiny_model_config, **QUIET)
    state = train(model, client=KEEP).optimizer_state
    changed = train(
        model, client=KEEP.model_copy(update={"weight_decay": 0.5}), optimizer_state=state
    ).optimizer_state
    assert changed is not None and changed["param_groups"][0]["weight_decay"] == 0.5


def test_a_kept_state_of_another_model_or_optimiser_is_refused(
    tiny_model_config: ModelConfig,
) -> None:
    state = train(model_of(tiny_model_config, **QUIET), client=KEEP).optimizer_state
    assert state is not None
    wider = model_of(tiny_model_config, ffn_dim=128)
    shallower = model_of(tiny_model_config, num_layers=1)
    for model, client in (
        (wider, KEEP),
        (shallower, KEEP),
        (model_of(tiny_model_config), ClientConfig(optimizer="sgd")),
    ):
        with pytest.raises(TrainingError, match=r"client\.optimizer_policy=reset") as error:
            train(model, client=client, optimizer_state=state)
        assert error.value.setting == "client.optimizer_policy"


def test_sgd_keeps_nothing_and_takes_nothing(tiny_model_config: ModelConfig) -> None:
    client = ClientConfig(lr=0.1, **PLAIN, optimizer_policy="keep")
    model = model_of(tiny_model_config)
    state = train(model, client=client).optimizer_state
    assert state is not None and not state["state"]
    assert train(model, client=client, optimizer_state=state).steps == 1


# --------------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_the_sum_of_its_batches_in_eval_mode(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config, dropout=0.5).eval()
    with torch.no_grad():
        terms = [masked_prediction(model, batch, TASK) for batch in BATCHES]
    for mode in (True, False):
        model.train(mode)
        result = evaluate(model, iter(BATCHES), task=TASK, device=CPU)
        assert model.training is mode
        assert result.masked_frames == sum(term.masked_frames for term in terms)
        assert result.correct == sum(int(term.correct) for term in terms)
        assert result.cross_entropy_sum == pytest.approx(
            sum(float(term.cross_entropy_sum) for term in terms)
        )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_is_given_back_after_a_failure(tiny_model_config: ModelConfig) -> None:
    def failing() -> Iterator[Batch]:
        yield BATCHES[0]
        raise OSError("disk")

    model = model_of(tiny_model_config).train()
    with pytest.raises(OSError, match="disk"):
        evaluate(model, failing(), task=TASK, device=CPU)
    assert model.training
