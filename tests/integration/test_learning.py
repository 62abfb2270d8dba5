"""The demo and ``speech_mini`` learn, whatever the seed: minutes each, so they have a command of their own (``make test-slow``)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhubert.data.corpora import sample_folder

from .conftest import events


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns(seed: int, tmp_path: Path) -> None:
    """A held-out masked accuracy of 0.2, five times the most frequent cluster's share, loss 0.7 nats below the unigram entropy, both improving."""
    if not (sample_folder() / "manifest.csv").is_file():
        pytest.skip("the sample speech is not here: `fedhubert prepare sample`")
    command = [
        sys.executable,
        "-m",
        "fedhubert.cli",
        "train",
        "experiment=demo",
        f"seed={seed}",
        f"out={tmp_path / 'run'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (targets,) = [event for event in events(tmp_path / "run") if event["event"] == "targets"]
    held_out = [
        event["validation"] for event in events(tmp_path / "run") if event.get("validation")
    ]
    losses = [figures["loss"] for figures in held_out]
    accuracies = [figures["masked_accuracy"] for figures in held_out]
    levels = targets["validation_labels"]
    print(json.dumps({"seed": seed, **levels, "losses": losses, "accuracies": accuracies}))
    assert accuracies[-1] >= max(0.2, 4.0 * levels["most_frequent_share"])
    assert losses[-1] <= levels["entropy_nats"] - 0.7
    assert (
        len(accuracies) == 16
    )  # every 20th of 300 rounds scores the model that it gets, and the end the last
    # of some 4 000 masked frames each: neighbours may change places, thirds of the run do not
    for figures in ([-loss for loss in losses], accuracies):
        assert all(later > earlier for earlier, later in zip(figures, figures[5:], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_speech_mini_and_its_student_are_better_than_mfcc(seed: int, tmp_path: Path) -> None:
    """On speakers that no model has heard: phones 2 points better by a linear probe, the student's 5, ABX errors across speakers 0.97 of MFCC's."""
    corpus, held_out = (os.environ.get(f"FEDHUBERT_{name}") for name in ("CORPUS", "EVAL"))
    if not corpus or not held_out:
        pytest.skip("FEDHUBERT_CORPUS and FEDHUBERT_EVAL are not set: no speech to learn from")

    def fedhubert(*command: str) -> None:
        words = [sys.executable, "-m", "fedhubert.cli", *command]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    fedhubert("recipe", "speech_mini", f"seed={seed}", f"out={tmp_path}")
    audio = ["--manifest", f"{held_out}/manifest.csv", "--phones", f"{held_out}/phones.csv"]
    audio += ["--train-manifest", f"{corpus}/manifest.csv"]
    for stage, points in (("iteration1", 0.02), ("student", 0.05)):
        run, result = tmp_path / stage, tmp_path / f"{stage}.json"
        fedhubert("evaluate", "--checkpoint", str(run), *audio, "--out", str(result))
        (final,) = [event for event in events(run) if event["event"] == "final"]
        found = json.loads(result.read_text())
        phones = _best(found["probes"]["phone"]["rows"], lambda row: row["accuracy"], max)
        errors = _best(found["abx"]["mean-z"]["rows"], lambda row: row["across"]["error"], min)
        print(json.dumps({"seed": seed, "phones": phones, "abx": errors, **final["validation"]}))
        assert stage == "student" or final["validation"]["masked_accuracy"] >= 0.27
        assert phones["checkpoint"] >= phones["mfcc"] + points
        assert errors["checkpoint"] <= 0.97 * errors["mfcc"]


def _best(
    rows: list[dict[str, Any]],
    figure: Callable[[dict[str, Any]], float],
    better: Callable[[list[float]], float],
) -> dict[str, float]:
    """The best layer's figure of each encoder."""
    names = {row["encoder"] for row in rows}
    return {name: better([figure(row) for row in rows if row["encoder"] == name]) for name in names}
