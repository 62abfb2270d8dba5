"""Encoders as torchaudio's bundles and fairseq's files have them."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats.fairseq_form import fairseq_state, model_settings
from fedhubert.formats.importing import import_encoder
from fedhubert.models.hubert import HubertModel
from tests.formats.encoders import LABELS, assert_loads, old_weight_norm, same_sizes

from .common import trained


@pytest.mark.parametrize("prefix", ["", "wav2vec2.", "module.", "w2v_encoder.w2v_model."])
def test_torchaudios_own_state_dicts(tmp_path: Path, model: HubertModel, prefix: str) -> None:
    state = {
        name.removeprefix("wav2vec2."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("wav2vec2.")
    }
    torch.save(
        old_weight_norm({f"{prefix}{name}": tensor for name, tensor in state.items()}),
        tmp_path / "encoder.pth",
    )
    imported = import_encoder(tmp_path / "encoder.pth", like=model.config)
    assert imported.source_format == "weights"
    assert_loads(
        model,
        imported,
        missed={name for name in model.state_dict() if not name.startswith("wav2vec2.")},
    )


@pytest.mark.parametrize("with_special_rows", [False, True])
def test_a_bare_pretraining_state_dict(
    tmp_path: Path, base: HubertModel, with_special_rows: bool
) -> None:
    state = dict(base.state_dict())
    if not with_special_rows:
        state[LABELS] = state[LABELS][NUM_SPECIAL_ROWS:].clone()
    torch.save(
        {f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "pretrain.pt"
    )
    imported = import_encoder(tmp_path / "pretrain.pt", like=base.config)
    assert imported.state[LABELS].shape == base.state_dict()[LABELS].shape
    assert torch.equal(
        imported.state[LABELS][NUM_SPECIAL_ROWS:], base.state_dict()[LABELS][NUM_SPECIAL_ROWS:]
    )


class FakeBundle:
    """As in torchaudio.pipelines, with weights that need no download."""

    def __init__(self, model: HubertModel, normalize: bool) -> None:
        from fedhubert.models.reference import torchaudio_arguments

        self._params = {
            k: v
            for k, v in torchaudio_arguments(model.config).items()
            if k.startswith(("extractor_", "encoder_"))
        }
        self._normalize_waveform = normalize
        self.model = model

    def get_model(self) -> torch.nn.Module:
        from torchaudio.pipelines._wav2vec2.utils import _extend_model

        encoder: torch.nn.Module = self.model.wav2vec2
        return (
            _extend_model(encoder, normalize_waveform=True) if self._normalize_waveform else encoder
        )


@pytest.mark.parametrize("normalize", [False, True])
def test_torchaudio_bundles(
    model: HubertModel, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is built here, with torchaudio's own wrapper: torchaudio's weights cannot be downloaded in a test."""
    import torchaudio.pipelines

    monkeypatch.setattr(torchaudio.pipelines, "HUBERT_BASE", FakeBundle(model, normalize))
    imported = import_encoder("torchaudio:HUBERT_BASE")
    assert (imported.source_format, imported.normalize) == ("torchaudio", normalize)
    assert_loads(
        model,
        imported,
        missed={name for name in model.state_dict() if not name.startswith("wav2vec2.")},
    )


def test_bundles_that_are_not_there(monkeypatch: pytest.MonkeyPatch, base: HubertModel) -> None:
    import torchaudio.pipelines

    with pytest.raises(CheckpointError, match=r"torchaudio:HUBERT_BASS is no bundle.*HUBERT_BASE"):
        import_encoder("torchaudio:HUBERT_BASS")
    offline = FakeBundle(base, False)
    monkeypatch.setattr(offline, "get_model", lambda: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr(torchaudio.pipelines, "HUBERT_BASE", offline)
    with pytest.raises(
        CheckpointError, match=r"torchaudio:HUBERT_BASE cannot be fetched \(no network\)"
    ):
        import_encoder("torchaudio:HUBERT_BASE")


def test_bundle_parameters_are_those_that_torchaudio_has() -> None:
    import torchaudio.pipelines

    from fedhubert.formats.foreign_settings import from_torchaudio

    fields = from_torchaudio(torchaudio.pipelines.HUBERT_LARGE._params, "large")
    assert (
        fields["embed_dim"],
        fields["num_heads"],
        fields["layer_norm_first"],
        fields["conv_norm"],
    ) == (
        1024,
        16,
        True,
        "layer_norm",
    )
    assert len(fields["conv_layers"]) == 7


class Dictionary:
    """Pickles under the name of fairseq's class."""

    def __init__(self) -> None:
        self.symbols = ["<s>", "<pad>", "</s>", "<unk>", "0"]


Dictionary.__module__, Dictionary.__qualname__ = "fairseq.data.dictionary", "Dictionary"


@pytest.fixture
def pretend_fairseq(monkeypatch: pytest.MonkeyPatch) -> None:
    """While saving: pickle looks the class up. Reading must not, so it is gone again when the import runs."""
    import types

    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["fairseq.data.dictionary"], "Dictionary", Dictionary, raising=False
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("era", ["cfg", "args"])
def test_a_true_fairseq_file_is_read_without_fairseq(
    tmp_path: Path,
    model: HubertModel,
    era: str,
    zipped: bool,
    pretend_fairseq: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np

    settings, task = model_settings(model.config, 50.0), {"normalize": True}
    content = {
        "args": argparse.Namespace(**settings, **task) if era == "args" else None,
        "cfg": {"model": argparse.Namespace(**settings), "task": task} if era == "cfg" else None,
        "model": fairseq_state(model.config, model.state_dict()),
        "task_state": {"dictionaries": [Dictionary()]},
        "extra_state": {"best": np.float64(2.5)},
    }
    torch.save(content, tmp_path / "hubert.pt", _use_new_zipfile_serialization=zipped)
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.delitem(sys.modules, name)
    imported = import_encoder(tmp_path / "hubert.pt")
    assert (imported.source_format, imported.normalize, imported.assumed) == ("fairseq", True, ())
    assert same_sizes(imported.config, model.config)
    assert_loads(model, imported)


def test_where_fairseq_has_no_projection_it_is_the_identity(
    tmp_path: Path, tiny_model_config: ModelConfig
) -> None:
    model = trained(tiny_model_config.model_copy(update={"embed_dim": 32}))
    with torch.no_grad():
        torch.nn.init.eye_(model.wav2vec2.encoder.feature_projection.projection.weight)
        torch.nn.init.zeros_(model.wav2vec2.encoder.feature_projection.projection.bias)
    like = model.config.model_copy(update={"embed_dim": 48})
    weights = fairseq_state(like, model.state_dict())
    weights = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("post_extract_proj.")
    }
    torch.save(
        {"model": weights, "cfg": {"model": model_settings(model.config, 50.0)}},
        tmp_path / "hubert.pt",
    )
    assert_loads(model, import_encoder(tmp_path / "hubert.pt"))
