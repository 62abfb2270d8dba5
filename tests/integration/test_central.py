"""The central baseline beside the federated run of the same settings: same clusters, same audio, same steps, same judgement."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import events


def test_central_run_has_the_federated_runs_clusters_audio_and_masks(
    finished: Path, command: Callable[..., list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "central"
    arguments = ["central" if part == "train" else part for part in command(out)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    federated, central = events(finished), events(out)
    assert [event for event in central if event["event"] in ("kmeans", "targets")] == [
        event for event in federated if event["event"] in ("kmeans", "targets")
    ]
    centroids = [
        torch.load(run / "checkpoints" / "round_003_resume.pt", weights_only=True)["centroids"]
        for run in (finished, out)
    ]
    assert torch.equal(*centroids)
    rounds = [[event for event in run if event["event"] == "round"] for run in (federated, central)]
    audio = [sum(event["train"]["audio_s"] for event in run) for run in rounds]
    frames = [sum(event["train"]["masked_frames"] for event in run) for run in rounds]
    assert audio[0] == pytest.approx(audio[1], rel=1e-9) and frames[0] == frames[1]
    assert [event["train"]["steps"] for event in rounds[1]] == [
        2,
        2,
        2,
    ]  # three clients take two each, at the same time
    assert [event["asked"] for event in rounds[0]] == [event["asked"] for event in rounds[1]]
    first = [run[0]["validation"] for run in rounds]  # of the initial model
    assert first[0]["masked_frames"] == first[1]["masked_frames"]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-6)
    finals = [run[-1]["validation"] for run in (federated, central)]
    assert (
        finals[0]["masked_frames"] == finals[1]["masked_frames"]
        and finals[0]["clients"] == finals[1]["clients"]
    )
    assert (out / "curves.png").stat().st_size > 1000 and "Rounds" in done.stdout
