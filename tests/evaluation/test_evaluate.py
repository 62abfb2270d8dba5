"""``fedhubert evaluate`` on a checkpoint of ours and on tones, and on real speech where there is some."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.cli import main
from fedhubert.compose import compose
from fedhubert.config import ModelConfig
from fedhubert.data.manifest import Manifest
from fedhubert.models.hubert import build_hubert
from fedhubert.runs.store import RoundStore
from fedhubert.targets.features import fitting_features
from fedhubert.targets.kmeans import seed_centroids

DATA = [
    "data.min_seconds=0.5",
    "data.max_seconds=1.5",
    "data.batch_seconds=3",
    "targets.num_clusters=8",
]
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def manifest(tone_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "tones.csv"
    assert main(["prepare", "folder", "--root", str(tone_folder), "--out", str(out)]) == 0
    return out


@pytest.fixture
def checkpoint(
    tiny_model_config: ModelConfig, manifest: Path, tone_folder: Path, tmp_path: Path
) -> Path:
    """A round of an untrained model, saved as a run would, with centroids of the tones."""
    config = compose(
        ["experiment=demo_fedavg", f"data.manifest={manifest}", f"data.root={tone_folder}", *DATA]
    )
    model = tiny_model_config.model_copy(update={"num_classes": 12})
    config = config.model_copy(update={"model": model})
    listed = Manifest.read(manifest, tone_folder)
    features = fitting_features(listed, np.arange(len(listed)), 3000, 0, 0)
    centroids = seed_centroids(
        features, np.ones(len(features), np.int64), 8, np.random.default_rng(0)
    )
    return RoundStore(tmp_path / "run" / "checkpoints").save(
        1,
        build_hubert(model, 0).state_dict(),
        config=config.model_dump(mode="json"),
        federated_metrics={"round": 1},
        resume={"centroids": torch.from_numpy(centroids)},
    )


@pytest.fixture
def evaluate(
    checkpoint: Path,
    manifest: Path,
    tone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Evaluate:
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path / "cache"))

    def run(*flags: str, source: Path | None = None) -> dict[str, Any]:
        out = tmp_path / "results" / "results.json"
        named = [
            "--checkpoint",
            str(source or checkpoint),
            "--manifest",
            str(manifest),
            "--root",
            str(tone_folder),
        ]
        assert main(["evaluate", *named, "--out", str(out), *flags]) == 0
        return json.loads(out.read_text())

    return run


def rows_of(results: dict[str, Any], kind: str, task: str) -> list[tuple[str, int | None]]:
    return [(row["encoder"], row["layer"]) for row in results[kind][task]["rows"]]


def test_all_sections_of_a_checkpoint(
    evaluate: Evaluate, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Manifest.read(manifest).paths
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "path,task,label\n" + "".join(f"{path},number,{path[-5]}\n" for path in paths)
    )
    phones = tmp_path / "phones.csv"
    lines = [f"{path},0,6000,low\n{path},6000,8000,high\n" for path in paths]
    phones.write_text("path,start_sample,end_sample,phone\n" + "".join(lines))
    probes = ["--probe", "number", "--probe", "speaker", "--purity", "speaker"]
    results = evaluate(
        "--labels",
        str(labels),
        "--phones",
        str(phones),
        *probes,
        "--clusters",
        "6",
        "--layers",
        "0,2",
    )
    expected = [
        ("mfcc", None),
        ("random init", 0),
        ("random init", 2),
        ("checkpoint", 0),
        ("checkpoint", 2),
    ]
    for kind, task in (
        ("probes", "number"),
        ("probes", "speaker"),
        ("probes", "phone"),
        ("clusters", "phone"),
        ("clusters", "speaker"),
    ):
        assert rows_of(results, kind, task) == expected
    assert results["probes"]["speaker"]["split"] == "by utterance"
    assert results["probes"]["phone"]["split"] == "speaker-disjoint"
    assert results["probes"]["phone"]["rows"][0]["classes"] == 2
    assert results["probes"]["phone"]["rows"][0]["majority"] == pytest.approx(0.75, abs=0.02)
    assert results["masked"]["utterances"] == 12 and results["masked"]["loss"] > 0
    assert 0 < results["masked"]["entropy_nats"] < np.log(8) + 1e-9
    shown = capsys.readouterr()
    assert (
        "Probe: number (12 items, 4 labels, speaker-disjoint)" in shown.out
        and "random init" in shown.out
    )
    assert (
        "phone: checkpoint: 0 of 12 utterances" in shown.err
    )  # plain lines where there is no terminal


def test_tables_are_on_standard_output_and_threads_and_time_are_said(
    checkpoint: Path, manifest: Path, tone_folder: Path, tmp_path: Path
) -> None:
    """As a process: only there is standard output the libraries' meanwhile."""
    command = [sys.executable, "-m", "fedhubert.cli", "evaluate", "--checkpoint", str(checkpoint)]
    audio = ["--manifest", str(manifest), "--root", str(tone_folder)]
    few = ["--probe", "speaker", "--layers", "0", "--folds", "2", "--clusters", "0"]
    done = subprocess.run(
        [*command, *audio, *few, "--threads", "1"],
        env={**os.environ, "FEDHUBERT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "s of audio a CPU second" in done.stdout and "checkpoint" in done.stdout
    assert re.search(r"took \d+ CPU seconds, \d+ by the clock, with 1 threads?", done.stdout)


def test_the_same_call_gives_the_same_figures_with_and_without_cache(evaluate: Evaluate) -> None:
    flags = ("--probe", "speaker", "--purity", "speaker", "--clusters", "5")
    first, second, uncached = (
        evaluate(*flags),
        evaluate(*flags),
        evaluate(*flags, "--cache-gb", "0"),
    )
    speeds = [results["encoder"].pop("audio_s_per_s") for results in (first, second, uncached)]
    assert all(results.pop("seconds")["cpu"] > 0.1 for results in (first, second, uncached))
    assert first == second == uncached
    assert all(10 < speed < 1e6 for speed in speeds)


def test_an_export_has_the_figures_of_its_checkpoint(
    evaluate: Evaluate, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "huggingface"
    assert (
        main(
            [
                "export",
                "--checkpoint",
                str(checkpoint),
                "--format",
                "huggingface",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    ours, theirs = evaluate("--probe", "speaker"), evaluate("--probe", "speaker", source=out)
    assert ours["probes"] == theirs["probes"]
    assert "skipped" not in ours["masked"] and "skipped" in theirs["masked"]


def test_probes_fitted_on_another_manifest_leave_out_its_shared_speakers(
    evaluate: Evaluate,
    manifest: Path,
    tone_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The training manifest has all three speakers; the evaluated one is two of them, so one is left to fit on."""
    lines = manifest.read_text().splitlines()
    manifest.write_text(
        "\n".join([lines[0], *(line for line in lines[1:] if "speaker0" not in line)]) + "\n"
    )
    train, train_labels = tmp_path / "train.csv", tmp_path / "labels.csv"
    train.write_text("\n".join(lines) + "\n")
    paths = [row["path"] for row in csv.DictReader(lines)]
    train_labels.write_text(
        "path,task,label\n" + "".join(f"{path},number,{path[-5]}\n" for path in paths)
    )
    flags = [
        "--labels",
        str(train_labels),
        "--train-manifest",
        str(train),
        "--train-root",
        str(tone_folder),
    ]
    results = evaluate(*flags, "--train-labels", str(train_labels))
    assert results["probes"]["number"]["rows"][0]["items"] == 8
    assert results["probes"]["number"]["split"].endswith("fitted on the training manifest")
    train.write_text(
        "\n".join([lines[0], *(line for line in lines[1:] if "speaker0" not in line)]) + "\n"
    )
    named = [
        "--checkpoint",
        str(tmp_path / "run"),
        "--manifest",
        str(manifest),
        "--root",
        str(tone_folder),
    ]
    assert main(["evaluate", *named, *flags, "--train-labels", str(train_labels)]) == 1
    assert "probes need other ones" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "0,9", "--probe", "speaker"], "no layer 9: this encoder has 0 to 2"),
        (["--layers", "top", "--probe", "speaker"], "give numbers"),
        (["--probe", "accent"], "no labels `accent`"),
        (["--phones", "missing.csv"], "cannot read missing.csv"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_bad_calls_say_what_is_wrong(
    flags: list[str],
    message: str,
    checkpoint: Path,
    manifest: Path,
    tone_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [
        "--checkpoint",
        str(checkpoint),
        "--manifest",
        str(manifest),
        "--root",
        str(tone_folder),
    ]
    assert main(["evaluate", *named, *flags]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fedhubert: ") and message in last


@pytest.mark.slow
def test_reference_values_on_real_speech(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where single-frame probes of MFCC and of an untrained model of this size stand on aligned LibriSpeech of five speakers."""
    named = os.environ.get("FEDHUBERT_EVAL")
    if not named:
        pytest.skip("FEDHUBERT_EVAL is not set: no aligned speech to evaluate on")
    folder = Path(named)
    monkeypatch.setenv("FEDHUBERT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "results.json"
    flags = [
        "--manifest",
        str(folder / "manifest.csv"),
        "--phones",
        str(folder / "phones.csv"),
        "--layers",
        "2",
        "--abx-most",
        "0",
        "--out",
        str(out),
    ]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *flags]) == 0
    found = json.loads(out.read_text())
    mfcc, untrained, _ = found["probes"]["phone"]["rows"]
    assert 0.30 < mfcc["accuracy"] < 0.42
    assert 0.12 < untrained["accuracy"] < 0.30
    for measure, within, across in (("mean", 0.191, 0.279), ("mean-z", 0.175, 0.240)):
        row = found["abx"][measure]["rows"][0]
        assert row["within"]["error"] == pytest.approx(within, abs=0.002)
        assert row["across"]["error"] == pytest.approx(across, abs=0.002)
