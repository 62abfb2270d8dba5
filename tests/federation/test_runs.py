"""Whole runs through the server's phases and the clients' handlers, in this process: only Flower's transport is left out."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedhubert import files
from fedhubert.compose import compose
from fedhubert.compose.saved import amend
from fedhubert.config import Config
from fedhubert.errors import CheckpointError, ConfigError, FederationError
from fedhubert.federation.server.fork import fork
from fedhubert.federation.server.session import RunResult, run_federation
from fedhubert.federation.updates.sketches import NUM_SUMS
from fedhubert.files import FolderInUse
from fedhubert.formats.export import export
from fedhubert.formats.round_file import load_checkpoint
from tests.integration.conftest import SMALL

from .in_process import InProcessGrid

Run = Callable[..., RunResult]


def play(config: Config, nodes: int = 3, order: Callable[[int], float] | None = None) -> RunResult:
    configs: list[dict[str, str | int]] = [
        {"partition-id": number, "num-partitions": nodes} for number in range(nodes)
    ]
    return run_federation(InProcessGrid(configs, order), config)


@pytest.fixture()
def run(data: list[str], tmp_path: Path) -> Run:
    def go(name: str, *overrides: str, **options: Any) -> RunResult:
        places = [f"out={tmp_path / name}", f"client.state_dir={tmp_path / 'state'}"]
        return play(
            compose(["experiment=demo_fedavg", *data, *SMALL, *places, *overrides]), **options
        )

    return go


def events(result: RunResult) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (result.folder.path / "metrics.jsonl").read_text().splitlines()
    ]


def rounds(result: RunResult) -> list[dict[str, Any]]:
    return [event for event in events(result) if event["event"] == "round"]


def model(result: RunResult) -> torch.Tensor:
    return torch.cat(
        [tensor.flatten() for tensor in load_checkpoint(result.checkpoint)["model"].values()]
    )


def gone_on(run: Run, *settings: str) -> RunResult:
    """A run of three rounds that has lost the checkpoints of the last two, and is resumed."""
    stopped = run("stopped", *settings)
    for number in (2, 3):
        (stopped.folder.checkpoints / f"round_{number:03d}_checkpoint.pt").unlink()
    return run("stopped", *settings, "resume=auto")


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_order_of_arrival_and_shards_change_no_bit(run: Run, codec: str) -> None:
    settings = [
        f"federated.update_codec={codec}",
        "federated.strategy=FedYogi",
        "federated.num_rounds=2",
    ]
    expected = model(run("plain", *settings))
    for name, order in (
        ("reversed", lambda node: -node),
        ("rotated", lambda node: (node + 1) % 3),
        ("ends", lambda node: abs(node - 101)),
    ):
        assert torch.equal(model(run(name, *settings, order=order)), expected), name  # type: ignore[arg-type]
    assert torch.equal(model(run("one node", *settings, nodes=1)), expected)
    assert torch.equal(model(run("two nodes", *settings, nodes=2)), expected)


def test_rounds_score_some_of_the_validation_split_and_the_end_all_of_it(run: Run) -> None:
    settings = [
        "federated.num_rounds=1",
        "federated.client_fraction=1",
        "data.partition.validation_fraction=0.5",
    ]
    some = events(run("some", *settings, "client.validation_batches=1"))
    every = events(run("every", *settings, "client.validation_batches=0"))
    frames = [
        [event["validation"]["masked_frames"] for event in told if event.get("validation")]
        for told in (some, every)
    ]
    assert frames[0][0] < frames[1][0] == frames[1][1] == frames[0][1]


@pytest.mark.parametrize("secure", ["none", "pairwise"])
def test_rounds_between_two_scores_change_no_bit_and_have_no_figures(run: Run, secure: str) -> None:
    settings = ["federated.num_rounds=4", "federated.client_fraction=1", f"secure={secure}"]
    always = run("always", *settings)
    seldom = run("seldom", *settings, "client.validation_every=2")
    assert torch.equal(model(always), model(seldom))
    figures = [event["validation"] for event in rounds(always)]
    assert [event["validation"] for event in rounds(seldom)] == [figures[0], {}, figures[2], {}]
    assert events(seldom)[-1]["validation"] == events(always)[-1]["validation"]
    lines = (seldom.folder.path / "federated_training.log").read_text()
    assert [f"round {number}/4" in lines for number in (1, 2, 3, 4)] == [True, False, True, False]


def test_bytes_before_and_after_the_codecs_are_reported(run: Run) -> None:
    (event,) = rounds(
        run(
            "run",
            "federated.update_codec=int8",
            "federated.broadcast_codec=bf16",
            "federated.num_rounds=1",
        )
    )
    sketches = 4 * NUM_SUMS * len(event["clients"])
    up, up_fp32 = event["bytes_up"] - sketches, event["bytes_up_fp32"] - sketches
    assert event["bytes_down"] * 2 == event["bytes_down_fp32"] == up_fp32
    assert up_fp32 * 0.25 < up < up_fp32 * 0.3  # one byte each, and scales


def test_the_model_card_says_of_which_data_and_targets(run: Run, tmp_path: Path) -> None:
    result = run("run", "federated.num_rounds=1")
    export(load_checkpoint(result.checkpoint), "huggingface", tmp_path / "exported")
    card = (tmp_path / "exported/README.md").read_text()
    (targets,) = [event for event in events(result) if event["event"] == "targets"]
    assert f"| 1.targets.key | {targets['key']} |" in card
    said = re.search(
        r"3 clients on 3 nodes: (\d+) utterances",
        (tmp_path / "run/federated_training.log").read_text(),
    )
    assert said and f"| utterances | {said.group(1)} |" in card and "| clients | 3 |" in card


def test_early_stopping_ends_with_a_checkpoint_and_its_evaluation(run: Run) -> None:
    """A rate of zero improves nothing: round 1's model stays the best, and two rounds later it is over."""
    stop = [
        "federated.early_stopping.patience=2",
        "client.lr=1e-12",
        "federated.num_rounds=9",
        "checkpoint.every=50",
    ]
    result = run("run", *stop, "federated.early_stopping.min_delta=0.5")
    assert [event["round"] for event in rounds(result)] == [1, 2, 3, 4]
    assert result.checkpoint.name == "round_004_checkpoint.pt" and result.checkpoint.is_file()
    assert result.validation["model_round"] == 4
    again = run("run", *stop, "federated.early_stopping.min_delta=0.5", "resume=auto")
    assert again.checkpoint == result.checkpoint and len(rounds(again)) == 4


