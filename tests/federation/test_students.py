"""What becomes of a distilled student: exports, scores, a plan, privacy; and no message has
anything of the audio."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import HubertModel

from fedhubert.compose import compose
from fedhubert.config import ModelConfig
from fedhubert.federation.server.dry_run import check_models, describe_federation
from fedhubert.formats import FORMATS
from fedhubert.formats.export import export
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import build_hubert
from fedhubert.models.student import HEADS
from tests.integration.conftest import SMALL

from .distilling import Run, events, run, teacher
from .in_process import InProcessGrid

__all__ = ["run", "teacher"]  # fixtures


@pytest.mark.parametrize("format_name", FORMATS)
def test_exports_hold_the_student_without_its_heads(
    run: Run, tmp_path: Path, format_name: str
) -> None:
    result, _ = run("run", "federated.num_rounds=1")
    checkpoint = load_checkpoint(result.checkpoint)
    out = export(checkpoint, format_name, tmp_path / format_name)
    for file in out.glob("*.pt"):
        assert not any(HEADS in name for name in _names(torch.load(file, weights_only=True)))
    if format_name == "huggingface":
        student = build_hubert(ModelConfig(**checkpoint["config"]["model"]), seed=1)
        kept = {
            name: tensor
            for name, tensor in checkpoint["model"].items()
            if not name.startswith(HEADS)
        }
        student.load_state_dict(kept)
        waveform = torch.randn(1, 9_000, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = student.eval().extract_features(waveform)[-1]
            theirs = HubertModel.from_pretrained(out).eval()(waveform).last_hidden_state
        assert float((theirs - expected).abs().max()) < 1e-5


def _names(values: Any) -> list[str]:
    return (
        [name for key, item in values.items() for name in [str(key), *_names(item)]]
        if isinstance(values, dict)
        else []
    )


def test_a_dry_run_describes_a_distillation(data: list[str], teacher: Path, tmp_path: Path) -> None:
    places = [f"client.state_dir={tmp_path / 'state'}", f"task.teacher={teacher}"]
    config = compose(["experiment=demo_distill", *data, *SMALL, *places])
    configs: list[dict[str, str | int]] = [
        {"partition-id": number, "num-partitions": 3} for number in range(3)
    ]
    assert describe_federation(InProcessGrid(configs), check_models(config)).row_count == 4
    assert not (tmp_path / "state/teachers").exists()


def test_the_server_scores_the_student_on_a_manifest_of_its_own(
    run: Run, data: list[str], tone_folder: Path
) -> None:
    manifest = data[0].partition("=")[2]
    result, _ = run(
        "run",
        f"evaluation.manifest={manifest}",
        f"evaluation.root={tone_folder}",
        "federated.num_rounds=2",
    )
    first, second = (event["server_validation"] for event in events(result, "round"))
    assert (first["model_round"], second["model_round"]) == (1, 2)
    assert first["cosine_distance"] != second["cosine_distance"]


def test_no_audio_path_or_utterance_leaves_a_site(run: Run, tone_folder: Path) -> None:
    _, grid = run("run", "federated.num_rounds=1")
    frames = sum((soundfile.info(path).frames for path in tone_folder.rglob("*.wav")), 0)
    assert frames and "train.round" in grid.kinds
    for answer in grid.answers:
        text = str(answer.content.config_records) + str(answer.content.metric_records)
        assert "utterance0" not in text and "speaker0" not in text and str(tone_folder) not in text
        for record in answer.content.array_records.values():
            assert all(array.numpy().size != frames for array in record.values())


def test_a_distillation_can_be_private(run: Run) -> None:
    result, _ = run(
        "run",
        "privacy=central",
        "privacy.clip_norm=1e-3",
        "federated.client_fraction=1",
        "federated.num_rounds=2",
    )
    spent = [event["privacy"]["epsilon"] for event in events(result, "round")]
    assert 0 < spent[0] < spent[1]
    for event in events(result, "round"):
        assert len(event["clients"]) == 3
        assert all(
            0.9e-3 < client["update_norm"] <= 1e-3 and client["weight"] == 1
            for client in event["clients"]
        )
    assert (
        "k-means" not in (result.folder.path / "federated_training.log").read_text()
    )  # it has no labels to be made
