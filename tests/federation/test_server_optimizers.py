"""Server optimisers against hand-computed steps and Flower's own FedAdam where they agree."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
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


def test_fedadam_agrees_with_flowers_apart_from_its_bias_correction_and_start() -> None:
    """Flower starts v at 0 and scales eta by sqrt(1 - beta2^(round + 1)) / (1 - beta1^(round + 1)); given both, two rounds agree."""
    eta, beta1, beta2, tau = 0.01, 0.9, 0.999, 0.001
    before = np.array([0.3, -0.1, 0.7], np.float32)
    flower = FlowerFedAdam(eta=eta, beta_1=beta1, beta_2=beta2, tau=tau)
    flower.current_arrays = {"w": before}
    ours = FedAdam(3, eta=eta, beta1=beta1, beta2=beta2, tau=tau)
    ours.state["v"].zero_()
    model = torch.from_numpy(before)
    for round_number, update in ((1, [0.02, -0.05, 0.001]), (2, [-0.01, 0.03, 0.002])):
        local = model.numpy() + np.array(update, np.float32)
        theirs, _ = flower.aggregate_train(round_number, [flower_reply(local)])
        ours.eta = eta * float(np.sqrt(1 - beta2 ** (round_number + 1)) / (1 - beta1 ** (round_number + 1)))
        model = ours.step(model, torch.from_numpy(local) - model)
        np.testing.assert_allclose(model.numpy(), theirs["w"].numpy(), rtol=1e-5)
        flower.current_arrays = {"w": model.numpy()}


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