def test_the_best_model_is_kept_beside_the_last_ones(run: Run) -> None:
    result = run("run", "federated.num_rounds=4", "client.lr=1e-2", "checkpoint.every=50")
    figures = {
        event["validation"]["model_round"]: event["validation"]["loss"] for event in rounds(result)
    }
    del figures[0]
    best = load_checkpoint(result.folder.checkpoints / "best_checkpoint.pt")
    assert best["round"] == min(figures, key=lambda number: figures[number])
    assert len(list(result.folder.checkpoints.glob("round_*_checkpoint.pt"))) == 1


def test_a_partition_whose_data_changed_is_refused_on_resume(
    run: Run, data: list[str], tmp_path: Path
) -> None:
    manifest = tmp_path / "own.csv"
    shutil.copy(data[0].removeprefix("data.manifest="), manifest)
    own = [f"data.manifest={manifest}", "federated.num_rounds=2"]
    result = run("run", *own)
    for file in result.folder.checkpoints.glob("round_002*"):
        file.unlink()  # as if it had been stopped after round 1
    lines = manifest.read_text().splitlines()
    changed = next(number for number, line in enumerate(lines) if line.startswith("speaker1/"))
    manifest.write_text("\n".join(lines[:changed] + lines[changed + 1 :]) + "\n")
    with pytest.raises(
        FederationError, match=r"data_has_changed_since_the_run_began \(see data.manifest\)"
    ):
        run("run", *own, "resume=auto")


def test_a_folder_that_another_run_is_writing_to_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE_S", 0.1)
    with (
        files.exclusively(tmp_path / "run/checkpoints", setting="out"),
        pytest.raises(FolderInUse, match="run/checkpoints is in use"),
    ):
        run("run", "federated.num_rounds=1")
    run("run", "federated.num_rounds=1")


def test_a_partition_that_another_process_is_training_fails_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE_S", 0.1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"run_key": "abc"}')
    with files.exclusively(tmp_path / "state/runs/abc/partition_00001", setting="client.state_dir"):
        result = run(
            "run",
            "federated.num_rounds=1",
            "federated.update_codec=int8",
            "federated.min_clients=2",
        )
    (event,) = rounds(result)
    assert event["failed"] == [
        {"partition": 1, "code": "folder_in_use", "setting": "client.state_dir"}
    ]
    assert [client["partition"] for client in event["clients"]] == [0, 2]


