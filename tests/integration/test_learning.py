"""The demo learns, whatever the seed: minutes each, so it has a command of its own (``make test-slow``)."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from fedhubert.data.corpora import sample_folder

from .conftest import events


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns(seed: int, tmp_path: Path) -> None:
    """Held-out masked accuracy at least 1.5 times the most frequent cluster's share, loss 0.2 nats below the unigram entropy, both improving."""
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
    assert accuracies[-1] >= 1.5 * levels["most_frequent_share"]
    assert losses[-1] <= levels["entropy_nats"] - 0.2
    assert losses == sorted(losses, reverse=True)
    noise = 0.001  # a standard deviation of an accuracy near 0.08 over some 50 000 masked frames of correlated speech
    assert all(later > earlier - noise for earlier, later in pairwise(accuracies))
    assert all(later > earlier for earlier, later in zip(accuracies, accuracies[2:], strict=False))
