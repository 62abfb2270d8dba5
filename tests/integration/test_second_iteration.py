"""Both iterations as one command on generated audio, and what a site's preflight shows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import HubertModel

from fedhubert.formats.round_file import load_checkpoint

from .conftest import SMALL, Train, events
from .test_simulation import assert_same_model

ITERATION_2 = ["targets.source=layer:1", "targets.num_clusters=6"]
Recipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe(manifest: Path, tone_folder: Path, environment: dict[str, str]) -> Recipe:
    def run(out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        data = [f"data.manifest={manifest}", f"data.root={tone_folder}", f"out={out}"]
        own = [f"iteration2:{override}" for override in ITERATION_2]
        command = [
            sys.executable,
            "-m",
            "fedhubert.cli",
            "recipe",
            "demo",
            *data,
            *SMALL,
            *own,
            *overrides,
        ]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.slow
def test_the_recipe_trains_both_iterations_exports_and_skips_what_is_done(
    recipe: Recipe, train: Train, finished: Path, manifest: Path, tone_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recipe"
    state = f"client.state_dir={tmp_path / 'state'}"
    labels = ["targets.label_column=speaker", "targets.label_values=[speaker0,speaker1,speaker2]"]
    assert (
        recipe(out, state, "iteration2:federated.num_clients=9").returncode == 1
    )  # the second stage cannot be: the first stays
    assert not (out / "iteration2" / "metrics.jsonl").exists()
    done = recipe(out, state, *(f"iteration2:{override}" for override in labels))
    assert done.returncode == 0, done.stderr
    assert "all 3 rounds are done" in done.stderr
    assert_same_model(finished, out / "iteration1")
    by_name = {event["event"]: event for event in events(out / "iteration2")}
    extractor, targets = by_name["extractor"], by_name["targets"]
    assert (extractor["layer"], extractor["nodes"], extractor["sent_to"]) == (1, 3, 1)
    assert (
        targets["agreement"]["frames"]
        == targets["train_labels"]["frames"] + targets["validation_labels"]["frames"]
    )
    assert (
        1 / 3 <= targets["agreement"]["chance_purity"] <= targets["agreement"]["label_purity"] <= 1
    )
    assert by_name["final"]["validation"]["model_round"] == 3
    second = load_checkpoint(out / "iteration2/checkpoints/round_003_checkpoint.pt")
    assert second["model"]["logit_generator.label_embeddings"].shape[0] == 6 + 4
    assert HubertModel.from_pretrained(out / "huggingface").config.num_hidden_layers == 1

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    again = recipe(out, state, *(f"iteration2:{override}" for override in labels))
    assert (
        again.returncode == 0
        and again.stderr.count("all 3 rounds are done") == 2
        and "huggingface is there" in again.stderr
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} == before

    # The same iteration by itself: two nodes, one worker, another state folder; the same bits. The model is sent anew, to that folder.
    alone = tmp_path / "alone"
    done = train(
        alone,
        *ITERATION_2,
        f"targets.checkpoint={out / 'iteration1'}",
        f"client.state_dir={tmp_path / 'other'}",
        f"evaluation.manifest={manifest}",
        f"evaluation.root={tone_folder}",
        "simulation.num_supernodes=2",
        "simulation.num_workers=1",
    )
    assert done.returncode == 0, done.stderr
    assert_same_model(out / "iteration2", alone)
    scored = [event["server_validation"] for event in events(alone) if event["event"] == "round"]
    assert len({validation["loss"] for validation in scored}) == 3  # each round's model its own
    changed = train(
        alone,
        *ITERATION_2,
        f"targets.checkpoint={out / 'iteration1'}",
        f"client.state_dir={tmp_path / 'other'}",
        "client.lr=1",
        "resume=auto",
    )
    assert changed.returncode == 1 and "client.lr" in changed.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_resumed_second_iteration_needs_the_same_first(
    train: Train, finished: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "run", tmp_path / "first.pt"
    values = torch.load(finished / "checkpoints/round_003_checkpoint.pt", weights_only=True)
    torch.save(values, checkpoint)
    second = [*ITERATION_2, f"targets.checkpoint={checkpoint}", "resume=auto"]
    assert train(out, *second).returncode == 0
    (out / "checkpoints/round_003_checkpoint.pt").unlink()
    values["model"]["wav2vec2.encoder.feature_projection.projection.bias"] += 1
    torch.save(values, checkpoint)
    done = train(out, *second)
    assert done.returncode == 1
    assert "is not the model that the run in" in done.stderr.splitlines()[-1]


@pytest.mark.slow  # in process: tests/federation
def test_a_dry_run_shows_the_clients_and_trains_nothing(train: Train, tmp_path: Path) -> None:
    done = train(tmp_path / "run", "dry_run=true")
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in done.stdout.splitlines()
        if line.startswith("│")
    ]
    assert [row[0] for row in rows] == ["0", "1", "2", "all"]
    assert [row[1] for row in rows[:3]] == ["0", "1", "2"] and all(
        int(row[2]) == 3 and int(row[3]) == 1 for row in rows[:3]
    )
    assert int(rows[3][6]) == sum(int(row[6]) for row in rows[:3]) > 0
    assert not (tmp_path / "run").exists()
    refused = train(tmp_path / "run", "dry_run=true", "federated.num_clients=9")
    assert refused.returncode == 1 and "9 clients but 3 speakers" in refused.stderr.splitlines()[-1]
