"""Whole runs with differential privacy, from audio to checkpoint: the server's phases and the clients' handlers, without Flower's transport."""

import json
import logging
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from scipy import stats

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.errors import CheckpointError, ConfigError, FederationError
from fedhubert.federation.privacy.secret import FILE_NAME
from fedhubert.federation.server.fork import fork
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.formats.round_file import load_checkpoint
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid
from .test_runs import model, rounds

Run = Callable[..., RunResult]
PRIVATE = [
    *(
        "privacy=central",
        "privacy.clip_norm=0.05",
        "federated.strategy=FedAvg",
        "federated.server_learning_rate=1",
    ),
    *("federated.client_fraction=1", "federated.num_rounds=2"),
]


class Recorded(InProcessGrid):
    """Keeps also what it sends."""

    def __init__(self, node_configs: list[dict[str, str | int]]) -> None:
        super().__init__(node_configs)
        self.requests: list[Message] = []

    def push_messages(self, messages: Any) -> Any:
        kept = list(messages)
        self.requests += kept
        return super().push_messages(kept)


@pytest.fixture()
def run(data: list[str], tmp_path: Path) -> Run:
    def go(name: str, *overrides: str, nodes: int = 3) -> RunResult:
        places = [f"out={tmp_path / name}", f"client.state_dir={tmp_path / 'state'}"]
        go.grid = Recorded(
            [{"partition-id": number, "num-partitions": nodes} for number in range(nodes)]
        )  # type: ignore[attr-defined]
        return run_federation(
            go.grid,
            compose(["experiment=demo_fedavg", *data, *SMALL, *PRIVATE, *places, *overrides]),
        )  # type: ignore[attr-defined]

    return go


@pytest.fixture()
def known_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs to be compared need the same noise."""
    monkeypatch.setattr(secrets, "token_bytes", lambda count: bytes(range(count)))


def test_the_noise_on_the_model_has_the_standard_deviation_that_is_accounted_for(run: Run) -> None:
    """Two runs of one round that differ in the noise alone; a server rate of 1 shows it as it is."""
    one = ["federated.num_rounds=1", "privacy.clip_norm=0.3"]
    noise = (
        model(run("noised", *one, "privacy.noise_multiplier=2"))
        - model(run("plain", *one, "privacy.noise_multiplier=0"))
    ).double()
    expected = 2 * 0.3 / 3
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    assert stats.kstest(noise.numpy() / expected, "norm").pvalue > 1e-3
    again = (
        model(run("again", *one, "privacy.noise_multiplier=2"))
        - model(run("plain again", *one, "privacy.noise_multiplier=0"))
    ).double()
    assert (
        abs(float(torch.corrcoef(torch.stack([noise, again]))[0, 1])) < 0.05
    )  # another run, another secret


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1e9])
def test_shards_change_no_bit_and_updates_are_clipped(
    run: Run, known_secret: None, codec: str, clip_norm: float
) -> None:
    settings = [
        f"federated.update_codec={codec}",
        f"privacy.clip_norm={min(clip_norm, 1e6)}",
        "privacy.noise_multiplier=0.5",
    ]
    flat = run("flat", *settings)
    assert torch.equal(model(run("one node", *settings, nodes=1)), model(flat))
    assert torch.equal(model(run("two nodes", *settings, nodes=2)), model(flat))
    norms = [client["update_norm"] for event in rounds(flat) for client in event["clients"]]
    bits = {client["update_unclipped"] for event in rounds(flat) for client in event["clients"]}
    assert (
        (max(norms) <= clip_norm and min(norms) > 0.9 * clip_norm and bits == {0})
        if clip_norm < 1
        else bits == {1}
    )


def test_a_resumed_run_comes_to_the_same_bits_whatever_it_had_released_before(
    run: Run, known_secret: None, tmp_path: Path
) -> None:
    """Adaptive norm, a sampled cohort, a server optimiser with state; cut off after round 1 of 4, with and without the later rounds' journal."""
    settings = [
        "federated.num_rounds=4",
        "federated.client_fraction=0.7",
        "federated.strategy=FedAdam",
        "privacy.target_quantile=0.5",
    ]
    settings += ["federated.update_codec=int8", "privacy.max_epsilon=1000"]
    whole = run("whole", *settings)
    assert len({event["privacy"]["clip_norm"] for event in rounds(whole)}) == 4
    for name, lines in (("replayed", None), ("unreleased", 1)):
        shutil.copytree(whole.folder.path, tmp_path / name)
        for number in (2, 3, 4):
            for file in (tmp_path / name / "checkpoints").glob(f"round_{number:03d}*"):
                file.unlink()
        journal = tmp_path / name / "checkpoints/accepted.jsonl"
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:lines]))
        resumed = run(name, *settings, "resume=auto")
        assert torch.equal(model(resumed), model(whole)), name
        assert [event["privacy"] for event in rounds(resumed)] == [
            event["privacy"] for event in rounds(whole)
        ]
        assert [event["asked"] for event in rounds(resumed)] == [
            event["asked"] for event in rounds(whole)
        ]
        assert len(journal.read_text().splitlines()) == 4


