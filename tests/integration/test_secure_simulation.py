"""Secure sums in Flower's simulation engine: the bits of a plain run, and a word that nothing is protected there."""

from pathlib import Path

import pytest

from .conftest import Train, events
from .test_simulation import assert_same_model

PLAIN = ["targets.seeding=moments", "federated.client_cosines=false"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["federated.update_codec=int8", "client.optimizer_policy=keep"],
        [
            *("data.partition.kind=random", "federated.num_clients=6", "client.local_steps=1"),
            *("simulation.num_supernodes=2", "federated.strategy=FedAdam"),
        ],
    ],
    ids=["a client a node", "three clients a node"],
)
def test_secure_sums_in_a_simulation_give_the_plain_model(
    train: Train, tmp_path: Path, settings: list[str]
) -> None:
    for name, own in (("plain", PLAIN), ("secure", ["secure=pairwise"])):
        done = train(tmp_path / name, *own, *settings)
        assert done.returncode == 0, done.stderr
    assert_same_model(tmp_path / "plain", tmp_path / "secure")
    log = (tmp_path / "secure/federated_training.log").read_text()
    assert "throw-away roster" in log and "nothing is protected here" in log
    rounds = [event for event in events(tmp_path / "secure") if event["event"] == "round"]
    assert all(event["secure"]["masked"] == event["secure"]["cohort"] for event in rounds)
    assert f"secure: {rounds[0]['secure']['masked']} masked, opened by" in log
