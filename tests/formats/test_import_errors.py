"""Files that cannot be imported: what is wrong is said by name, and nothing in them is run."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedhubert.errors import CheckpointError
from fedhubert.formats.export import export
from fedhubert.formats.fairseq_form import fairseq_state, model_settings
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.reading import conversion_command
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.formats.starting import load_into
from fedhubert.models.hubert import HubertModel, build_hubert
from tests.formats.encoders import assert_loads

from .common import saved, trained


class Code:
    """Runs code when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_the_way_out_works(
    tmp_path: Path, base: HubertModel, zipped: bool
) -> None:
    """omegaconf's objects are refused too: the command in the message turns them into plain values, where the file is trusted."""
    from omegaconf import OmegaConf

    marker, path = tmp_path / "ran", tmp_path / "hubert.pt"
    weights = fairseq_state(base.config, base.state_dict())
    torch.save(
        {"model": weights, "extra": Code(marker)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        CheckpointError, match=r"hubert\.pt is not loaded: it holds objects \((posix|nt)\.mkdir\)"
    ):
        import_encoder(path)
    assert not marker.exists()

    cfg = OmegaConf.create(
        {"model": model_settings(base.config, 50.0), "task": {"normalize": False, "labels": ["km"]}}
    )
    torch.save({"model": weights, "cfg": cfg}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds objects \(.*omegaconf") as caught:
        import_encoder(path)
    command = str(caught.value).split("name the result: ")[1]
    assert command == conversion_command(path)
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    imported = import_encoder(tmp_path / "hubert.plain.pt")
    assert (imported.assumed, imported.normalize) == ((), False)
    assert_loads(base, imported)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["hubert_s3prl.pt", "model.safetensors"])
def test_truncated_files(tmp_path: Path, base: HubertModel, name: str, keep: float) -> None:
    format_name = "s3prl" if name.endswith(".pt") else "huggingface"
    file = export(load_checkpoint(saved(tmp_path, base)), format_name, tmp_path / "out") / name
    os.truncate(file, int(file.stat().st_size * keep))
    with pytest.raises(
        CheckpointError, match=rf"{name} (cannot be read, it is damaged|is damaged|is empty)"
    ) as caught:
        import_encoder(file)
    assert "weights_only" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02 not a pickle \x00\xff")
    with pytest.raises(
        CheckpointError, match=r"model\.pt cannot be read, it is damaged or no PyTorch file"
    ):
        import_encoder(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no file or folder"):
        import_encoder(tmp_path / "nowhere.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no config\.json"):
        import_encoder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"optimizer": {"lr": 1}}, "holds optimizer: no state dict"),
        ({"Distiller": {"w": torch.ones(1)}, "Config": {}}, "no LayerNorm before the projection"),
        ({"model": {"layer.weight": torch.ones(1)}}, r"holds no HuBERT.*layer\.weight"),
    ],
)
def test_files_without_a_hubert(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=rf"other\.pt.*{message}"):
        import_encoder(tmp_path / "other.pt")