def test_a_round_that_is_released_again_counts_from_then_on(run: Run, tmp_path: Path) -> None:
    """What the strategy writes down the accounting reads, in the same process."""
    settings = ["federated.num_rounds=3"]
    whole = run("whole", *settings)
    out = tmp_path / "whole"
    for number in (2, 3):
        for file in (out / "checkpoints").glob(f"round_{number:03d}*"):
            file.unlink()
    journal = out / "checkpoints/accepted.jsonl"
    first, second = journal.read_text().splitlines()[:2]
    journal.write_text(f"{first}\n{json.dumps({**json.loads(second), 'release': 'another'})}\n")
    before = [event["privacy"]["epsilon"] for event in rounds(whole)]
    after = [
        event["privacy"]["epsilon"] for event in rounds(run("whole", *settings, "resume=auto"))
    ]
    assert after[0] == before[0] and after[1] > before[1] and after[2] > before[2]


def test_a_resumed_run_without_its_secret_is_refused(run: Run) -> None:
    result = run("run")
    (result.folder.checkpoints / FILE_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"privacy\.key"):
        run("run", "resume=auto")


def test_the_secret_is_in_no_message_log_checkpoint_or_metric(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        result = run("run", "privacy.target_quantile=0.5")
    file = result.folder.checkpoints / FILE_NAME
    key = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    needles = [key, key.hex().encode(), repr(key).encode()[2:-1]]
    written = [path for path in result.folder.path.rglob("*") if path.is_file() and path != file]
    assert {"accepted.jsonl", "metrics.jsonl", "round_002_resume.pt"} <= {
        path.name for path in written
    }
    texts = [path.read_bytes() for path in written]
    texts += [caplog.text.encode()]
    for message in [*run.grid.requests, *run.grid.answers]:  # type: ignore[attr-defined]
        texts.append(
            repr(message.content.config_records).encode()
            + repr(message.content.metric_records).encode()
        )
        texts += [
            array.numpy().tobytes()
            for record in message.content.array_records.values()
            for array in record.values()
        ]
    assert len(texts) > 30 and not [
        needle for needle in needles for text in texts if needle in text
    ]


def test_checkpoints_carry_nothing_that_epsilon_does_not_cover(run: Run, tmp_path: Path) -> None:
    result = run("run")
    metrics = load_checkpoint(result.checkpoint)["federated_metrics"]
    spent = rounds(result)[-1]["privacy"]
    expected = {
        "round": 2,
        "train": {},
        "validation": {},
        "server_validation": None,
        "privacy": spent,
        "data": {},
    }
    assert len(metrics.pop("history")) == 2
    assert metrics.pop("lineage")[0]["targets"].keys() == {"key"}  # a hash of the centroids
    assert metrics == expected
    assert (
        main(["export", "--checkpoint", str(result.checkpoint), "--out", str(tmp_path / "hf")]) == 0
    )
    card = (tmp_path / "hf/README.md").read_text()
    assert (
        f"privacy.epsilon | {spent['epsilon']:.4g}" in card
        and "loss" not in card
        and "clients in the last round" not in card
        and "utterances" not in card
    )
    open_handed = run("open", "privacy.client_metrics=true", "checkpoint.keep_best=true")
    assert load_checkpoint(open_handed.checkpoint)["federated_metrics"]["train"]["loss"] > 0
    assert (open_handed.folder.checkpoints / "best_checkpoint.pt").is_file()


def test_the_log_says_what_is_spent_and_what_epsilon_does_not_cover(run: Run) -> None:
    result = run("run", "privacy.noise_multiplier=1.5")
    text = result.folder.log_file.read_text()
    first, second = (event["privacy"]["epsilon"] for event in rounds(result))
    assert 0 < first < second and f"epsilon {second:.3f}" in text
    assert f"privacy: epsilon {second:.3g} at delta 1e-05 after round 2" in text
    assert (
        "outside epsilon: the k-means targets" in text and "outside epsilon: metrics.jsonl" in text
    )


def test_the_budget_ends_the_run_before_the_round_that_would_exceed_it(
    run: Run, tmp_path: Path
) -> None:
    settings = ["federated.num_rounds=9", "checkpoint.every=50"]
    result = run(
        "run", *settings, "privacy.max_epsilon=7"
    )  # of one round without sampling: 4.4, of two 6.6, of three 8.4
    spent = [event["privacy"]["epsilon"] for event in rounds(result)]
    assert len(spent) == 2 and spent[-1] <= 7
    assert result.checkpoint.is_file() and result.checkpoint.name == "round_002_checkpoint.pt"
    assert "the budget of 7 ends the run after round 2" in result.folder.log_file.read_text()
    again = run("run", *settings, "privacy.max_epsilon=7", "resume=auto")
    assert len(rounds(again)) == 2
    with pytest.raises(CheckpointError, match=r"privacy\.max_epsilon"):
        run("run", *settings, "privacy.max_epsilon=9", "resume=auto")
    with pytest.raises(ConfigError, match=r"privacy\.max_epsilon=4 does not allow a single round"):
        run("small", *settings, "privacy.max_epsilon=4")
    places = [f"out={tmp_path / 'fork'}", "privacy.max_epsilon=9", "privacy.noise_multiplier=3"]
    forked = run_federation(
        Recorded([{"partition-id": n, "num-partitions": 3} for n in range(3)]),
        fork(result.folder.path, places),
    )
    spent += [event["privacy"]["epsilon"] for event in rounds(forked)[2:]]
    assert len(spent) > 3 and spent == sorted(spent) and spent[-1] <= 9
    assert (forked.folder.checkpoints / FILE_NAME).read_bytes() != (
        result.folder.checkpoints / FILE_NAME
    ).read_bytes()


def test_a_fork_of_an_earlier_round_has_spent_what_its_source_has(run: Run, tmp_path: Path) -> None:
    source = run("source")
    config = fork(
        source.folder.path, [f"out={tmp_path / 'fork'}", "federated.num_rounds=2"], round_number=1
    )
    forked = run_federation(
        Recorded([{"partition-id": n, "num-partitions": 3} for n in range(3)]), config
    )
    assert (
        rounds(forked)[-1]["privacy"]["epsilon"] > rounds(source)[-1]["privacy"]["epsilon"] + 1
    )  # three releases


def test_a_run_without_privacy_cannot_be_forked_into_one_with_it(run: Run, tmp_path: Path) -> None:
    plain = ["privacy.mechanism=none", "federated.num_rounds=1"]
    result = run("plain", *plain)
    assert (
        not (result.folder.checkpoints / FILE_NAME).exists() and "privacy" not in rounds(result)[0]
    )
    assert "update_unclipped" not in rounds(result)[0]["clients"][0]
    with pytest.raises(ConfigError, match="trained without differential privacy"):
        fork(result.folder.path, [f"out={tmp_path / 'fork'}", "privacy.mechanism=central"])


def test_rounds_that_nobody_is_drawn_for_are_noise_and_reported_as_such(run: Run) -> None:
    result = run("run", "federated.client_fraction=1e-9")
    assert [event["clients"] for event in rounds(result)] == [[], []]
    assert all(event["privacy"]["epsilon"] < 1e-2 for event in rounds(result))
    from fedhubert.reporting.curves import plot_curves
    from fedhubert.reporting.summary import rounds_table

    assert rounds_table(result.folder.metrics_file).row_count == 2
    plot_curves(result.folder.metrics_file, result.folder.plot_file)


def test_clients_that_fail_leave_the_others_as_they_are(run: Run, known_secret: None) -> None:
    """A client whose update is not finite adds nothing, alone on its node or beside others."""
    settings = [
        "faults.nan=0.4",
        "federated.num_rounds=4",
        "privacy.noise_multiplier=0.5",
        "federated.round_retries=9",
    ]
    flat = run("flat", *settings)
    failures = {failure["code"] for event in rounds(flat) for failure in event["failed"]}
    assert failures == {"update_not_finite"} and torch.equal(
        model(run("shard", *settings, nodes=1)), model(flat)
    )
    with pytest.raises(FederationError, match="no usable update in 1 rounds in a row"):
        run("all", "faults.nan=1", "federated.round_retries=0")


def test_without_dp_accounting_the_extra_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"fedhubert\[privacy\]"):
        run("run", "privacy.noise_multiplier=1.01")
