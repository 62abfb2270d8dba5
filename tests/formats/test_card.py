"""The model card that is written beside every export."""

import hashlib
from pathlib import Path

import pytest
import torch

from fedhubert.config import ModelConfig
from fedhubert.errors import ConfigError
from fedhubert.formats import FORMATS
from fedhubert.formats.export import export as export_to
from fedhubert.formats.round_file import load_checkpoint

from .common import hubert_local, run_export, saved, trained


@pytest.mark.parametrize("format_name", FORMATS)
def test_card_beside_every_format(
    tmp_path: Path, tiny_model_config: ModelConfig, format_name: str
) -> None:
    metrics = {
        "train": {"loss": 3.25, "masked_accuracy": 0.125},
        "validation": {},
        "clients": 5,
        "data": {
            "clients": 7,
            "utterances": 4321,
            "train_audio_s": 98765.4,
            "path": "/secret/audio",
        },
        "lineage": [
            {"init_from": {"format": "huggingface", "encoder_sha256": "abc123", "missed": []}},
            {
                "round": 4,
                "checkpoint_sha256": "def456",
                "changed": {"data.root": ["/secret/a", "/secret/b"]},
            },
        ],
        "history": [{"round": 1}],
    }
    run = {
        "seed": 11,
        "data": {"manifest": "/secret/manifest.csv"},
        "federated": {"strategy": "FedYogi"},
        "init_from": "/secret/model",
    }
    content = load_checkpoint(
        saved(tmp_path / "run", trained(tiny_model_config), 12, metrics, **run)
    )
    out = export_to(content, format_name, tmp_path / "out")
    card = (out / "README.md").read_text()
    for told in (
        "round 12",
        "| seed | 11 |",
        "FedYogi",
        "| utterances | 4321 |",
        "| clients | 7 |",
        "| train.loss | 3.25 |",
        "abc123",
        "def456",
        "| 2.changed | data.root |",
    ):
        assert told in card, told
    assert "secret" not in card and "history" not in card
    weights = next(file for file in out.iterdir() if file.suffix in (".pt", ".safetensors"))
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    code = card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(out))
    if format_name == "fairseq":
        compile(code, "card", "exec")  # fairseq itself does not install beside this Python
        return
    if format_name == "s3prl":
        hubert_local()
    names: dict[str, object] = {"waveforms": torch.randn(2, 9000), "waveform": torch.randn(9000)}
    exec(code, names)
    layers = names["layers"] if format_name == "torchaudio" else names["hidden_states"]
    assert isinstance(layers, list | tuple) and len(layers) >= tiny_model_config.num_layers


@pytest.mark.parametrize(
    "flags", [("--language", "en", "--language", "fr"), ("--language", "en,fr")]
)
def test_the_card_is_one_of_the_hubs(
    checkpoint: Path, tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    said = ("--license", "cc-by-4.0", "--dataset", "a/speech", "--base-model", "b/model", *flags)
    assert run_export("--checkpoint", checkpoint, "--out", tmp_path / "out", *said) == 0
    assert "the model card does not say" not in capsys.readouterr().out
    data = hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.language, data.base_model) == ("cc-by-4.0", ["en", "fr"], "b/model")
    assert (data.datasets, data.pipeline_tag) == (["a/speech"], "feature-extraction")
    assert (data.library_name, data.tags[:2]) == ("transformers", ["speech", "hubert"])


def test_what_the_card_does_not_say_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_export("--checkpoint", checkpoint, "--out", tmp_path / "out") == 0
    assert "the model card does not say: --license, --language" in capsys.readouterr().out
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.language, data.base_model) == (None, None, None)
    for flag, value in (("--license", "CC BY 4.0"), ("--language", "English")):
        with pytest.raises(ConfigError, match=rf"{flag} '{value}' is no"):
            run_export("--checkpoint", checkpoint, "--out", tmp_path / "other", flag, value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ({"init_from": "hf:facebook/hubert-base-ls960@main"}, "facebook/hubert-base-ls960"),
        ({"init_from": "torchaudio:HUBERT_LARGE"}, "facebook/hubert-large-ll60k"),
        ({"task": {"teacher": "hf:me/teacher"}}, "me/teacher"),
        ({"init_from": "/secret/model"}, None),
    ],
)
def test_the_base_model_is_the_one_that_the_run_names_on_the_hub(
    tmp_path: Path, tiny_model_config: ModelConfig, run: dict[str, object], name: str | None
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    content = load_checkpoint(saved(tmp_path / "run", trained(tiny_model_config), **run))
    out = export_to(content, "huggingface", tmp_path / "out")
    assert hub.ModelCard.load(out / "README.md").data.base_model == name
