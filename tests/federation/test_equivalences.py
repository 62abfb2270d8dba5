"""Federated equals central where it must: the client's own handlers on generated audio, without Flower in between."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.clients.state import StateFolder
from fedhubert.config import FederatedConfig
from fedhubert.federation.rounds.aggregate import RoundFold
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.site.faults import InjectedCrash
from fedhubert.federation.strategies.fedavg import FedAvg
from fedhubert.federation.updates.codecs import decode
from fedhubert.federation.updates.exact_sum import ExactSum
from fedhubert.federation.updates.pipeline import effective_steps
from fedhubert.federation.wire.protocol import Reply
from fedhubert.seeding import generator
from fedhubert.training.local import Progress, train_locally

from .clients import Clients, relative, settings

__all__ = ["settings"]  # fixtures


def test_one_client_with_server_rate_one_is_central_training(settings: list[str]) -> None:
    """Three rounds with dropout on and a fresh optimiser each round, against the same stream trained in one place."""
    clients = Clients(
        [*settings, "client.local_steps=3", "model.dropout=0.1", "model.layer_drop=0.2"]
    )
    start = model = clients.initial()
    server, position = FedAvg(FederatedConfig()), 0
    central = clients.model()
    for number in (1, 2, 3):
        handled = clients.round(model, number, [1], {1: position})
        fold = ExactSum(model.numel())
        fold.add(torch.from_numpy(handled.arrays["update"]), handled.metrics[1]["weight"])
        model = server.step(model, fold.mean())
        train_locally(
            central,
            iter(clients.batches(1, range(position, position + 3))),
            client=clients.job.client,
            task=clients.job.task,
            progress=Progress(number, clients.job.num_rounds, 3),
            seed=clients.job.seed,
            partition=1,
            device=torch.device("cpu"),
        )
        position += handled.metrics[1]["train_micro_batches"]
    assert position == 9
    assert relative(model, clients.layout.to_vector(central), start) < 1e-5


def test_one_plain_sgd_step_of_each_client_is_one_accumulated_central_step(
    settings: list[str],
) -> None:
    sgd = [
        "client.optimizer=sgd",
        "client.lr=0.5",
        "client.schedule=constant",
        "client.warmup_fraction=0",
        "client.grad_clip_norm=0",
    ]
    clients = Clients([*settings, *sgd, "client.local_steps=1", "client.weight_decay=0"])
    start = clients.initial()
    federated = FedAvg(FederatedConfig()).step(start, clients.flat_mean(start, 1, {}))
    central = clients.model()
    train_locally(
        central,
        iter([batch for partition in range(3) for batch in clients.batches(partition, range(1))]),
        client=clients.job.client.model_copy(update={"accumulate": 3}),
        task=clients.job.task,
        progress=Progress(1, clients.job.num_rounds, 1),
        seed=clients.job.seed,
        partition=0,
        device=torch.device("cpu"),
    )
    assert relative(federated, clients.layout.to_vector(central), start) < 1e-5


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_a_shards_partial_sum_has_the_bits_of_the_flat_round(
    settings: list[str], codec: str, tmp_path: Path
) -> None:
    run = [
        *settings,
        "client.local_steps=2",
        "model.dropout=0.1",
        f"federated.update_codec={codec}",
        f"client.state_dir={tmp_path}",
    ]
    clients = Clients([*run, "federated.strategy=FedNova"])
    start = clients.initial()
    expected = clients.flat_mean(start, 1, {})
    flat = clients.outcome.clients
    for shards in ([[0, 1, 2]], [[2, 0], [1]]):
        assert torch.equal(clients.mean(start, 1, shards, {}), expected)
        for partition, metrics in clients.outcome.clients.items():
            assert {**metrics, "train_seconds": 0} == {**flat[partition], "train_seconds": 0}


def test_fednova_with_equal_steps_is_fedavg(settings: list[str]) -> None:
    steps = "client.local_steps=3"
    start = Clients([*settings, steps]).initial()
    plain = Clients([*settings, steps, "federated.strategy=FedAvg"]).flat_mean(start, 1, {})
    nova = Clients([*settings, steps, "federated.strategy=FedNova"]).flat_mean(start, 1, {})
    assert float((nova - plain).norm() / plain.norm()) < 1e-6


def test_what_int8_leaves_over_comes_with_the_next_update(
    settings: list[str], tmp_path: Path
) -> None:
    """Error feedback: over rounds, the sum of what was sent differs from the sum of the updates by one left-over, not by many."""
    state = f"client.state_dir={tmp_path}"
    lossy = Clients([*settings, state, "client.local_steps=1", "federated.update_codec=int8"])
    exact = Clients([*settings, state, "client.local_steps=1"])
    start, total, sent = (
        lossy.initial(),
        torch.zeros(lossy.layout.numel),
        torch.zeros(lossy.layout.numel),
    )
    for number in range(
        1, 9
    ):  # the same model and batch each time: the same update, rounded another way each time
        lossy.site_rounds = {0: number - 1}
        handled = lossy.round(start, number, [0], {})
        sent += decode("int8", handled.arrays, lossy.layout.shapes)
        total += torch.from_numpy(exact.round(start, number, [0], {}).arrays["update"])
    residual = StateFolder(tmp_path / "runs/test/partition_00000").load(8).residual
    assert residual is not None
    torch.testing.assert_close(sent + residual, total, rtol=1e-4, atol=1e-7)
    assert float((sent - total).norm()) < 0.1 * float(total.norm())


def test_a_client_that_trains_too_long_sends_what_it_has_and_can_repeat_it(
    settings: list[str],
) -> None:
    clients = Clients([*settings, "client.local_steps=1000000", "client.max_seconds=0.5"])
    start = clients.initial()
    handled = clients.round(start, 1, [0], {})
    steps = handled.metrics[0]["train_steps"]
    assert 1 <= steps < 1000 and handled.metrics[0]["train_seconds"] < 30
    clients.steps = {0: steps}
    again = clients.round(start, 1, [0], {})
    assert again.metrics[0]["train_steps"] == steps
    assert np.array_equal(handled.arrays["update"], again.arrays["update"])


def test_a_node_leaves_out_clients_for_which_its_time_does_not_suffice(settings: list[str]) -> None:
    clients = Clients([*settings, "client.local_steps=2"])
    clients.budget_s = 1e-3
    handled = clients.round(
        clients.initial(), 1, [0, 1, 2], {}, failures={1: "no_time", 2: "no_time"}
    )
    assert list(handled.metrics) == [0] and "sum" in handled.arrays


def test_a_node_keeps_bad_updates_out_of_its_sum(settings: list[str]) -> None:
    clients = Clients([*settings, "client.local_steps=2", "federated.strategy=FedAvg"])
    start = clients.initial()
    clients.flat_mean(start, 1, {})
    norms = {
        partition: metrics["update_norm"] for partition, metrics in clients.outcome.clients.items()
    }
    longest = max(norms, key=lambda partition: norms[partition])
    clients.norm_limit = sorted(norms.values())[1]
    handled = clients.round(start, 1, [0, 1, 2], {}, failures={longest: "update_norm"})
    assert set(handled.metrics) == {0, 1, 2} - {longest}


def test_injected_faults_look_like_real_ones(settings: list[str]) -> None:
    start = Clients(settings).initial()
    for fault, codes in (("nan", {"update_not_finite"}), ("truncate", {"update_shape"})):
        clients = Clients([*settings, "client.local_steps=1", f"faults.{fault}=0.4"])
        outcome = RoundOutcome(1, [0, 1, 2])
        total, seed = ExactSum(clients.layout.numel), clients.config.seed
        about = {"total": total, "seed": seed}
        fold = RoundFold(
            clients.config.federated, 0.0, clients.layout, start, outcome, clients.limits(), **about
        )
        fold.expect({0: [0], 1: [1], 2: [2]})
        for partition in range(3):
            handled = clients.round(start, 1, [partition], {})
            fold.add(Reply(partition, handled))
        assert {failure.code for failure in outcome.failures} == codes and 0 < len(
            outcome.clients
        ) < 3, fault
    clients = Clients([*settings, "client.local_steps=1", "faults.crash=1.0"])
    with pytest.raises(InjectedCrash):
        clients.round(start, 1, [0], {})
    clients = Clients([*settings, "client.local_steps=1", "faults.delay_s=0.5"])
    started = time.monotonic()
    clients.round(start, 1, [0], {})
    waited = 0.5 * generator(0, "faults/delay", 1, 0, 0).random()
    assert time.monotonic() - started > waited > 0


def test_fedprox_without_its_term_is_fedavg_and_with_it_stays_closer(settings: list[str]) -> None:
    steps = "client.local_steps=4"
    start = Clients([*settings, steps]).initial()
    plain = Clients([*settings, steps, "federated.strategy=FedAvg"]).flat_mean(start, 1, {})
    none = Clients(
        [*settings, steps, "federated.strategy=FedProx", "federated.proximal_mu=0"]
    ).flat_mean(start, 1, {})
    strong = Clients(
        [*settings, steps, "federated.strategy=FedProx", "federated.proximal_mu=50"]
    ).flat_mean(start, 1, {})
    assert torch.equal(plain, none)
    assert float(strong.norm()) < float(plain.norm())


def test_the_weight_of_an_update_is_what_the_configuration_says(settings: list[str]) -> None:
    for weight_by, expected in (
        ("uniform", lambda m: 1),
        ("frames", lambda m: m["train_masked_frames"]),
    ):
        clients = Clients([*settings, "client.local_steps=1", f"federated.weight_by={weight_by}"])
        handled = clients.round(clients.initial(), 1, [0], {})
        assert handled.metrics[0]["weight"] == expected(handled.metrics[0])


def test_fednova_is_exact_for_sgd_with_momentum(settings: list[str]) -> None:
    """What a client sends, times the paper's coefficient, is the update that SGD with momentum made."""
    sgd = [
        *settings,
        "client.optimizer=sgd",
        "client.momentum=0.9",
        "client.lr=0.01",
        "client.weight_decay=0",
        "client.local_steps=4",
    ]
    start = Clients(sgd).initial()
    plain, nova = (
        Clients([*sgd, f"federated.strategy={name}"]).round(start, 1, [0], {})
        for name in ("FedAvg", "FedNova")
    )
    without = Clients([*sgd, "federated.strategy=FedAvg", "client.momentum=0"]).round(
        start, 1, [0], {}
    )
    update = torch.from_numpy(plain.arrays["update"])
    scaled = torch.from_numpy(nova.arrays["update"]) * effective_steps(4, 0.9)
    torch.testing.assert_close(scaled, update, rtol=1e-5, atol=1e-8)
    assert float(update.norm()) > 1.5 * float(torch.from_numpy(without.arrays["update"]).norm())