def test_a_full_state_folder_makes_room_and_keeps_this_run(run: Run, tmp_path: Path) -> None:
    old = tmp_path / "state/runs/old/partition_00000/round_00001.pt"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(3_000_000))
    result = run(
        "run", "federated.num_rounds=1", "client.state_max_gb=0.002", "federated.update_codec=int8"
    )
    assert not old.parent.parent.exists()
    assert list((tmp_path / "state/runs" / result.folder.run_key()).rglob("round_00001.pt"))


def test_crashing_nodes_are_outlived(run: Run) -> None:
    result = run("run", "faults.crash=0.3", "federated.num_rounds=4", "federated.min_clients=2")
    codes = {failure["code"] for event in rounds(result) for failure in event["failed"]}
    assert codes == {"node_error"} and all(len(event["clients"]) >= 2 for event in rounds(result))


@pytest.mark.parametrize("strategy", ["FedMedian", "FedTrimmedAvg"])
def test_robust_strategies_run(run: Run, strategy: str) -> None:
    result = run("run", f"federated.strategy={strategy}", "federated.num_rounds=2")
    first, _ = (event["validation"] for event in rounds(result))
    assert (first["model_round"], result.validation["model_round"]) == (0, 2)
    assert result.validation["loss"] != first["loss"]
    with pytest.raises(FederationError, match="every client's own update"):
        run("shards", f"federated.strategy={strategy}", nodes=2)


def test_a_fork_goes_on_under_other_settings_and_says_where_it_comes_from(
    run: Run, tmp_path: Path
) -> None:
    source = run("source", "federated.strategy=FedAdam", "federated.num_rounds=3")
    overrides = [
        f"out={tmp_path / 'fork'}",
        "federated.num_rounds=4",
        "federated.strategy=FedAvg",
        "client.lr=1e-4",
    ]
    config = fork(source.folder.path, overrides, round_number=2)
    assert config.client.lr == 1e-4 and config.resume == "auto"
    result = play(config)
    assert [event["round"] for event in rounds(result)] == [1, 2, 3, 4]
    targets, entry = load_checkpoint(result.checkpoint)["federated_metrics"]["lineage"]
    assert len(targets["targets"]["key"]) == 32
    assert entry["round"] == 2 and set(entry["changed"]) == {
        "federated.num_rounds",
        "federated.strategy",
        "client.lr",
    }
    assert entry["changed"]["client.lr"] == [
        load_checkpoint(source.checkpoint)["config"]["client"]["lr"],
        1e-4,
    ]
    assert fork(source.folder.path, overrides, round_number=2) == config  # the same command goes on
    with pytest.raises(ConfigError, match="another run"):
        fork(source.folder.path, overrides, round_number=3)


def test_a_fork_with_nothing_changed_is_the_run_itself(run: Run, tmp_path: Path) -> None:
    source = run("source", "federated.strategy=FedAdam", "federated.num_rounds=3")
    result = play(fork(source.folder.path, [f"out={tmp_path / 'fork'}"], round_number=1))
    assert torch.equal(model(result), model(source))
    file = source.folder.checkpoints / "round_001_checkpoint.pt"
    assert file.is_file()
    assert fork(file, [f"out={tmp_path / 'fork'}"]).out == str(tmp_path / "fork")


@pytest.mark.parametrize(
    ("overrides", "error", "named"),
    [
        (["model.embed_dim=64"], CheckpointError, "parameter|is .* there and"),
        (["federated.num_round=3"], ConfigError, "federated.num_round"),
        (["model=hubert_base"], ConfigError, "whole group"),
        (["client.lr"], ConfigError, "KEY=VALUE"),
        (["client.lr=-1"], ConfigError, "client.lr"),
        (["out=null"], ConfigError, "out="),
    ],
)
def test_a_fork_that_cannot_be_is_refused(
    run: Run, tmp_path: Path, overrides: list[str], error: type[Exception], named: str
) -> None:
    source = run("source", "federated.num_rounds=1")
    with pytest.raises(error, match=named):
        fork(source.folder.path, [f"out={tmp_path / 'fork'}", *overrides])
    with pytest.raises(CheckpointError, match="round 7"):
        fork(source.folder.path, [f"out={tmp_path / 'fork'}"], round_number=7)


def test_amending_changes_single_keys_and_keeps_types() -> None:
    values = compose(["experiment=demo_fedavg"]).model_dump(mode="json")
    amended = amend(values, ["client.betas=[0.8,0.9]", "seed=4", "out=x"])
    assert amended.client.betas == (0.8, 0.9) and amended.seed == 4 and amended.out == "x"
