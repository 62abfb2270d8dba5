"""A federation in Flower's simulation engine, from audio to export."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertModel

from fedhubert.cli import main
from fedhubert.config import ModelConfig
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert
from tests.conftest import is_png

from .conftest import Train, events


def model_of(out: Path, round_number: int = 3) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "checkpoints" / f"round_{round_number:03d}_checkpoint.pt")["model"]


def assert_same_model(left: Path, right: Path) -> None:
    ours, theirs = model_of(left), model_of(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_run_leaves_what_others_script_against(finished: Path) -> None:
    checkpoint = torch.load(
        finished / "checkpoints/round_003_checkpoint.pt", map_location="cpu", weights_only=True
    )
    assert checkpoint["round"] == 3
    assert (
        1.0 < checkpoint["federated_metrics"]["train"]["loss"] < 2 * np.log(8)
    )  # nats, over 8 clusters
    assert [entry["round"] for entry in checkpoint["federated_metrics"]["history"]] == [1, 2, 3]
    assert is_png(finished / "curves.png")
    assert "num_rounds: 3" in (finished / "config.yaml").read_text()
    assert "round 3/3" in (finished / "federated_training.log").read_text()


def test_metrics_are_booked_to_the_model_that_they_are_of(finished: Path) -> None:
    rounds = [event for event in events(finished) if event["event"] == "round"]
    assert [event["round"] for event in rounds] == [1, 2, 3]
    assert [event["validation"]["model_round"] for event in rounds] == [0, 1, 2]
    (final,) = [event for event in events(finished) if event["event"] == "final"]
    assert final["validation"]["model_round"] == 3
    model = load_checkpoint(finished / "checkpoints/round_003_checkpoint.pt")["model"]
    parameters = sum(tensor.numel() for tensor in model.values())
    for event in rounds:
        assert event["asked"] == [0, 1, 2]
        assert [client["partition"] for client in event["clients"]] == [0, 1, 2]
        assert event["train"]["masked_frames"] == sum(
            client["train_masked_frames"] for client in event["clients"]
        )
        assert (
            event["bytes_down_fp32"]
            == event["bytes_down"]
            == 3 * 4 * parameters
            < event["bytes_up"]
        )  # sketches beside
        assert event["seconds"]["train"] < event["seconds"]["round"] < 300
        assert all(client["train_steps"] == 2 for client in event["clients"])
    (targets,) = [event for event in events(finished) if event["event"] == "targets"]
    assert 0 < targets["validation_labels"]["entropy_nats"] <= np.log(8)


def test_fewer_nodes_and_workers_give_the_same_bits(
    finished: Path, train: Train, tmp_path: Path
) -> None:
    """Two nodes host three clients: one of them replies with a partial sum; one worker instead of two."""
    done = train(tmp_path / "sharded", "simulation.num_supernodes=2", "simulation.num_workers=1")
    assert done.returncode == 0, done.stderr
    assert "3 clients on 2 nodes" in done.stderr
    assert_same_model(finished, tmp_path / "sharded")


def test_the_export_is_the_model_in_transformers(finished: Path, tmp_path: Path) -> None:
    assert main(["export", "--checkpoint", str(finished), "--out", str(tmp_path / "hf")]) == 0
    checkpoint = load_checkpoint(finished / "checkpoints/round_003_checkpoint.pt")
    ours = build_hubert(ModelConfig(**checkpoint["config"]["model"]), seed=1)
    ours.load_state_dict(checkpoint["model"])
    theirs = HubertModel.from_pretrained(tmp_path / "hf").eval()
    waveform = torch.randn(1, 12_345, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ours.eval().extract_features(waveform)
        hidden = theirs(waveform, output_hidden_states=True).hidden_states[1:]
    assert len(hidden) == len(expected)
    for left, right in zip(hidden, expected, strict=True):
        assert float((left - right).abs().max()) < 1e-5


@pytest.mark.slow  # in process: tests/federation, test_kills.py
def test_evaluation_on_the_server_and_kept_optimisers(
    train: Train, manifest: Path, tone_folder: Path, tmp_path: Path
) -> None:
    done = train(
        tmp_path / "run",
        f"evaluation.manifest={manifest}",
        f"evaluation.root={tone_folder}",
        "client.optimizer_policy=keep",
        f"client.state_dir={tmp_path / 'state'}",
        "federated.strategy=FedAdam",
        "federated.num_rounds=2",
        "federated.client_fraction=0.6",
    )
    assert done.returncode == 0, done.stderr
    rounds = [event for event in events(tmp_path / "run") if event["event"] == "round"]
    assert all(len(event["asked"]) == 2 for event in rounds)
    assert all(1.0 < event["server_validation"]["loss"] < 2 * np.log(8) for event in rounds)
    kept = {file.parent for file in (tmp_path / "state/runs").rglob("round_*.pt")}
    assert len(kept) == len({partition for event in rounds for partition in event["asked"]})


def test_a_client_that_fails_is_left_out_and_named_without_paths(
    tone_folder: Path, train: Train, tmp_path: Path
) -> None:
    """Speaker 1's audio is damaged; labels are precomputed, so the first to read it is training."""
    root = tmp_path / "audio"
    shutil.copytree(tone_folder, root)
    rows = ["path,speaker,num_samples,sample_rate,ids"]
    for path in sorted(root.rglob("*.wav")):
        info = soundfile.info(path)
        frames = (-(-info.frames * 16000 // info.samplerate) - 400) // 320 + 1
        ids = " ".join(str(number % 8) for number in range(frames))
        rows.append(
            f"{path.relative_to(root)},{path.parent.name},{info.frames},{info.samplerate},{ids}"
        )
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    for path in (root / "speaker1").glob("*.wav"):
        path.write_bytes(b"RIFF, but not really")
    labels = ["targets=precomputed", "targets.labels=column:ids", "targets.label_rate_hz=50"]
    state = f"client.state_dir={tmp_path / 'state'}"
    done = train(
        tmp_path / "run",
        f"data.manifest={root / 'manifest.csv'}",
        f"data.root={root}",
        *labels,
        state,
        "federated.num_rounds=1",
    )
    assert done.returncode == 0, done.stderr
    (event,) = [event for event in events(tmp_path / "run") if event["event"] == "round"]
    (failure,) = event["failed"]
    assert failure == {
        "partition": failure["partition"],
        "code": "data",
        "setting": "data.manifest",
    }
    assert len(event["clients"]) == 2
    told = [line for line in done.stderr.splitlines() if " client: " in line]
    assert len(told) == len(set(told)) > 0 and "speaker1" in told[0], done.stderr
    assert "speaker1" in (tmp_path / "state/site.log").read_text()
    for file in ("metrics.jsonl", "federated_training.log"):
        assert "utterance" not in (tmp_path / "run" / file).read_text().replace("utterances,", "")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        (
            "simulation.num_supernodes=4",
            "simulation.num_supernodes=4 is more than federated.num_clients=3",
        ),
        ("federated.num_clients=9", "9 clients but 3 speakers"),
        ("simulation.gpus_per_client=64", "simulation.gpus_per_client=64.0, but Ray finds"),
    ],
)
def test_a_federation_that_cannot_be_is_refused(
    train: Train, tmp_path: Path, override: str, named: str
) -> None:
    done = train(tmp_path / "run", override)
    assert done.returncode == 1
    assert named in done.stderr.splitlines()[-1]


def test_a_folder_with_checkpoints_is_not_overwritten(finished: Path, train: Train) -> None:
    done = train(finished)
    assert done.returncode == 1
    assert "resume=auto" in done.stderr.splitlines()[-1]
    done = train(finished, "resume=auto", "client.lr=0.1", "federated.num_rounds=4")
    assert done.returncode == 1
    assert "client.lr" in done.stderr.splitlines()[-1]
