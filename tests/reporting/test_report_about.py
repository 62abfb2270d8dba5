"""What a report says of how its runs were made, and what it warns of."""

import json
from pathlib import Path

from fedhubert.reporting.report_files import read_runs
from fedhubert.runs.starts import note_start, typed

from .by_hand import FINAL, TARGETS, report, round_event, run, write

__all__ = ["run"]  # the fixture


def test_a_run_alone_has_its_settings_command_date_and_versions(run: Path, tmp_path: Path) -> None:
    typed(["train", "experiment=demo", "out=first"])
    note_start(run)
    with (run / "starts.jsonl").open("a") as file:
        file.write("no JSON\n")
    _, page = report(tmp_path, run)
    assert ["client.lr", "0.001"] in page.rows and not any(row[0] == "out" for row in page.rows)
    (made,) = [row for row in page.rows if len(row) == 4 and row[0] == "first" and "-" in row[1]]
    assert made[2] == "fedhubert train experiment=demo out=first" and "torch 2." in made[3]


def test_runs_with_other_clusters_are_warned_of(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / name, [{**TARGETS, "key": key}, round_event(1)])
        for name, key in (("a", "one"), ("b", "one"), ("c", "other"))
    ]
    assert "c: other clusters than a." in report(tmp_path, *runs)[0]
    assert "other clusters" not in report(tmp_path, *runs[:2])[0]


def test_of_a_comparison_the_runs_of_each_seed_are_read_and_it_has_no_settings(
    tmp_path: Path,
) -> None:
    write(tmp_path / "out/seed_0/federated", [round_event(1)], "seed: 0\n")
    write(tmp_path / "out/seed_0/central", [round_event(1)], "seed: 0\n")
    (tmp_path / "out/compare.json").write_text(json.dumps({"summary": {"mfcc": {}}}))
    text, _ = report(tmp_path, tmp_path / "out")
    assert [run.name for run in read_runs([tmp_path / "out"])] == ["out", "central", "federated"]
    assert "not set" not in text


def test_participation_is_folded_where_nothing_failed(run: Path, tmp_path: Path) -> None:
    well = write(tmp_path / "well", [round_event(1, failed=[]), FINAL])
    assert "<details><summary>well: " in report(tmp_path, well)[0]
    assert "<details><summary>first: " not in report(tmp_path, run)[0]
