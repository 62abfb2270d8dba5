"""Server optimisers against hand-computed steps and Flower's own classes where they agree."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fedhubert.config import FederatedConfig
from fedhubert.errors import CheckpointError
from fedhubert.federation.strategies.adaptive import Adaptive
from fedhubert.federation.strategies.fedadagrad import FedAdagrad
from fedhubert.federation.strategies.fedadam import FedAdam
from fedhubert.federation.strategies.fedavg import FedAvg
from fedhubert.federation.strategies.fedavgm import FedAvgM
from fedhubert.federation.strategies.fedyogi import FedYogi
from fedhubert.federation.strategies.strategy import server_share, strategy_of
from fedhubert.federation.updates.pipeline import effective_steps
from fedhubert.training.parameters import ParameterLayout
from tests.flower import identify


def flat(numel: int) -> ParameterLayout:
    """A model of one parameter [numel]."""
    return ParameterLayout(("weight",), ((numel,),))


def test_fedavg_at_rate_one_is_the_mean_of_the_clients() -> None:
    model = torch.tensor([1.0, -2.0])
    assert torch.equal(
        FedAvg(FederatedConfig()).step(model, torch.tensor([0.5, 0.25])), torch.tensor([1.5, -1.75])
    )


def test_fedadam_by_hand_for_two_steps() -> None:
    """Reddi et al. 2021, Algorithm 2, with v starting at tau ** 2."""
    optimizer = FedAdam(FederatedConfig(eta=0.1, beta1=0.9, beta2=0.99, tau=0.01), flat(1))
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
    config = FederatedConfig(
        strategy=strategy,
        eta=eta,
        tau=tau,
        bias_correction=correction,
        server_learning_rate=0.5,
        **betas,
    )  # type: ignore[arg-type]
    ours = strategy_of(config, flat(3))
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
    reference.current_arrays = (
        ArrayRecord({"w": Array(model)}) if strategy == "FedAvgM" else {"w": model}
    )
    for round_number, update in (
        (1, [0.02, -0.05, 0.001]),
        (2, [-0.01, 0.03, 0.002]),
        (3, [0.004, 0.02, -0.03]),
    ):
        local = model + np.array(update, np.float32)
        expected, _ = reference.aggregate_train(round_number, [flower_reply(local)])
        stepped = ours.step(torch.from_numpy(model), torch.from_numpy(local - model))
        assert stepped.dtype == torch.float32
        np.testing.assert_allclose(stepped.numpy(), expected["w"].numpy(), rtol=2e-5)
        model = stepped.numpy()
        reference.current_arrays = (
            ArrayRecord({"w": Array(model)}) if strategy == "FedAvgM" else {"w": model}
        )


def test_novas_coefficient_is_the_sum_of_the_weights_of_the_gradients() -> None:
    """Under one and the same gradient, SGD with momentum moves by the rate times that sum."""
    for momentum in (0.0, 0.5, 0.9):
        for steps in (1, 2, 7):
            parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
            sgd = torch.optim.SGD([parameter], lr=0.1, momentum=momentum)
            for _ in range(steps):
                parameter.grad = torch.ones_like(parameter)
                sgd.step()
            assert effective_steps(steps, momentum) == pytest.approx(
                -float(parameter.detach()) / 0.1
            )


def flower_reply(weights: np.ndarray) -> Message:
    identify()
    content = {
        "arrays": ArrayRecord({"w": Array(weights)}),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=Message(RecordDict(), 1, "train"))


def test_momentum_by_hand_and_as_torchs_sgd() -> None:
    """With the negated update as gradient, FedAvgM is torch.optim.SGD with momentum, Nesterov's included."""
    for nesterov in (False, True):
        ours = FedAvgM(
            FederatedConfig(server_learning_rate=0.7, server_momentum=0.9, nesterov=nesterov),
            flat(2),
        )
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
def test_yogi_and_adagrad_by_hand(
    optimizer: type[Adaptive], second_moment: Callable[[float, float], float]
) -> None:
    ours = optimizer(FederatedConfig(eta=0.1, beta1=0.9, beta2=0.99, tau=0.01), flat(1))
    model, m, v = 2.0, 0.0, 0.01**2
    stepped = torch.tensor([2.0])
    for update in (0.5, -0.2, 0.001):
        m, v = 0.9 * m + 0.1 * update, second_moment(v, update)
        model += 0.1 * m / (v**0.5 + 0.01)
        stepped = ours.step(stepped, torch.tensor([update]))
    assert float(stepped) == pytest.approx(model, rel=1e-5)


