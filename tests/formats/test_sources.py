"""What people name as a checkpoint: pointers, web pages, shards, fine-tuned models, names of the hub."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedhubert.commands import export as export_command
from fedhubert.compose import compose, to_yaml
from fedhubert.config import ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats.export import export
from fedhubert.formats.fairseq_form import fairseq_state, model_settings, task_settings
from fedhubert.formats.importing import encoder_sha256, import_encoder, import_on_server
from fedhubert.formats.reading import conversion_command
from fedhubert.formats.round_file import find_checkpoint, load_checkpoint
from fedhubert.models.hubert import HubertModel

from .common import SHAPES, saved, trained

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\nsize 1136468025\n"
)


@pytest.fixture
def model(tiny_model_config: ModelConfig) -> HubertModel:
    """Pre-norm, with six heads: what no default and no shape tells."""
    return trained(tiny_model_config.model_copy(update=SHAPES["large"] | {"num_heads": 6}))


@pytest.fixture
def folder(tmp_path: Path, model: HubertModel) -> Path:
    """A HuggingFace folder."""
    return export(load_checkpoint(saved(tmp_path / "run", model)), "huggingface", tmp_path / "hf")


MISTAKEN = {
    "pointer": (POINTER, r"is a git-lfs pointer.*git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s12--0123.pt\n", r"is a git-annex pointer.*git annex get"),
    "page": (b"\n<!DOCTYPE html>\n<html lang=en>", r"is a web page, not weights.*link to the file"),
    "error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is a web page"),
    "json": (
        b'{"error": "Repository not found"}',
        r"is text, not weights; it begins with '\{\"error",
    ),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "is a gzip archive: unpack it"),
    "tensorflow": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is a file of TensorFlow's or Keras's"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(100), "is a file of NumPy's: save the model by PyTorch"),
    "empty": (b"", "is empty: copy or download it again"),
}


@pytest.mark.parametrize("name", ["hubert.pt", "model.safetensors", "round_010_checkpoint.pt"])
@pytest.mark.parametrize("kind", MISTAKEN)
def test_what_is_no_weights_is_called_what_it_is(tmp_path: Path, name: str, kind: str) -> None:
    content, message = MISTAKEN[kind]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (import_encoder, load_checkpoint):
        with pytest.raises(CheckpointError, match=rf"{name} {message}") as caught:
            read(path)
        assert "weights_only" not in str(caught.value)


def test_the_command_line_calls_a_pointer_a_pointer(tmp_path: Path) -> None:
    path = tmp_path / "pointer.pt"
    path.write_bytes(POINTER)
    parser = argparse.ArgumentParser()
    export_command.add_arguments(parser)
    flags = parser.parse_args(["--checkpoint", str(path), "--out", str(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="is a git-lfs pointer"):
        export_command.run(flags)


def test_pointers_in_a_huggingface_folder_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a git-lfs pointer"):
        import_encoder(folder)
    (folder / "config.json").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"config\.json is a git-lfs pointer"):
        import_encoder(folder)


@pytest.mark.parametrize("compiled", [True, False])
def test_programs_and_objects_are_refused_without_unsafe_advice(
    tmp_path: Path, model: HubertModel, compiled: bool
) -> None:
    if compiled:
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    else:
        torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="TorchScript|holds objects") as caught:
        import_encoder(tmp_path / "model.pt")
    advice = str(caught.value).split("If you trust it")[0]
    assert "weights_only" not in advice
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "model.pt")
    assert "weights_only" not in str(caught.value)


def _sharded(folder: Path, bins: bool = False) -> dict[str, str]:
    """Cut the folder's weights into two files with an index, as ``save_pretrained`` does."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = ("pytorch_model", "bin") if bins else ("model", "safetensors")
    places = {
        name: f"{stem}-0000{1 + number % 2}-of-00002.{suffix}" for number, name in enumerate(state)
    }
    for place in sorted(set(places.values())):
        part = {name: state[name] for name in state if places[name] == place}
        torch.save(part, folder / place) if bins else save_file(part, folder / place)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return places


@pytest.mark.parametrize("bins", [False, True])
def test_shards_are_read_as_one(folder: Path, model: HubertModel, bins: bool) -> None:
    places = _sharded(folder, bins)
    index = next(folder.glob("*.index.json"))
    for given in (folder, index, folder / next(iter(places.values()))):
        imported = import_encoder(given)
        assert imported.sha256 == encoder_sha256(model.state_dict())
        assert imported.config.num_heads == 6 and imported.config.layer_norm_first