PROJECTION = "post_extract_proj.weight"
LAST = "encoder.layers.1.fc2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(LAST),
            r"lacks wav2vec2\.encoder\.transformer\.layers\.1\.feed_forward\.output_dense\.bias",
        ),
        (
            lambda w: w.pop("encoder.layers.0.fc1.weight"),
            r"lacks .*layers\.0\.feed_forward\.intermediate_dense\.weight",
        ),
        (lambda w: w.pop(PROJECTION), r"lacks .*feature_projection\.projection\.weight"),
        (lambda w: w.update({LAST: torch.zeros(7)}), r"output_dense\.bias is \(7,\), not \(48,\)"),
        (
            lambda w: w.update({LAST: torch.full((48,), torch.nan)}),
            r"output_dense\.bias has values that are not finite",
        ),
        (
            lambda w: w.update({LAST: torch.zeros(48, dtype=torch.int8)}),
            r"fc2\.bias` is of type torch\.int8",
        ),
        (
            lambda w: w.update({"encoder.adapter.weight": torch.ones(1)}),
            r"holds `encoder\.adapter\.weight`",
        ),
        (
            lambda w: w.update({"encoder.layers.5.fc1.weight": torch.ones(1)}),
            r"has, beside .*layers\.5",
        ),
        (
            lambda w: w.update({f"teacher.{name}": tensor for name, tensor in list(w.items())}),
            r"holds 2 encoders, under '', 'teacher\.'",
        ),
    ],
)
def test_tensors_that_are_missing_or_wrong_are_named(
    tmp_path: Path, base: HubertModel, change: Any, message: str
) -> None:
    weights = fairseq_state(base.config, base.state_dict())
    change(weights)
    torch.save(
        {"model_weight": weights, "model_cfg": model_settings(base.config, 50.0)},
        tmp_path / "s3prl.pt",
    )
    with pytest.raises(CheckpointError, match=rf"s3prl\.pt.*{message}"):
        import_encoder(tmp_path / "s3prl.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_layers": 12},
            r"settings and its weights disagree: num_layers 12 \(the weights: 2\)",
        ),
        ({"activation_fn": "relu"}, "activation_fn is 'relu'"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer'"),
        ({"extractor_mode": "none"}, "extractor_mode is 'none'"),
        (
            {"conv_feature_layers": "__import__('os').getcwd()"},
            "conv_feature_layers is .*not a list",
        ),
        (
            {"conv_feature_layers": "[(32,10,5)] * 1000000000"},
            "conv_feature_layers is .*not a list",
        ),
        (
            {"conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)]"},
            "lacks|has, beside|total stride",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(
    tmp_path: Path, base: HubertModel, change: dict[str, Any], message: str
) -> None:
    settings = model_settings(base.config, 50.0) | change
    torch.save(
        {"model_weight": fairseq_state(base.config, base.state_dict()), "model_cfg": settings},
        tmp_path / "s3prl.pt",
    )
    with pytest.raises(Exception, match=message) as caught:
        import_encoder(tmp_path / "s3prl.pt")
    assert type(caught.value).__name__ in ("CheckpointError", "ConfigError")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "wavlm"}, "model_type is 'wavlm'"),
        ({"feat_proj_layer_norm": False}, "feat_proj_layer_norm is False"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True"),
        ({"conv_stride": [5, 2]}, "conv_dim, conv_kernel and conv_stride are not equally long"),
    ],
)
def test_huggingface_models_of_another_kind(
    tmp_path: Path, base: HubertModel, change: dict[str, Any], message: str
) -> None:
    out = export(load_checkpoint(saved(tmp_path, base)), "huggingface", tmp_path / "out")
    settings = json.loads((out / "config.json").read_text()) | change
    (out / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        import_encoder(out)
    (out / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        import_encoder(out)


def test_a_model_of_other_sizes_is_refused_by_name(tmp_path: Path, base: HubertModel) -> None:
    imported = import_encoder(saved(tmp_path, base))
    other = build_hubert(base.config.model_copy(update={"num_layers": 3, "num_heads": 6}), 0)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"model\.num_layers is 3 and the file has 2, model\.num_heads is 6 and the file has 4",
    ) as caught:
        load_into(other, imported)
    assert caught.value.setting == "model.num_layers"
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_head_for_other_classes_is_left_out_as_a_whole(tmp_path: Path, base: HubertModel) -> None:
    other = trained(base.config.model_copy(update={"num_classes": 54}))
    fresh = build_hubert(base.config, 7)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    report = load_into(fresh, import_encoder(saved(tmp_path, other)))
    assert {name.split(".")[0] for name in report.missed} == {"logit_generator"}
    assert len(report.missed) == 3
    for name in report.missed:
        assert torch.equal(fresh.state_dict()[name], before[name])


def test_half_precision_is_read(tmp_path: Path, base: HubertModel) -> None:
    out = export(load_checkpoint(saved(tmp_path, base)), "huggingface", tmp_path / "out")
    save_file(
        {name: tensor.half() for name, tensor in load_file(out / "model.safetensors").items()},
        out / "model.safetensors",
    )
    state = import_encoder(out).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(
        state["wav2vec2.encoder.transformer.layer_norm.weight"],
        base.wav2vec2.encoder.transformer.layer_norm.weight.half().float(),
    )
