"""Checkpoints as training tools and downloads leave them: read to the same bits, or called what they are."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedhubert.errors import CheckpointError
from fedhubert.formats.export import export
from fedhubert.formats.importing import encoder_sha256, import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel

from .common import saved


@pytest.fixture
def folder(tmp_path: Path, base: HubertModel) -> Path:
    """A HuggingFace folder."""
    return export(load_checkpoint(saved(tmp_path / "run", base)), "huggingface", tmp_path / "hf")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/weights.bin", b"0" * 100)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("model.bin")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"0000"))


WRAPPED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "plain": lambda state: state,
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "lightning": lambda state: {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "epoch": 3,
        "optimizer_states": [],
    },
    "with an optimizer": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "half precision": lambda state: {name: value.half() for name, value in state.items()},
    "bfloat16": lambda state: {name: value.bfloat16() for name, value in state.items()},
    "gradients": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_weights_in_a_tools_wrapping_are_the_same_weights(
    tmp_path: Path, base: HubertModel, kind: str, zipped: bool
) -> None:
    state = base.state_dict()
    path = tmp_path / "w.pt"
    torch.save(WRAPPED[kind](state), path, _use_new_zipfile_serialization=zipped)
    rounded = {
        "half precision": torch.Tensor.half,
        "bfloat16": torch.Tensor.bfloat16,
    }.get(kind, torch.Tensor.clone)
    expected = {name: rounded(value).float() for name, value in state.items()}
    imported = import_encoder(path, like=base.config)
    assert imported.sha256 == encoder_sha256(expected)


def test_weights_of_huggingface_by_an_older_name(folder: Path, base: HubertModel) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for given in (folder, folder / "pytorch_model.bin"):
        assert import_encoder(given).sha256 == encoder_sha256(base.state_dict())
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(CheckpointError, match="model_type is 'wav2vec2', and only `hubert`"):
        import_encoder(folder)
    (folder / "config.json").unlink()
    assert import_encoder(folder, like=base.config).assumed


@pytest.mark.parametrize("kind", ["HubertModel", "HubertForCTC", "HubertForSequenceClassification"])
def test_the_encoder_of_transformers_own_models_is_read_whatever_stands_on_it(
    tmp_path: Path, kind: str
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16}
    sizes |= {"num_conv_pos_embedding_groups": 4, "use_weighted_layer_sum": True}
    model = getattr(transformers, kind)(transformers.HubertConfig(**sizes)).eval()
    model.save_pretrained(tmp_path / "m")
    imported = import_encoder(tmp_path / "m")
    ours = HubertModel(imported.config).eval()
    ours.load_state_dict(imported.state, strict=False)
    waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    encoder = model if kind == "HubertModel" else model.hubert
    with torch.no_grad():
        theirs = encoder(waveform, output_hidden_states=True).hidden_states[1:]
        for one, other in zip(ours.extract_features(waveform), theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["WavLM", "Wav2Vec2", "Data2VecAudio"])
def test_other_encoders_are_refused_by_what_they_are(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / "m")
    for given in (tmp_path / "m", tmp_path / "m" / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"model_type is '.*', and only `hubert`"):
            import_encoder(given)


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a length beyond the file": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**40) + b"{}" + bytes(100)),
        "is damaged or no safetensors file",
    ),
    "a header that is no JSON": (
        lambda path: path.write_bytes(struct.pack("<Q", 8) + b"notjson}" + bytes(100)),
        "is damaged or no safetensors file",
    ),
    "zip": (_zip, "is a zip archive: unpack it"),
    "tar": (_tar, "is a tar archive: unpack it"),
    "an optimizer": (
        lambda path: torch.save(
            {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, path
        ),
        "no state dict of tensors",
    ),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "holds a Tensor"),
    "nothing": (lambda path: torch.save({}, path), "holds nothing: no state dict"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_holds_no_model_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    write, said = ODD[kind]
    path = tmp_path / ("m.safetensors" if "header" in kind or "length" in kind else "m.pt")
    write(path)
    with pytest.raises(CheckpointError) as error:
        import_encoder(path)
    assert said in str(error.value) and path.name in str(error.value)
    assert "weights_only" not in str(error.value)
