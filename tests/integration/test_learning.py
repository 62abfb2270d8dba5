"""The demo learns, whatever the seed: minutes each, so it has a command of its own (``make test-slow``)."""

import json
import subprocess
import sys
from pathlib import Path

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
