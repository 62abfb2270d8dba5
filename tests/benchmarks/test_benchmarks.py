"""Every benchmark still runs and says what it promises, at sizes that take seconds; the figures mean nothing then."""

import json
from pathlib import Path

import pytest

from fedhubert.cli import main
from tests.benchmarks import codecs, cohorts, rounds
from tests.integration.conftest import SMALL

pytestmark = pytest.mark.slow  # six starts of Ray


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_rounds(capfd: pytest.CaptureFixture[str]) -> None:
    rounds.compare(0.01, [2], [2])
    ours, stock, *figures = lines(capfd.readouterr().out)
    assert (ours["way"], stock["way"]) == ("ours", "stock")
    assert {"name", "ours", "peer", "ratio", "unit"} <= figures[0].keys() & figures[1].keys() and len(figures) == 3


def test_cohorts(capfd: pytest.CaptureFixture[str]) -> None:
    cohorts.compare([4], stock_clients=2, pfl_clients=4)
    said = lines(capfd.readouterr().out)
    assert {line["way"] for line in said if "way" in line} >= {"ours", "stock"}
    assert any(line.get("name") == "cohort: ms per client beside stock, 2 workers" for line in said)


def test_codecs(tone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(tmp_path / "manifest.csv")]) == 0
    monkeypatch.setenv("FEDHUBERT_CORPUS", str(tmp_path))
    capfd.readouterr()
    small = [
        *SMALL,
        f"data.root={tone_folder}",
        "federated.num_clients=3",
        "federated.num_rounds=1",
        f"client.state_dir={tmp_path}",
    ]
    codecs.compare([0], tmp_path, small)
    (line,) = lines(capfd.readouterr().out)
    assert 0.3 < float(str(line["bytes_ratio"])) < 0.45