def test_shards_that_transformers_writes_are_read(tmp_path: Path, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.HubertModel.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert import_encoder(tmp_path / "sharded").sha256 == import_encoder(folder).sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder, index: next(folder.glob("*-00002-of*")).unlink(),
            "00002-of.*is not beside",
        ),
        (
            lambda folder, index: index["weight_map"].update(a="../x.safetensors"),
            "no file beside it",
        ),
        (lambda folder, index: index["weight_map"].update(a="/etc/passwd"), "no file beside it"),
        (lambda folder, index: index.pop("weight_map"), "has no weight_map"),
        (
            lambda folder, index: index["weight_map"].update(a="model-00001-of-00002.safetensors"),
            "lacks a, which",
        ),
    ],
)
def test_what_is_wrong_with_shards_is_named(folder: Path, change: Any, message: str) -> None:
    _sharded(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(folder, index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        import_encoder(folder)


def _fine_tuned(model: HubertModel, kept: Any) -> dict[str, Any]:
    """As fairseq saves a HuBERT that was fine-tuned by CTC: its own settings say nothing of the encoder's sizes."""
    state = fairseq_state(model.config, model.state_dict())
    weights = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in state.items()}
    weights |= {
        "w2v_encoder.proj.weight": torch.ones(32, 48),
        "w2v_encoder.proj.bias": torch.ones(32),
    }
    settings = {"_name": "hubert_ctc", "w2v_path": "/checkpoints/hubert_large.pt", "w2v_args": kept}
    task = {"_name": "hubert_pretraining", "fine_tuning": True, "normalize": True}
    return {"args": None, "cfg": {"model": settings, "task": task}, "model": weights}


@pytest.mark.parametrize("form", ["nested", "in cfg", "flat"])
def test_fine_tuned_models_tell_heads_and_norms_in_w2v_args(
    tmp_path: Path, model: HubertModel, form: str
) -> None:
    nested = {"model": model_settings(model.config, 50.0), "task": task_settings(50.0)}
    kept = {"nested": nested, "in cfg": {"cfg": nested}, "flat": nested["model"]}[form]
    torch.save(_fine_tuned(model, kept), tmp_path / "fine_tuned.pt")
    imported = import_encoder(tmp_path / "fine_tuned.pt")
    assert (imported.config.num_heads, imported.config.layer_norm_first) == (6, True)
    assert (imported.source_format, imported.normalize, imported.assumed) == ("fairseq", True, ())
    assert imported.sha256 == encoder_sha256(model.state_dict())
    assert set(imported.ignored) == {"w2v_encoder.proj.weight", "w2v_encoder.proj.bias"}


@pytest.mark.parametrize("kept", [None, {}, {"model": None}, {"model": {"_name": "hubert"}}])
def test_fine_tuned_models_without_them_are_refused(
    tmp_path: Path, model: HubertModel, kept: Any
) -> None:
    torch.save(_fine_tuned(model, kept), tmp_path / "fine_tuned.pt")
    with pytest.raises(CheckpointError, match=r"w2v_args.*heads.*'/checkpoints/hubert_large\.pt'"):
        import_encoder(tmp_path / "fine_tuned.pt", like=model.config)
    # the remedy of the message
    torch.save(_fine_tuned(model, kept)["model"], tmp_path / "alone.pt")
    imported = import_encoder(tmp_path / "alone.pt", like=model.config)
    assert imported.sha256 == encoder_sha256(model.state_dict())
    assert "num_heads" in imported.assumed


def test_a_name_of_the_hub_in_the_place_of_a_path_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = (
        r"no file or folder .*facebook/hubert-base-ls960\. If facebook/hubert-base-ls960 is a model .*"
        r"hf:facebook/hubert-base-ls960 .*huggingface-cli download facebook/hubert-base-ls960"
    )
    for read in (import_encoder, import_on_server):
        with pytest.raises(CheckpointError, match=wanted):
            read("facebook/hubert-base-ls960")
        with pytest.raises(CheckpointError, match=r"no file or folder .*hubert\.pt$"):
            read("hubert.pt")


def _in_the_hubs_cache(cache: Path, name: str, files: Path) -> None:
    """Lay a model out as huggingface_hub does once it has fetched it."""
    place = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots").mkdir()
    files.rename(place / "snapshots" / commit)


def test_a_model_of_the_hub_is_read_by_its_name(
    tmp_path: Path, folder: Path, model: HubertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _in_the_hubs_cache(tmp_path / "cache", "me/hubert", folder)
    for name in ("hf:me/hubert", "hf:me/hubert@main"):
        assert import_on_server(name).sha256 == encoder_sha256(model.state_dict())
    with pytest.raises(
        CheckpointError,
        match=r"hf:me/other cannot be fetched \(.*huggingface-cli download me/other",
    ):
        import_on_server("hf:me/other")
    with pytest.raises(CheckpointError, match=r"hf:hubert is no name of the hub"):
        import_on_server("hf:hubert")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'fedhubert\[hub\]'"):
        import_encoder("hf:me/hubert")


def test_the_printed_conversion_works_whatever_the_path(tmp_path: Path, model: HubertModel) -> None:
    path = tmp_path / "it's; a $(touch ran) `b` folder" / "old hubert.pt"
    path.parent.mkdir()
    content = {"model": fairseq_state(model.config, model.state_dict()), "extra": argparse.Action}
    torch.save(content | {"cfg": {"model": model_settings(model.config, 50.0)}}, path)
    command = conversion_command(path)
    assert shlex.split(command)[-2:] == [str(path), str(path.with_suffix(".plain.pt"))]
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    plain = import_encoder(path.with_suffix(".plain.pt"))
    assert plain.sha256 == encoder_sha256(model.state_dict())


def test_a_runs_folder_is_its_newest_round_whatever_lies_beside(
    tmp_path: Path, model: HubertModel
) -> None:
    saved(tmp_path / "run" / "checkpoints", model, 2)
    (tmp_path / "run" / "notes.pt").write_bytes(b"")
    saved(tmp_path / "big disk", model, 3)
    (tmp_path / "moved").mkdir()
    config = compose([f"checkpoint_dir={tmp_path}/big disk"])
    (tmp_path / "moved" / "config.yaml").write_text(to_yaml(config))
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "moved"):
        assert import_encoder(given).sha256 == encoder_sha256(model.state_dict())
        assert load_checkpoint(find_checkpoint(given))["round"] in (2, 3)
    (tmp_path / "moved" / "config.yaml").write_text("checkpoint_dir: null")
    with pytest.raises(CheckpointError, match="neither a checkpoint file nor a folder"):
        find_checkpoint(tmp_path / "moved")
