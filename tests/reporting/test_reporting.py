"""The run's folder and its metrics log."""

from pathlib import Path

import pytest

from fedhubert.compose import compose
from fedhubert.errors import ConfigError
from fedhubert.reporting.curves import plot_curves, trend
from fedhubert.reporting.summary import final_event, rounds_table
from fedhubert.runs.folder import RunFolder, resolve_out
from fedhubert.runs.metrics import append_event, keep_events, read_events
from tests.conftest import is_png


def test_events_are_appended_whole_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    append_event(
        log,
        {"event": "round", "round": 1, "loss": float("nan"), "deep": [{"x": float("inf")}, 2.5]},
    )
    with log.open("a") as file:
        file.write('{"event": "round", "rou')  # the process was killed here
    assert list(read_events(log)) == [
        {"event": "round", "round": 1, "loss": None, "deep": [{"x": None}, 2.5]}
    ]
    assert list(read_events(tmp_path / "missing.jsonl")) == []


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for event in (
        {"event": "kmeans"},
        {"event": "targets"},
        *({"event": "round", "round": n} for n in (1, 2, 3)),
        {"event": "final", "round": 3},
    ):
        append_event(log, event)
    keep_events(log, lambda event: event.get("round", 0) <= 2 and event["event"] != "final")
    assert [event["event"] for event in read_events(log)] == ["kmeans", "targets", "round", "round"]


def test_where_a_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDHUBERT_HOME", raising=False)
    assert resolve_out(compose(["out=runs/a"])) == tmp_path / "runs/a"
    assert resolve_out(compose([f"out={tmp_path}/b"])) == tmp_path / "b"
    assert resolve_out(compose([])).parent == tmp_path / "outputs/demo"
    monkeypatch.setenv("FEDHUBERT_HOME", str(tmp_path / "home"))
    assert resolve_out(compose(["out=runs/a"])) == tmp_path / "home/runs/a"
    assert (
        RunFolder.of(compose(["out=runs/a", "checkpoint_dir=elsewhere"])).checkpoints
        == tmp_path / "home/elsewhere"
    )
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out="):
        RunFolder.of(compose([f"out={tmp_path}/file/run"])).create()


def test_the_run_key_stays_after_a_resume(tmp_path: Path) -> None:
    folder, other = (RunFolder.of(compose([f"out={tmp_path / name}"])) for name in "ab")
    for each in (folder, other):
        each.create()
    assert folder.run_key() == folder.run_key() != other.run_key()


def test_a_students_table_and_plot_show_its_distance(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        figures = {
            "loss": 1.0,
            "frames": 5,
            "cosine_distance": 0.75 / number,
            "relative_l2": 0.5,
            "audio_s": 1.0,
            "steps": 1,
        }
        validation = {"model_round": number - 1, **figures}
        event = {
            "event": "round",
            "round": number,
            "train": figures,
            "validation": validation,
            "asked": [0],
            "clients": [{"partition": 0}],
        }
        append_event(log, {**event, "failed": [], "seconds": {"round": 1.0}})
    table = rounds_table(log)
    assert [column.header for column in table.columns][2] == "train dist"
    assert list(table.columns[2].cells) == ["0.7500", "0.3750"]
    assert list(table.columns[4].cells) == ["0.3750", ""]
    plot_curves(log, tmp_path / "curves.png")
    assert is_png(tmp_path / "curves.png")


def test_table_and_plot_are_made_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    append_event(
        log,
        {
            "event": "targets",
            "validation_labels": {"entropy_nats": 3.0, "most_frequent_share": 0.1},
        },
    )
    for number in (1, 2):
        figures = {"loss": 3.0 / number, "masked_accuracy": 0.1 * number, "audio_s": 1.0}
        validation = {**figures, "model_round": number - 1}
        event = {
            "event": "round",
            "round": number,
            "train": figures,
            "validation": validation,
            "seconds": {"round": 1.0},
        }
        append_event(log, {**event, "asked": [0, 1], "clients": [{}], "failed": [{}]})
    append_event(
        log,
        {
            "event": "final",
            "round": 2,
            "validation": {"model_round": 2, "loss": 1.25, "masked_accuracy": 0.3},
        },
    )
    table = rounds_table(log)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["valid loss"] == [
        "1.5000",
        "1.2500",
    ]  # round 1's came with round 2, round 2's with the final evaluation
    assert columns["clients"] == ["1/2", "1/2"]
    assert final_event(log)["validation"]["loss"] == 1.25
    plot_curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_trend_is_a_running_mean_that_ends_where_the_curve_does() -> None:
    straight = [(x, 3.0 * x) for x in range(120)]
    smoothed = trend(straight)
    assert [x for x, _ in smoothed] == list(range(120))
    assert smoothed[2:-2] == [
        (x, pytest.approx(3.0 * x)) for x in range(2, 118)
    ]  # over two on each side
    assert smoothed[0] == (0, 3.0) and smoothed[-1] == (119, 3.0 * 118)  # over what is there
    assert [y for _, y in trend([(x, float(x % 2)) for x in range(61)])][1] == pytest.approx(1 / 3)


def test_of_many_rounds_the_table_shows_some_and_the_last(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for number in range(1, 104):
        seconds = {"round": 1.0}
        train = {"loss": 1.0, "masked_accuracy": 0.5, "audio_s": 1.0}
        append_event(
            log,
            {
                "event": "round",
                "round": number,
                "train": train,
                "clients": [],
                "asked": [],
                "failed": [],
                "seconds": seconds,
            },
        )
    shown = [int(cell) for cell in rounds_table(log).columns[0].cells]
    assert shown[:2] == [3, 6] and shown[-2:] == [102, 103] and len(shown) == 35


def test_the_table_of_a_run_that_is_scored_now_and_then_has_the_rounds_that_were(
    tmp_path: Path,
) -> None:
    log, figures = tmp_path / "metrics.jsonl", {"loss": 1.0, "masked_accuracy": 0.5, "audio_s": 1.0}
    for number in range(1, 13):
        validation = {**figures, "model_round": number - 1} if number % 5 == 1 else {}
        event = {"event": "round", "round": number, "train": figures, "validation": validation}
        rest = {"seconds": {"round": 1.0}, "asked": [0], "clients": [0], "failed": []}
        append_event(log, {**event, **rest})
    assert list(rounds_table(log).columns[0].cells) == ["5", "10", "12"]
