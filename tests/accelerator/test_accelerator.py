"""The command for a card runs here, too: every step at toy size on the CPU, the copy of a corpus, and what a broken step leaves."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from fedhubert.data.audio import read_audio
from fedhubert.data.manifest import Manifest
from tests.accelerator import pack, runner
from tests.accelerator.audio import tones
from tests.accelerator.figures import append, rows
from tests.accelerator.runner import ROOT, Options, Runner, select, table
from tests.accelerator.steps import LEARNING_S, STEPS, Step

MINUTES = 30.0
"""Two quiet cores take two; this is for cores on which ten others run, too."""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tests.accelerator", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60 * MINUTES + 30)


def test_every_step_runs_at_toy_size_and_none_fails(tmp_path: Path) -> None:
    done = command(
        "--device", "cpu", "--quick", "--minutes", f"{MINUTES:g}", "--out", str(tmp_path)
    )
    written = rows(tmp_path)
    ended = {row["step"]: row["status"] for row in written if "status" in row and "part" not in row}
    assert list(ended) == [step.name for step in STEPS], done.stdout[-4000:]
    assert set(ended.values()) <= {"ok", "skipped"} and done.returncode == 0, done.stdout[-4000:]
    assert all(row["status"] == "skipped" and row["reason"] for row in written if "part" in row)
    for step in STEPS:
        assert ended[step.name] == "skipped" or any(
            row["step"] == step.name and "figure" in row for row in written
        )
        assert f"{step.name}: {ended[step.name]}" in (tmp_path / "table.txt").read_text()


def test_steps_are_listed_and_unknown_ones_refused(tmp_path: Path) -> None:
    assert [line.split()[0] for line in command("--list").stdout.splitlines()] == [
        step.name for step in STEPS
    ]
    assert [step.name for step in select("learning,step")] == ["step", "learning"]
    with pytest.raises(SystemExit, match="no such step"):
        select("steps")
    # What comes before `learning` may use up its own limits, never the minutes that are kept for it.
    assert LEARNING_S <= 9 * 60 / 3 and STEPS[-1].name == "learning"


@pytest.fixture()
def steps_of_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Step]]:
    """Steps that break, hang and need what is not there, in place of the real ones."""
    bodies = {
        "breaks": "print('a figure is known'); raise ValueError('broken')",
        "hangs": "import time; print('waiting', flush=True); time.sleep(600)",
        "lacks": "print('no such package here'); raise SystemExit(77)",
        "works": "print('fine')",
    }
    popen = subprocess.Popen

    def start(line: list[str], **settings: Any) -> Any:
        name = line[line.index("--step") + 1]
        append(tmp_path, step=name, figure="known before the end", value=1.0, unit="")
        return popen([sys.executable, "-c", bodies[name]], **settings)

    steps = [Step(name, name, 0.0, 3.0) for name in bodies]
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(runner, "STEPS", tuple(steps))
    monkeypatch.setattr(runner, "_LEAST_S", 1.0)
    yield steps


def test_what_breaks_or_hangs_is_recorded_and_the_next_step_runs(
    steps_of_our_own: list[Step], tmp_path: Path
) -> None:
    assert not Runner(Options(tmp_path, "cpu", None, 1.0, True)).run(steps_of_our_own)
    ended = {row["step"]: row for row in rows(tmp_path) if "status" in row}
    assert {name: row["status"] for name, row in ended.items()} == {
        "breaks": "failed",
        "hangs": "failed",
        "lacks": "skipped",
        "works": "ok",
    }
    assert (
        ended["breaks"]["tail"][-1] == "ValueError: broken"
        and "a figure is known" in ended["breaks"]["tail"]
    )
    assert (
        ended["hangs"]["reason"] == "more than 3 s"
        and ended["lacks"]["reason"] == "no such package here"
    )
    assert table(tmp_path).count("known before the end") == 4


def test_no_step_begins_when_the_minutes_are_over(
    steps_of_our_own: list[Step], tmp_path: Path
) -> None:
    assert Runner(Options(tmp_path, "cpu", None, 0.1, True)).run(steps_of_our_own)
    assert [(row["status"], row["reason"]) for row in rows(tmp_path)] == [
        ("skipped", "no time is left of --minutes 0.1")
    ] * 4


def test_figures_are_on_disk_before_the_step_ends(tmp_path: Path) -> None:
    append(tmp_path, step="step", figure="audio", value=1.5, unit="s/s")
    (line,) = (tmp_path / "figures.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] == 1.5


def test_a_packed_corpus_has_the_same_speech_and_labels_in_less_room(tmp_path: Path) -> None:
    manifest = tones(tmp_path / "tones", files=3)
    with (manifest.parent / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["path", "task", "label"],
                *[[path, "digit", "7"] for path in Manifest.read(manifest).paths],
            ]
        )
    (manifest.parent / "units.km").write_text("".join(f"{row}\n" for row in range(15)))
    whole = Manifest.read(manifest)
    packed = pack.pack(manifest, tmp_path / "whole", max_mb=1.0)
    again = Manifest.read(tmp_path / "whole/manifest.csv")
    assert (
        again.paths == packed.paths
        and again.speakers == whole.speakers
        and (again.num_samples == whole.num_samples).all()
    )
    assert read_audio(again.audio_path(0)).shape == (whole.num_samples[0],)
    assert soundfile.info(str(again.audio_path(0))).subtype == "OPUS"
    labelled = (tmp_path / "whole/labels.csv").read_text().splitlines()
    assert labelled[1] == f"{packed.paths[0]},digit,7" and len(labelled) == 16
    part = pack.pack(manifest, tmp_path / "part", max_mb=0.03)
    assert 0 < len(part) < len(whole) and set(part.speakers) == set(whole.speakers)
    size = sum(
        file.stat().st_size
        for file in (tmp_path / "part").rglob("*")
        if file.is_file() and file.name != "manifest.csv"
    )
    assert size <= 0.03 * 1e6
    kept = [whole.paths.index(path.replace(".ogg", ".flac")) for path in part.paths]
    assert (tmp_path / "part/units.km").read_text().split() == [str(row) for row in kept]
    assert sum(1 for _ in (tmp_path / "part").rglob("*.ogg")) == len(part)
