"""The HTML report: what it says of runs by hand, of old and broken ones, and of a run as it comes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedhubert.cli import main
from fedhubert.reporting.report_files import config_differences, read_runs
from fedhubert.reporting.report_page import MAX_CLIENTS

from .by_hand import FINAL, TARGETS, client, report, round_event, run, write

__all__ = ["run"]  # fixtures


def test_figures_of_a_run_by_hand(run: Path, tmp_path: Path) -> None:
    text, page = report(tmp_path, run)
    summary = next(row for row in page.rows if row[0] == "first")
    assert summary == [
        "first",
        "federated",
        "2 (finished)",
        "2.2500",
        "3.8000",
        "0.3100",
        "0.0500",
        "1.00",
        "6.0",
        "2 min 10 s",
    ]
    even = [
        "0.3100",
        "0.3100",
        "0.2200",
        "0.0900",
    ]  # median, mean, the worse of the two, standard deviation
    assert [
        "first",
        "2",
        *even,
        "client 1: 0.2200",
        "2.5000",
        "client 0: 0.4000",
        "0.1800",
    ] in page.rows
    assert ["client 2", "2", "0", "2", "update_not_finite (2)", ""] in page.rows
    assert ["client 1", "2", "2", "0", "", "0.2200"] in page.rows
    assert "4 updates used of 6 asked, 2 failures" in text
    assert [
        "first",
        "2.00",
        "1.00",
        "37.5%",
        "train 2 min 00 s, server step 2.0 s, other 8.0 s",
    ] in page.rows
    assert text.count("<svg") == 6


def test_the_page_stands_alone(run: Path, tmp_path: Path) -> None:
    text, page = report(tmp_path, run)
    assert all(address.startswith("#") for address in page.addresses)
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(text) < 300_000


def test_two_runs_with_their_differing_settings_and_evaluations(run: Path, tmp_path: Path) -> None:
    about = {"event": "baseline", "kind": "central", "reset_each_round": False}
    other = write(
        tmp_path / "second",
        [about, TARGETS, round_event(1, failed=[])],
        "seed: 0\nclient:\n  lr: 0.01\nout: b\nextra: [1]\n",
    )
    row = {"encoder": "checkpoint", "layer": 2, "accuracy": 0.4321, "majority": 0.1}
    cluster = {
        "encoder": "mfcc",
        "layer": None,
        "pnmi": 0.37,
        "label_purity": 0.41,
        "cluster_purity": 0.13,
    }
    within = {"error": 0.18, "interval": [0.17, 0.2], "cells": 9, "pairs": 3}
    abx = {"encoder": "checkpoint", "layer": 1, "within": within, "across": None}
    results = {
        "probes": {"phone": {"split": "speaker-disjoint", "rows": [row]}},
        "clusters": {"phone": {"k": 100, "rows": [cluster]}},
        "abx": {"mean": {"context": "any", "rows": [abx]}},
    }
    (other / "results.json").write_text(json.dumps(results))
    summary = {"federated": {"loss": {"mean": 2.0, "sd": 0.1, "seeds": 3}}, "mfcc": {}}
    seeds = {seed: {"federated": {"loss": 1.9 + 0.1 * int(seed)}, "mfcc": {}} for seed in "012"}
    compared = tmp_path / "compared"
    compared.mkdir()
    (compared / "compare.json").write_text(json.dumps({"summary": summary, "seeds": seeds}))
    _, page = report(tmp_path, run, other, compared)
    assert ["client.lr", "0.001", "0.01"] in page.rows  # a comparison has no settings of its own
    assert ["extra", "not set", "[1]"] in page.rows
    assert ["seed", "0", "0"] in page.rows and not any(row[0] == "out" for row in page.rows)
    assert next(row for row in page.rows if row[0] == "second")[1:3] == [
        "central",
        "1 (not finished)",
    ]
    assert ["checkpoint", "1", "0.1800 0.1700 to 0.2000"] in page.rows
    assert ["checkpoint", "2", "0.4321", "0.1000"] in page.rows and [
        "mfcc",
        "0.3700",
        "0.4100",
        "0.1300",
    ] in page.rows
    # by Student's t: 4.303 * 0.1 / sqrt(3)
    assert ["federated", "2.0000 ± 0.1000 (1.7516 to 2.2484)"] in page.rows
    assert ["1", "federated", "loss", "2.0000"] in page.rows
    beside = (tmp_path / "pages" / "report.csv").read_text().splitlines()
    assert beside[:2] == ["comparison,seed,model,figure,value", "compared,0,federated,loss,1.9"]
    assert [key for key, _ in config_differences(read_runs([run, other]))] == ["client.lr", "extra"]


def test_names_from_outside_are_text(run: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    other = write(
        tmp_path / r"<b>&x $\frac{$",
        [round_event(1, failed=[{"partition": 1, "code": evil}])],
        f"seed: '{evil}'\n",
    )
    text, page = report(tmp_path, run, other)
    assert "<script" not in text and "<b>" not in text
    assert any(evil in cell for row in page.rows for cell in row)


def test_old_interrupted_and_damaged_runs_are_reported_as_far_as_they_go(tmp_path: Path) -> None:
    old = write(tmp_path / "old", [{"event": "round", "round": 1, "train": {"loss": 4.2}}])
    (old / "config.yaml").write_text("seed: [")
    (old / "results.json").write_text("{")
    cut = write(tmp_path / "cut", [{"event": "kmeans", "iteration": 1}])
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"event": "rou')
    nulls = write(
        tmp_path / "nulls",
        [
            round_event(
                1, train={"loss": None}, validation=None, clients=None, seconds=None, asked=None
            )
        ],
    )
    _, page = report(tmp_path, old, cut, nulls)
    assert [
        row[2]
        for row in page.rows
        if row[0] in ("old", "cut", "nulls") and row[1:2] == ["federated"]
    ] == [
        "1 (not finished)",
        "0 (not finished)",
        "1 (not finished)",
    ]


def test_a_resumed_round_counts_once_and_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    events = [round_event(1), round_event(2), round_event(2), FINAL]
    runs = [write(tmp_path / side / "run", events) for side in ("left", "right")]
    _, page = report(tmp_path, *runs)
    assert next(row for row in page.rows if row[0] == "left/run")[2] == "2 (finished)"
    assert any(row[0] == "right/run" for row in page.rows)


def test_of_many_clients_the_troubled_ones_are_listed(tmp_path: Path) -> None:
    number = 3 * MAX_CLIENTS
    clients = [client(place, 3.0, 50 if place != 77 else 1) for place in range(number - 1)]
    failures = [{"partition": number - 1, "code": "no_answer", "setting": ""}]
    run = write(
        tmp_path / "many",
        [round_event(1, asked=list(range(number)), clients=clients, failed=failures)],
    )
    text, page = report(tmp_path, run)
    assert f"{MAX_CLIENTS} of {number} clients shown" in text
    listed = [row[0] for row in page.rows if len(row) == 6]  # nobody tells norms and cosines
    assert (
        f"client {number - 1}" in listed
        and "client 77" in listed
        and len(listed) == MAX_CLIENTS + 1
    )


def test_a_folder_without_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 1
    assert f"{tmp_path} holds no run" in capsys.readouterr().err


def test_a_students_distance_to_its_teacher_is_shown(tmp_path: Path) -> None:
    def student(number: int) -> dict[str, Any]:
        figures = {"loss": 1.0, "frames": 9, "cosine_distance": 0.8 / number, "relative_l2": 0.5}
        return round_event(
            number,
            train={**figures, "audio_s": 1.0, "steps": 1},
            validation={"model_round": number - 1, **figures},
        )

    write(tmp_path / "student", [student(1), student(2)])
    write(tmp_path / "pretrained", [round_event(1)])
    out = tmp_path / "report.html"
    assert (
        main(["report", str(tmp_path / "student"), str(tmp_path / "pretrained"), "--out", str(out)])
        == 0
    )
    text = out.read_text()
    assert (
        "distance to the teacher" in text
        and "0.8000, 0.4000" in text
        and "Distance to the teacher by round" in text
    )
    assert (
        main(["report", str(tmp_path / "pretrained"), "--out", str(tmp_path / "other.html")]) == 0
    )
    assert "distance to the teacher" not in (tmp_path / "other.html").read_text()


def test_drift_is_shown_where_a_run_tells_of_it(run: Path, tmp_path: Path) -> None:
    drift = {"update_norm": 2.0, "mean_update_norm": 1.0, "pairwise_cosine": 0.25}
    told = write(tmp_path / "told", [round_event(1, drift=drift), round_event(2, drift={})])
    assert "Drift" not in report(tmp_path, run)[0]
    text, _ = report(tmp_path, run, told)
    assert "<h2>Drift</h2>" in text and "Drift of the clients by round" in text
    assert read_runs([told])[0].drift("pairwise_cosine") == [(1, 0.25)]


def test_each_clients_norm_and_cosine_are_shown_where_a_run_tells_of_them(
    run: Path, tmp_path: Path
) -> None:
    def updated(number: int, norm: float, cosine: float) -> dict[str, Any]:
        return client(number, 3.0, 20) | {"update_norm": norm, "cosine_to_mean": cosine}

    drift = {
        "update_norm": 2.0,
        "mean_update_norm": 1.0,
        "cosine_to_mean": 0.5,
        "lowest_cosine_to_mean": -0.25,
    }
    first = round_event(1, clients=[updated(0, 1.0, 0.75), updated(1, 4.0, -0.25)], drift=drift)
    second = round_event(2, clients=[updated(0, 2.0, 0.25), client(1, 3.0, 20)], drift={})
    told = write(tmp_path / "told", [first, second])
    (data,) = read_runs([told])
    assert data.cosines() == [(1, [0.75, -0.25]), (2, [0.25])]
    assert data.updates("update_norm") == {0: 1.5, 1: 4.0} and data.updates("cosine_to_mean") == {
        0: 0.5,
        1: -0.25,
    }
    _, page = report(tmp_path, run, told)
    ends = [
        (row[0], row[-2:]) for row in page.rows if len(row) == 8 and row[0].startswith("client ")
    ]
    assert ("client 0", ["1.5", "0.5000"]) in ends and ("client 1", ["4", "-0.2500"]) in ends
    assert ("client 2", ["", ""]) in ends
    assert len(ends) == 3  # the run that does not tell has no such columns


def test_of_a_sweep_the_jobs_are_read_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for number in (0, 2, 10):
        write(sweep / str(number), [round_event(1)], f"seed: {number}\n")
    (sweep / "1").mkdir()  # a job that failed before its first event
    runs = read_runs([sweep])
    assert [run.name for run in runs] == ["seed=0", "seed=2", "seed=10"]
    report(tmp_path, sweep)
    assert "report of 3 runs" in capsys.readouterr().out


def test_privacy_is_shown_where_a_run_has_it(run: Path, tmp_path: Path) -> None:
    spent = {"epsilon": 2.5, "delta": 1e-5, "clip_norm": 0.5, "noise_std": 0.125}
    central = [round_event(1, privacy={**spent, "epsilon": None})]
    write(tmp_path / "central", [*central, round_event(2, privacy={**spent, "clip_norm": 0.25})])
    write(tmp_path / "distributed", [round_event(1, privacy={**spent, "honest_clients": 4})])
    html, page = report(tmp_path, run, tmp_path / "central", tmp_path / "distributed")
    assert html.count("Differential privacy") == 2  # in the contents and above its table
    rows = [row for row in page.rows if row[1:2] in (["the server"], ["the clients"])]
    assert rows == [
        ["central", "the server", "2.5", "1e-05", "0.5, 0.25", "0.125", ""],
        ["distributed", "the clients", "2.5", "1e-05", "0.5, 0.5", "0.125", "4"],
    ]
    html, _ = report(tmp_path, run)
    assert "Differential privacy" not in html


def test_secure_sums_are_shown_where_a_run_has_them(run: Path, tmp_path: Path) -> None:
    opened = {"masked": 4, "dropped": [2], "helpers": 4, "bytes_down": 3000, "bytes_up": 1000}
    events = [
        round_event(1, secure=opened),
        round_event(2, secure={"skipped": "secure_garbage", "cohort": 5}),
    ]
    write(tmp_path / "secure", events)
    pages = {}
    for folder in (tmp_path / "secure", run):
        out = tmp_path / f"{folder.name}.html"
        assert main(["report", str(folder), "--out", str(out)]) == 0
        pages[folder.name] = out.read_text()
    assert "Secure sums" not in pages[run.name]
    assert "secure_garbage (1)" in pages["secure"] and "4.0" in pages["secure"]