@pytest.mark.parametrize("strategy", get_args(FederatedConfig.model_fields["strategy"].annotation))
def test_every_strategy_is_found_keeps_what_it_says_and_costs_nothing_to_ask(strategy: str) -> None:
    config = FederatedConfig.model_validate({"strategy": strategy, "min_clients": 5})
    found = strategy_of(config, flat(1000))
    assert type(found).__name__ == strategy
    assert sum(map(len, found.state.values())) == found.state_numel(flat(1000))
    assert not any(kept.numel() for kept in strategy_of(config).state.values())


def test_state_of_another_optimiser_is_refused() -> None:
    adam = strategy_of(FederatedConfig(strategy="FedAdam"), flat(3))
    with pytest.raises(CheckpointError, match="federated|strategy"):
        adam.load_state({})
    adam.load_state({"m": torch.ones(3), "v": torch.ones(3)})
    assert float(adam.state["m"].sum()) == 3.0


def test_on_gradients_fedadam_with_a_schedule_is_central_adam() -> None:
    """One step of plain SGD at rate 1 is minus the gradient: the server's step is then torch's Adam, but for the first steps' bias correction."""
    config = FederatedConfig(
        num_rounds=50,
        eta=0.01,
        beta2=0.98,
        tau=1e-8,
        bias_correction="flower",
        server_schedule="linear",
        server_warmup_fraction=0.2,
    )
    server = strategy_of(config, flat(5))
    parameter = torch.nn.Parameter(torch.ones(5))
    central = torch.optim.Adam([parameter], betas=(config.beta1, config.beta2), eps=1e-8)
    model = torch.ones(5)
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 51):
        gradient = torch.randn(5, generator=generator)
        power = number + 1  # Flower's corrections are those of the next step
        corrected = (1 - config.beta2**power) ** 0.5 / (1 - config.beta1**power)
        torchs = (1 - config.beta2**number) ** 0.5 / (1 - config.beta1**number)
        central.param_groups[0]["lr"] = (
            config.eta * server_share(config, number) * corrected / torchs
        )
        parameter.grad = gradient.clone()
        central.step()
        model = server.step(model, -gradient, server_share(config, number))
    torch.testing.assert_close(model, parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "strategy", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedMuon"]
)
def test_a_share_of_the_rate_is_a_share_of_the_step(strategy: str) -> None:
    config = FederatedConfig.model_validate({"strategy": strategy})
    model, update = torch.ones(4), torch.tensor([0.5, -1.0, 2.0, 0.0])
    mean = update.clone()
    stepped = strategy_of(config, flat(4)).step(model, mean)
    assert stepped.data_ptr() == mean.data_ptr() and torch.equal(
        model, torch.ones(4)
    )  # no vector more than there must be
    whole = stepped - model
    half = strategy_of(config, flat(4)).step(model, update.clone(), 0.5) - model
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-6)
    assert whole.norm() > 0


def test_the_servers_share_by_hand() -> None:
    config = FederatedConfig(num_rounds=10, server_schedule="linear", server_warmup_fraction=0.2)
    shares = [server_share(config, number) for number in range(1, 11)]
    assert shares == pytest.approx(
        [0.25, 0.75, 0.9375, 0.8125, 0.6875, 0.5625, 0.4375, 0.3125, 0.1875, 0.0625]
    )
    assert [server_share(FederatedConfig(num_rounds=3), number) for number in (1, 2, 3)] == [
        1.0,
        1.0,
        1.0,
    ]
