import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fedhubert.checkpoints import export
from fedhubert.checkpoints.export import export as export_to
from fedhubert.checkpoints.store import RoundStore, load_checkpoint
from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.models.hubert import HubertModel, build_hubert

FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {"layer_norm_first": True, "conv_norm": "layer_norm", "final_dim": 48},
    "other": {
        "conv_layers": ((24, 10, 5), (32, 3, 2), (32, 3, 2), (32, 3, 2), (32, 3, 2), (32, 2, 2), (40, 2, 2)),
        "conv_bias": True,
        "num_layers": 3,
        "pos_conv_kernel": 31,
        "pos_conv_groups": 4,
    },
}


def _trained(config: ModelConfig) -> HubertModel:
    """A model none of whose weights is at its initial value, a norm's 1 or a bias's 0."""
    model = build_hubert(config, 0)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def _saved(folder: Path, model: HubertModel, number: int = 1) -> Path:
    config = {"model": model.config.model_dump(mode="json")}
    return RoundStore(folder).save(number, model.state_dict(), config=config, federated_metrics={}, resume=None)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model_config: ModelConfig) -> Path:
    return _saved(tmp_path / "run" / "checkpoints", _trained(tiny_model_config))


def _run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_and_torchaudio_compute_the_same(tmp_path: Path, tiny_model_config: ModelConfig, shape: str) -> None:
    transformers = pytest.importorskip("transformers")
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    model = _trained(tiny_model_config.model_copy(update=SHAPES[shape]))
    out = export_to(load_checkpoint(_saved(tmp_path, model)), "huggingface", tmp_path / "hf")
    loaded, info = transformers.HubertModel.from_pretrained(out, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert torch.equal(loaded.masked_spec_embed, model.mask_generator.mask_embedding)

    waveforms = torch.randn(2, 9123, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.extract_features(waveforms)
        theirs = loaded.eval()(waveforms, output_hidden_states=True)
        imported = import_huggingface_model(loaded).eval().extract_features(waveforms)[0]
        last = model.wav2vec2.encoder.transformer.layer_norm(ours[-1]) if model.config.layer_norm_first else ours[-1]
    assert (last - theirs.last_hidden_state).abs().max() < 1e-5
    layers = theirs.hidden_states[1:]
    assert len(layers) == len(ours) == model.config.num_layers
    for mine, huggingface, torchaudio in zip(ours, layers, imported, strict=True):
        assert mine.std() > 0.1
        assert (mine - huggingface).abs().max() < 1e-5
        assert (mine - torchaudio).abs().max() < 1e-5


def test_config_keeps_the_recipe_in_huggingfaces_names(tmp_path: Path, tiny_model_config: ModelConfig) -> None:
    transformers = pytest.importorskip("transformers")
    rates = {"dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13, "feature_dropout": 0.14, "layer_drop": 0.15}
    model = build_hubert(tiny_model_config.model_copy(update=rates), 0)
    out = export_to(load_checkpoint(_saved(tmp_path, model)), "huggingface", tmp_path / "hf")
    config = transformers.HubertConfig.from_pretrained(out)
    named = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    assert [getattr(config, name) for name in named] == list(rates.values())
    extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
    assert (extractor.do_normalize, extractor.sampling_rate, extractor.return_attention_mask) == (False, 16000, True)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert not any("logit" in name for name in file.keys())  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("given", ["run", "run/checkpoints", "run/checkpoints/round_001_checkpoint.pt"])
def test_command_takes_a_file_or_a_folder(
    checkpoint: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert _run("--checkpoint", tmp_path / given, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    printed = capsys.readouterr().out
    assert f"{checkpoint} -> {out}: {', '.join(FILES)}" in printed
    assert printed.rstrip().endswith(f'transformers.HubertModel.from_pretrained("{out}")')


def test_folder_in_use_is_left_alone_unless_forced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert _run("--checkpoint", checkpoint, "--out", out) == 0  # an empty folder is free
    (out / "notes.txt").write_text("mine")
    (out / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"out is not empty.*--force"):
        _run("--checkpoint", checkpoint, "--out", out)
    assert (out / "config.json").read_text() == "{}"
    assert _run("--checkpoint", checkpoint, "--out", out, "--force") == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "hubert"
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "notes.txt"])


def test_out_that_cannot_be_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file"):
        _run("--checkpoint", checkpoint, "--out", tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file/out"):
        _run("--checkpoint", checkpoint, "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize("before", [None, "old"])
def test_failure_while_writing_leaves_nothing_half_done(
    checkpoint: Path, tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if before is not None:
        out.mkdir()
        (out / "model.safetensors").write_text(before)
    listing = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="No space left") as caught:
        _run("--checkpoint", checkpoint, "--out", out, "--force")
    assert caught.value.setting == "out"
    assert sorted(tmp_path.iterdir()) == listing
    assert before is None or [path.read_text() for path in out.iterdir()] == [before]


def test_checkpoints_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="no `model`"):
        export_to(content | {"config": {}}, "huggingface", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"weights hold `student\.weight`"):
        export_to(content | {"model": content["model"] | {"student.weight": torch.ones(1)}}, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, fedhubert.checkpoints.export; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
