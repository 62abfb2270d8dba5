"""What steps learn: by heart, near the start, and on from a kept state."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedhubert.config import ClientConfig, ModelConfig
from fedhubert.data.batching import Batch
from fedhubert.errors import TrainingError
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.training.local import evaluate
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.stepping import Trainer
from tests.training.steps import (
    BATCHES,
    CPU,
    PLAIN,
    QUIET,
    TASK,
    gradient,
    model_of,
    relative,
    train,
    vector,
)


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
