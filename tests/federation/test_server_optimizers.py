"""Server optimisers against hand-computed steps and Flower's own classes where they agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from fedhubert.config import FederatedConfig
from fedhubert.errors import CheckpointError
from fedhubert.federation.server_optimizers import (
    Adaptive,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    build_server_optimizer,
    nova_coefficient,
)


def test_fedavg_at_rate_one_is_the_mean_of_the_clients() -> None:
    model = torch.tensor([1.0, -2.0])
    assert torch.equal(FedAvg(1.0).step(model, torch.tensor([0.5, 0.25])), torch.tensor([1.5, -1.75]))


def test_fedadam_by_hand_for_two_steps() -> None:
    """Reddi et al. 2021, Algorithm 2, with v starting at tau ** 2."""
    optimizer = FedAdam(1, eta=0.1, beta1=0.9, beta2=0.99, tau=0.01)
    model, m, v = 2.0, 0.0, 0.01**2
    stepped = torch.tensor([2.0])
    for update in (0.5, -0.2):
        m, v = 0.9 * m + 0.1 * update, 0.99 * v + 0.01 * update**2
        model += 0.1 * m / (v**0.5 + 0.01)
        stepped = optimizer.step(stepped, torch.tensor([update]))
        assert stepped.dtype == torch.float32
        assert float(stepped) == pytest.approx(model, rel=1e-6)


@pytest.mark.parametrize(
    ("strategy", "theirs"),
    [
        ("FedAdam", flower.FedAdam),  # with bias_correction=flower
        ("FedYogi", flower.FedYogi),  # whose v starts at 0, and which Flower leaves uncorrected
        ("FedAdagrad", flower.FedAdagrad),
        ("FedAvgM", flower.FedAvgM),
    ],
)
def test_three_rounds_agree_with_flowers_own_class(strategy: str, theirs: Any) -> None:
    eta, tau, betas = 0.01, 0.001, {"beta1": 0.9, "beta2": 0.999}
    correction = "flower" if strategy == "FedAdam" else "none"
    config = FederatedConfig(strategy=strategy, eta=eta, tau=tau, bias_correction=correction, server_learning_rate=0.5, **betas)  # type: ignore[arg-type]
    ours = build_server_optimizer(config, 3)
    if isinstance(ours, Adaptive):
        ours.state["v"].zero_()
    options: dict[str, Any] = {"eta": eta, "tau": tau}
    if strategy in ("FedAdam", "FedYogi"):
        options |= {"beta_1": 0.9, "beta_2": 0.999}
    elif strategy == "FedAdagrad":
        ours.beta1 = 0.0  # type: ignore[attr-defined]  # Flower's has no momentum
    else:
        options = {"server_learning_rate": 0.5, "server_momentum": 0.9}
    model = np.array([0.3, -0.1, 0.7], np.float32)
    reference = theirs(**options)
    reference.current_arrays = ArrayRecord({"w": Array(model)}) if strategy == "FedAvgM" else {"w": model}
    for round_number, update in ((1, [0.02, -0.05, 0.001]), (2, [-0.01, 0.03, 0.002]), (3, [0.004, 0.02, -0.03])):
        local = model + np.array(update, np.float32)
        expected, _ = reference.aggregate_train(round_number, [flower_reply(local)])
        stepped = ours.step(torch.from_numpy(model), torch.from_numpy(local - model))
        assert stepped.dtype == torch.float32
        np.testing.assert_allclose(stepped.numpy(), expected["w"].numpy(), rtol=2e-5)
        model = stepped.numpy()
        reference.current_arrays = ArrayRecord({"w": Array(model)}) if strategy == "FedAvgM" else {"w": model}


def test_novas_coefficient_is_the_sum_of_the_weights_of_the_gradients() -> None:
    """Under one and the same gradient, SGD with momentum moves by the rate times that sum."""
    for momentum in (0.0, 0.5, 0.9):
        for steps in (1, 2, 7):
            parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
            sgd = torch.optim.SGD([parameter], lr=0.1, momentum=momentum)
            for _ in range(steps):
                parameter.grad = torch.ones_like(parameter)
                sgd.step()
            assert nova_coefficient(steps, momentum) == pytest.approx(-float(parameter.detach()) / 0.1)


def flower_reply(weights: np.ndarray) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower sets these when it starts an app
    content = {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=Message(RecordDict(), 1, "train"))


def test_momentum_by_hand_and_as_torchs_sgd() -> None:
    """With the negated update as gradient, FedAvgM is torch.optim.SGD with momentum, Nesterov's included."""
    for nesterov in (False, True):
        ours = FedAvgM(2, learning_rate=0.7, momentum=0.9, nesterov=nesterov)
        theirs = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        sgd = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=nesterov)
        model = theirs.detach().clone()
        for update in ([0.5, 0.1], [-0.2, 0.3], [0.1, 0.0]):
            model = ours.step(model, torch.tensor(update))
            theirs.grad = -torch.tensor(update)
            sgd.step()
        torch.testing.assert_close(model, theirs.detach())


@pytest.mark.parametrize(
    ("optimizer", "second_moment"),
    [
        (FedYogi, lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2)),
        (FedAdagrad, lambda v, d: v + d**2),
    ],
)
def test_yogi_and_adagrad_by_hand(optimizer: type[Adaptive], second_moment: Callable[[float, float], float]) -> None:
    ours = optimizer(1, eta=0.1, beta1=0.9, beta2=0.99, tau=0.01)
    model, m, v = 2.0, 0.0, 0.01**2
    stepped = torch.tensor([2.0])
    for update in (0.5, -0.2, 0.001):
        m, v = 0.9 * m + 0.1 * update, second_moment(v, update)
        model += 0.1 * m / (v**0.5 + 0.01)
        stepped = ours.step(stepped, torch.tensor([update]))
    assert float(stepped) == pytest.approx(model, rel=1e-5)


def test_state_of_another_optimiser_is_refused() -> None:
    adam = build_server_optimizer(FederatedConfig(strategy="FedAdam"), 3)
    with pytest.raises(CheckpointError, match="federated|strategy"):
        adam.load_state({})
    adam.load_state({"m": torch.ones(3), "v": torch.ones(3)})
    assert float(adam.state["m"].sum()) == 3.0
