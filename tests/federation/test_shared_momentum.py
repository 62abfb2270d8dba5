"""client.optimizer_policy=shared: clients' Muon goes on with the mean of the momenta of the round before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config import Config, FederatedConfig, validate
from fedhubert.errors import ConfigError
from fedhubert.federation.server.fork import fork
from fedhubert.federation.server.session import RunResult
from fedhubert.federation.server.space import optimizer_bytes, server_state_bytes
from fedhubert.federation.site import train
from fedhubert.federation.strategies.strategy import check_strategy, stepped, strategy_of
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.training.muon import numel_of_matrices
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.travelling import travelling_model

from .test_runs import Run, gone_on, model, play, rounds, run  # noqa: F401

SHARED = [
    "client.optimizer=muon",
    "client.optimizer_policy=shared",
    "client.lr=1e-2",
    "client.muon.precision=fp32",
    "federated.strategy=FedAvg",
    "federated.bias_correction=none",
]
ALONE = [*SHARED, "federated.num_clients=1", "data.partition.kind=random"]
STATELESS = ["client.betas=[0,0]"]
"""What AdamW steps beside Muon then has no memory, and Muon's is its momentum alone."""


def momenta(result: RunResult) -> dict[str, torch.Tensor]:
    file = result.folder.checkpoints / result.checkpoint.name.replace("checkpoint", "resume")
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["momenta"]
    return found


def test_a_client_alone_goes_on_as_if_it_had_kept_its_optimiser(run: Run) -> None:  # noqa: F811
    settings = [*ALONE, *STATELESS, "client.local_steps=3"]
    shared = run("shared", *settings, nodes=1)
    kept = run("kept", *settings, "client.optimizer_policy=keep", nodes=1)
    reset = run("reset", *settings, "client.optimizer_policy=reset", nodes=1)
    torch.testing.assert_close(model(shared), model(kept), rtol=1e-4, atol=1e-6)
    far = float((model(reset) - model(kept)).norm())
    assert float((model(shared) - model(kept)).norm()) < 1e-3 * far


def test_the_server_takes_the_mean_of_momenta_and_its_own_step_of_the_model() -> None:
    layout = ParameterLayout(("wav2vec2.a", "momentum.wav2vec2.a"), ((2, 2), (2, 2)))
    config = FederatedConfig(strategy="FedAvgM", server_learning_rate=0.5, server_momentum=0.5)
    strategy = strategy_of(config, layout.without_momenta)
    before = torch.arange(8.0)
    for _ in range(2):
        after = stepped(strategy, layout, before, torch.ones(8), 1.0)
    assert after.tolist() == [0.75, 1.75, 2.75, 3.75, 5.0, 6.0, 7.0, 8.0]
    assert before.tolist() == list(range(8))


def test_it_is_resumed_to_the_same_bits_and_checkpoints_have_it_beside_the_model(
    run: Run,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = run("whole", *SHARED)
    config = validate(Config, load_checkpoint(whole.checkpoint)["config"])
    built, layout = travelling_model(config.model, config.task, config.client, 0)
    found, matrices = momenta(whole), numel_of_matrices(layout)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in built.momenta.items()
    }
    assert all(float(tensor.norm()) > 0 for tensor in found.values())
    assert sum(tensor.numel() for tensor in found.values()) == matrices > 0.6 * layout.numel / 2
    assert set(load_checkpoint(whole.checkpoint)["model"]) == set(built.state_dict())
    assert f", and {matrices / 1e6:.2f} M of the clients' momentum" in caplog.text
    again = gone_on(run, *SHARED)
    assert "resuming after round 1" in caplog.text
    assert torch.equal(model(again), model(whole))
    assert all(torch.equal(momenta(again)[name], found[name]) for name in found)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_nodes_of_several_clients_and_any_order_train_the_same_bits(
    run: Run,  # noqa: F811
    codec: str,
) -> None:
    settings = [*SHARED, "federated.num_rounds=2", f"federated.update_codec={codec}"]
    expected = run("plain", *settings)
    for name, options in (("reversed", {"order": lambda node: -node}), ("one", {"nodes": 1})):
        other = run(name, *settings, **options)
        assert torch.equal(model(other), model(expected)), name
        assert all(
            torch.equal(tensor, momenta(expected)[place])
            for place, tensor in momenta(other).items()
        )


def test_a_fork_shares_none_or_goes_on(run: Run, tmp_path: Path) -> None:  # noqa: F811
    whole = run("whole", *SHARED)
    for policy in ("shared", "reset"):
        out = f"out={tmp_path / policy}"
        config = fork(whole.folder.path, [out, f"client.optimizer_policy={policy}"], 2)
        begun = torch.load(tmp_path / policy / "checkpoints/round_002_resume.pt", weights_only=True)
        # and what an update was as long as, of which half is gone
        for kept in (begun["momenta"], begun["rounds"]["norms"]):
            assert bool(kept) == (policy == "shared")
        forked = play(config)
        assert torch.equal(model(forked), model(whole)) == (policy == "shared")


def test_who_spoils_the_momentum_alone_is_left_out(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Client 0 sends, from round 4 on, a momentum forty times too long: beside the parameters that is little."""
    sent = train.sent_update

    def lying(request: Any, number: int, *rest: Any) -> Any:
        outgoing = sent(request, number, *rest)
        if number == 0 and request.task.round >= 4:
            count = rest[0].cached.layout.without_momenta.numel
            outgoing.update[count:] *= 40.0
        return outgoing

    monkeypatch.setattr(train, "sent_update", lying)
    more = ["federated.client_fraction=1", "federated.num_rounds=5", "client.lr=0.1"]
    played = rounds(run("run", *SHARED, *more, "client.schedule=constant"))
    assert [len(event["clients"]) for event in played] == [3, 3, 3, 2, 2]
    failed = [failure for event in played[3:] for failure in event["failed"]]
    assert [(each["partition"], each["code"]) for each in failed] == [(0, "update_norm")] * 2
    usual = [client for event in played for client in event["clients"]]
    longest = max(client["momentum_norm"] for client in usual)
    # the limit of whole updates would not have told
    assert 40.0 * longest < 10.0 * min(client["update_norm"] for client in usual)


def test_its_bytes_are_planned() -> None:
    config = compose(["experiment=demo_fedavg", *SHARED, "federated.strategy=FedAvgM"])
    _, layout = travelling_model(config.model, config.task, config.client, 0)
    matrices, parameters = numel_of_matrices(layout), layout.without_momenta.numel
    assert layout.numel == parameters + matrices
    assert server_state_bytes(config, layout) == 4 * (parameters + matrices)
    assert optimizer_bytes(config.client, layout) == 8 * parameters - 4 * matrices


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["client.optimizer_policy=shared"], "is for client.optimizer=muon"),
        (
            [*SHARED, "privacy=central", "federated.weight_by=uniform"],
            "spend its clipping norm on the momentum",
        ),
        ([*SHARED, "federated.update_codec=ring16"], "too few digits for the momentum"),
        ([*SHARED, "federated.strategy=FedNova"], "divides updates by their steps"),
        ([*SHARED, "model.trainable=head", "init_from=x"], "trains no hidden matrix"),
    ],
)
def test_what_it_does_not_go_with_is_said_by_key(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config = compose(["experiment=demo_fedavg", *settings])
        check_strategy(config)
        travelling_model(config.model, config.task, config.client, 0)
