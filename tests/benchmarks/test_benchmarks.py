"""Every benchmark still runs and says what it promises, at sizes that take seconds; the figures mean nothing then."""

import json
from pathlib import Path

import pytest

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import TargetsConfig
from fedhubert.data.manifest import Manifest
from tests.benchmarks import (
    archives,
    clusters,
    codecs,
    cohorts,
    corpora,
    data,
    distillation,
    ranks,
    rounds,
    startup,
    step,
    switches,
)
from tests.integration.conftest import SMALL


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def figures(captured: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    """Return the figures printed so far, by name: each has both sides."""
    said = {str(line["name"]): line for line in lines(captured.readouterr().out)}
    assert said and all({"ours", "peer", "ratio", "unit"} <= line.keys() for line in said.values())
    return said


def prepare(audio: Path, manifest: Path) -> None:
    assert main(["prepare", "folder", "--root", str(audio), "--out", str(manifest)]) == 0


def test_step(capsys: pytest.CaptureFixture[str]) -> None:
    step.compare_time("hubert_tiny", rows=1, seconds=0.5, repeats=1, size=64)
    assert len(figures(capsys)) == 3
    assert step.case("step", "checkpointed", "hubert_tiny", "1", "0.5")["mb"] < 512
    config = step.configuration("hubert_tiny")
    batch = step.noise(config, rows=1, seconds=0.5)
    assert step.flops(config, batch) > 1e8
    for way in ("ours", "lean"):
        step.logits(way, config, batch)()


@pytest.mark.slow
def test_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    ranks.compare("hubert_tiny", rows=1, seconds=0.5, repeats=1)
    said = {str(line["name"]): line["ours"] for line in lines(capsys.readouterr().out)}
    assert len(said) == 8 and all(float(str(value)) >= 0 for value in said.values())
    assert said["hubert_tiny, ranks=2: CPU of adding up"]


@pytest.mark.skipif(
    not distillation.HAVE_S3PRL,
    reason="s3prl is not installed, whose step this times: pip install -e '.[bench]'",
)
def test_distillation(capsys: pytest.CaptureFixture[str]) -> None:
    distillation.compare_time("hubert_tiny", "student_tiny", (1, 2), rows=1, seconds=0.5, repeats=1)
    said = lines(capsys.readouterr().out)
    assert [line.keys() >= {"ours", "peer", "ratio"} for line in said] == [True] * 4 + [False]
    assert distillation.case("peer", "hubert_tiny", "student_tiny", "1,2", "1", "0.5")["mb"] < 512


def test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.compare_decoding(files=3, seconds=0.5, repeats=1)
    data.compare_long_file(minutes=0.2, repeats=1)
    assert len(figures(capsys)) == 14
    assert data.case("epoch", "40", "4").keys() == {"mb", "growth_mb"}
    data.write_manifest(tmp_path / "manifest.csv", 100)
    for way in ("ours", "dictionaries"):
        assert data.case(way, str(tmp_path / "manifest.csv"))["rows"] == 100


def test_corpora(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path, 400)
    found = corpora.start(tmp_path, 4)
    assert found["rows"] == 400 and 0 < found["all_cpu_s"] < 60


def test_archives(capsys: pytest.CaptureFixture[str]) -> None:
    archives.compare_archives(files=3, seconds=0.6, repeats=1)
    archives.compare_listening(files=3, seconds=0.6, repeats=1)
    assert len(figures(capsys)) == 6


def test_clusters(tone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tone_folder, tmp_path / "manifest.csv")
    capsys.readouterr()
    waveforms = clusters.speech(Manifest.read(tmp_path / "manifest.csv", tone_folder), minutes=1.0)
    clusters.compare(waveforms, num_clients=2, targets=TargetsConfig(num_clusters=4), repeats=1)
    assert len(figures(capsys)) == 4


def test_help_imports_no_torch() -> None:
    assert not startup.imports_torch()


@pytest.mark.slow
def test_commands_and_first_round(
    tone_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    startup.compare_commands(repeats=1)
    assert len(figures(capsys)) == 2
    assert (
        main(
            ["prepare", "folder", "--root", str(tone_folder), "--out", str(tmp_path / "tones.csv")]
        )
        == 0
    )
    manifest = Manifest.read(tmp_path / "tones.csv", tone_folder)
    small = [
        *SMALL,
        f"data.root={tone_folder}",
        "federated.num_clients=3",
        "federated.num_rounds=1",
        "client.local_steps=1",
    ]
    assert (
        1.0 < startup.first_round(manifest, tmp_path, *small) < 300
    )  # seconds, most of them imports and Ray


def test_switches(capsys: pytest.CaptureFixture[str]) -> None:
    compiled = "torch.compile of the transformer's layers"
    switches.compare("hubert_tiny", rows=1, seconds=0.5, repeats=1, left_out=(compiled,))
    assert compiled in switches.SWITCHES and len(figures(capsys)) == len(switches.SWITCHES) + 1


@pytest.mark.slow
def test_rounds(capfd: pytest.CaptureFixture[str]) -> None:
    rounds.compare(0.01, [2], [2])
    ours, stock, *said = lines(capfd.readouterr().out)
    assert (ours["way"], stock["way"]) == ("ours", "stock")
    assert {"name", "ours", "peer", "ratio", "unit"} <= said[0].keys() & said[1].keys() and len(
        said
    ) == 3


@pytest.mark.slow
def test_cohorts(capfd: pytest.CaptureFixture[str]) -> None:
    cohorts.compare([4], stock_clients=2, pfl_clients=4, registered=200, many=70)
    said = lines(capfd.readouterr().out)
    assert {line["way"] for line in said if "way" in line} >= {"ours", "stock"}
    assert any(line.get("name") == "cohort: ms per client beside stock, 2 workers" for line in said)


def test_codecs_settings_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHUBERT_CORPUS", str(tmp_path))
    for way, strategy in (("local", "FedAvg"), ("muon", "FedMuon")):
        for codec in ([], *codecs.LOSSY.values()):
            settings = ["experiment=speech_mini", *codecs.WAYS[way], *codec]
            assert compose(settings).federated.strategy == strategy


@pytest.mark.slow
def test_codecs(
    tone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    prepare(tone_folder, tmp_path / "manifest.csv")
    monkeypatch.setenv("FEDHUBERT_CORPUS", str(tmp_path))
    capfd.readouterr()
    small = [
        *SMALL,
        f"data.root={tone_folder}",
        "federated.num_clients=3",
        "federated.num_rounds=1",
        "federated.client_cosines=false",  # as large as a fifth of so small a model
        f"client.state_dir={tmp_path}",
    ]
    codecs.compare("int8", [0], tmp_path, small)
    sent, loss = lines(capfd.readouterr().out)
    assert 2.2 < float(str(sent["ratio"])) < 3.3 and float(str(loss["differs_by"])) < 0.05
