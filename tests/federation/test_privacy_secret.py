"""The secret, replays under it, and what privacy does not go with."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhubert.compose import compose
from fedhubert.errors import CheckpointError, ConfigError, FederationError
from fedhubert.federation.privacy.secret import FILE_NAME, create_secret, load_secret
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.strategies.strategy import check_strategy
from tests.federation.private import ADAPTIVE, CLIP, FOUR, answering, vectors

from .conftest import Played


def test_a_replayed_round_is_the_same_release_and_costs_nothing(tmp_path: Path) -> None:
    updates = vectors(1.0, 2.0, 3.0, 4.0)
    first = Played([*FOUR, *ADAPTIVE], answering(updates), Journal(tmp_path))
    first.run(2)
    again = Played([*FOUR, *ADAPTIVE], answering(updates), Journal(tmp_path))
    assert np.array_equal(again.run(2), first.models[-1])
    assert [outcome.privacy for outcome in again.outcomes] == [
        outcome.privacy for outcome in first.outcomes
    ]
    assert first.outcomes[1].privacy["clip_norm"] != CLIP
    assert Journal(tmp_path).releases() == {1: 1, 2: 1}
    assert (tmp_path / "accepted.jsonl").read_text().count("\n") == 2


def test_a_replay_that_comes_out_differently_has_other_noise_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updates = vectors(1.0, 1.0, 1.0, 1.0)
    first = Played(FOUR, answering(updates), Journal(tmp_path))
    first.run(1)
    without = answering({**updates, 2: None})
    again = Played([*FOUR, "federated.round_retries=0"], without, Journal(tmp_path))
    with caplog.at_level("WARNING", logger="fedhubert"):
        again.run(1)
    difference = first.models[-1] - again.models[-1]
    assert (
        np.linalg.norm(difference - updates[2] / 4) > 0.1
    )  # else the client's own update would lie open
    assert "come out differently" in caplog.text
    assert again.outcomes[0].privacy["epsilon"] > first.outcomes[0].privacy["epsilon"]
    budget = f"privacy.max_epsilon={again.outcomes[0].privacy['epsilon'] + 0.1}"
    with pytest.raises(FederationError, match=r"privacy\.max_epsilon"):
        Played(
            [*FOUR, budget, "federated.round_retries=0"],
            answering(vectors(1.0, 1.0, 1.0, 0.5)),
            Journal(tmp_path),
        ).run(1)


def test_the_secret_is_only_its_owners_and_is_not_told(tmp_path: Path) -> None:
    secret = create_secret(tmp_path)
    file = tmp_path / FILE_NAME
    assert file.stat().st_mode & 0o777 == 0o600 and [path.name for path in tmp_path.iterdir()] == [
        FILE_NAME
    ]
    key = file.read_bytes()
    assert (
        len(key) == 32
        and key.hex() not in repr(secret) + str(vars(type(secret)))
        and secret.tag() not in key.hex()
    )
    assert load_secret(tmp_path).tag() == secret.tag()
    assert create_secret(tmp_path).tag() != secret.tag()


def test_the_secret_owes_nothing_to_the_runs_generators(tmp_path: Path) -> None:
    tags = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        tags.append(create_secret(folder).tag())
    assert tags[0] != tags[1]


def test_a_secret_that_is_lost_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"privacy\.key"):
        load_secret(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"privacy\.key is damaged"):
        load_secret(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("federated.strategy=FedNova", "federated.strategy=FedNova"),
        ("federated.strategy=FedMedian", "federated.strategy=FedMedian"),
        ("federated.weight_by=frames", "federated.weight_by=uniform"),
        ("federated.over_commit=1.3", "federated.over_commit"),
        ("federated.max_norm_ratio=10", "federated.max_norm_ratio=0"),
        ("checkpoint.keep_best=true", "checkpoint.keep_best=false"),
        ("federated.early_stopping.patience=3", "federated.early_stopping"),
        ("federated.num_clients=200000 privacy.clip_norm=1000", "privacy.clip_norm"),
        ("privacy.delta=0.2", "privacy.delta"),
        ("privacy.delta=0", "privacy.delta"),
        ("privacy.clip_norm=0", "privacy.clip_norm"),
        ("privacy.noise_multiplier=-1", "privacy.noise_multiplier"),
        ("privacy.noise_multiplier=0 privacy.max_epsilon=3", "max_epsilon"),
        ("privacy.target_quantile=0.5 privacy.count_noise=0.5", "count_noise=0.5"),
        ("privacy.target_quantile=1", "privacy.target_quantile"),
        ("privacy.mechanism=local", "privacy.mechanism"),
    ],
)
def test_what_privacy_does_not_go_with_is_refused_by_name(overrides: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_strategy(compose(["privacy=central", *overrides.split()]))
    assert named in str(error.value)


def test_privacy_brings_what_it_needs_and_is_off_without_it() -> None:
    for experiment in ("demo", "speech_mini", "research_standard_pretraining"):
        chosen = [f"experiment={experiment}", "data.manifest=m", "federated.sampling=random"]
        config = compose(["privacy=central", *chosen])
        assert (
            config.federated.weight_by == "uniform"
            and config.federated.max_norm_ratio == 0
            and not config.checkpoint.keep_best
        )
        assert not compose([f"experiment={experiment}", "data.manifest=m"]).privacy.enabled
    loose = [
        "privacy.client_metrics=true",
        "checkpoint.keep_best=true",
        "federated.early_stopping.patience=2",
    ]
    assert compose(["privacy=central", *loose]).checkpoint.keep_best
