"""Trackers: what runs tell them, read back; what they are not told; and what happens when they are missing or fail."""

import importlib.util
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedhubert.compose import compose
from fedhubert.errors import ConfigError
from fedhubert.runs import trackers
from fedhubert.runs.trackers import Point, points_of, settings_of

from .test_runs import Run, events, run  # noqa: F401 (fixtures)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {
        tag: [(entry.step, entry.value) for entry in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_tensorboard_has_every_figure_once_at_its_round_also_after_a_resume(run: Run) -> None:
    with_tensorboard = ["reporting.trackers=[tensorboard]", "federated.num_rounds=3"]
    first = run("run", *with_tensorboard)
    whole = scalars(first.folder.path)
    told = events(first)
    rounds = [event for event in told if event["event"] == "round"]
    assert whole["train/loss"] == [
        (event["round"], pytest.approx(event["train"]["loss"])) for event in rounds
    ]
    scored = [event["validation"] for event in told if event.get("validation")]
    assert [step for step, _ in whole["validation/loss"]] == [0, 1, 2, 3]
    assert whole["validation/loss"] == [
        (each["model_round"], pytest.approx(each["loss"])) for each in scored
    ]
    assert whole["drift/pairwise_cosine"][0][1] == pytest.approx(
        rounds[0]["drift"]["pairwise_cosine"]
    )
    assert "kmeans/inertia_per_frame" in whole and "fairness/worst_decile" in whole
    for checkpoint in first.folder.checkpoints.glob(
        "round_003*"
    ):  # as if killed in the last round, with its line written
        checkpoint.unlink()
    again = run("run", *with_tensorboard, "resume=auto")
    resumed = scalars(again.folder.path)
    untimed = [tag for tag in whole if not tag.startswith("seconds/")]
    assert {tag: resumed[tag] for tag in untimed} == {tag: whole[tag] for tag in untimed}
    assert Counter(step for step, _ in resumed["seconds/round"]) == {1: 1, 2: 1, 3: 1}


def test_nothing_of_single_clients_and_no_path_goes_out() -> None:
    event = {
        "event": "round",
        "round": 2,
        "train": {"loss": 1.0, "model_round": 1, "objectives": {"layers": 0.5}},
        "validation": {"model_round": 1, "loss": 2.0},
        "asked": [0, 7],
        "clients": [{"partition": 7, "validation_correct": 123}],
        "failed": [{"partition": 0, "code": "data", "setting": "x"}],
        "privacy": {"epsilon": 3.0},
        "server_validation": {"model_round": 2, "loss": 4.0},
    }
    points = list(points_of(event))
    assert (
        Point("validation", "loss", 1, 2.0) in points
        and Point("train", "objectives_layers", 2, 0.5) in points
    )
    assert (
        Point("round", "clients", 2, 1.0) in points and Point("round", "failed", 2, 1.0) in points
    )
    assert not any(point.value in (123.0, 7.0) for point in points)
    covered = list(points_of(event, clients_figures=False))
    assert covered == [
        Point("server_validation", "loss", 2, 4.0),
        Point("privacy", "epsilon", 2, 3.0),
    ]
    assert (
        list(
            points_of(
                {"event": "kmeans", "iteration": 1, "inertia_per_frame": 1.0}, clients_figures=False
            )
        )
        == []
    )
    places = [
        "out",
        "checkpoint_dir",
        "init_from",
        "data.manifest",
        "data.root",
        "targets.checkpoint",
        "targets.labels",
    ]
    places += [
        "federated.node_keys",
        "client.state_dir",
        "evaluation.manifest",
        "evaluation.root",
        "simulation.ray_address",
    ]
    given = settings_of(compose([f"{place}=/secret/place" for place in places]))
    assert "secret" not in json.dumps(given) and given["federated.num_clients"] == 5


def test_a_missing_package_is_named_before_anything_trains(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorboard" else found(name, *rest),
    )
    with pytest.raises(
        ConfigError, match=r"tensorboard not installed: pip install 'fedhubert\[tensorboard\]'"
    ):
        run("run", "reporting.trackers=[tensorboard]")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match=r"reporting\.trackers"):
        compose(["reporting.trackers=[comet]"])


def test_a_tracker_that_fails_midway_is_left_out_and_the_run_goes_on(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[int] = []

    class Failing:
        def __init__(self, *arguments: Any) -> None:
            pass

        def track(self, moment: int, points: list[Point]) -> None:
            told.append(moment)
            if len(told) == 2:
                raise ConnectionError("no route to host")

        def close(self) -> None:
            raise AssertionError("left out: not closed")

    monkeypatch.setitem(trackers._BUILDERS, "tensorboard", Failing)
    result = run("run", "reporting.trackers=[tensorboard]", "federated.num_rounds=2")
    assert len(told) == 2 and [event["event"] for event in events(result)][-1] == "final"
    assert (
        caplog.text.count("tracker tensorboard failed") == 1 and "no route to host" in caplog.text
    )


def test_wandb_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    result = run("run", "reporting.trackers=[wandb]", "federated.num_rounds=2")
    (file,) = (result.folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    told = file.read_bytes()
    assert b"validation/loss" in told and b"train/step" in told and b"round/clients" in told
    assert (
        b"validation_correct" not in told and b"tones.csv" not in told and b"--basetemp" not in told
    )


def test_mlflow_takes_each_figure_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    options = ["reporting.trackers=[mlflow]", "federated.num_rounds=2"]
    first = run("run", *options)
    for checkpoint in first.folder.checkpoints.glob("round_002*"):
        checkpoint.unlink()
    run("run", *options, "resume=auto")
    client = mlflow.MlflowClient()
    number = (first.folder.path / "mlflow_run_id").read_text().strip()
    assert [metric.step for metric in client.get_metric_history(number, "train/loss")] == [1, 2]
    assert [metric.step for metric in client.get_metric_history(number, "validation/loss")] == [
        0,
        1,
        2,
    ]
    assert client.get_run(number).info.status == "FINISHED"
