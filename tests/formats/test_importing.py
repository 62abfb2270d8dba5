"""Encoders of other tools: what is read equals what was written, and what cannot be read is refused with a reason."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats import FORMATS
from fedhubert.formats.export import export
from fedhubert.formats.fairseq_form import fairseq_state
from fedhubert.formats.foreign_settings import from_fairseq
from fedhubert.formats.importing import encoder_sha256, import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel, build_hubert
from tests.formats.encoders import LABELS, assert_loads, old_weight_norm, same_sizes

from .common import saved, trained


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_is_exported_is_imported_to_the_same_bits(
    tmp_path: Path, model: HubertModel, format_name: str
) -> None:
    out = export(load_checkpoint(saved(tmp_path, model)), format_name, tmp_path / "out")
    imported = import_encoder(out)
    assert imported.source_format == format_name
    assert same_sizes(imported.config, model.config)
    assert (imported.normalize, imported.assumed, imported.ignored) == (False, (), ())
    assert imported.sha256 == encoder_sha256(model.state_dict())
    assert imported.config.layer_drop == model.config.layer_drop
    head = {name for name in model.state_dict() if name.startswith("logit_generator.")}
    if format_name == "torchaudio":
        assert torch.equal(
            imported.state[LABELS][NUM_SPECIAL_ROWS:], model.state_dict()[LABELS][NUM_SPECIAL_ROWS:]
        )
        special = imported.state[LABELS][:NUM_SPECIAL_ROWS]
        assert (special @ imported.state[LABELS][NUM_SPECIAL_ROWS:].mean(0) < 0).all()
        state = {**imported.state, LABELS: model.state_dict()[LABELS]}
        imported = type(imported)(**{**vars(imported), "state": state})
    assert_loads(model, imported, missed=head if format_name == "huggingface" else set())


def test_rounds_are_found_by_their_folder(tmp_path: Path, model: HubertModel) -> None:
    saved(
        tmp_path / "run" / "checkpoints",
        trained(model.config.model_copy(update={"final_dim": 16})),
        1,
    )
    path = saved(tmp_path / "run" / "checkpoints", model, 2)
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints", path):
        imported = import_encoder(given)
        assert imported.source_format == "fedhubert"
        assert_loads(model, imported)
    assert imported.config.model_dump(exclude={"name"}) == model.config.model_dump(exclude={"name"})


def test_a_flipped_bit_in_a_rounds_weights_is_noticed(tmp_path: Path, base: HubertModel) -> None:
    path = saved(tmp_path, base)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        import_encoder(path)


def test_a_students_round_gives_its_encoder(tmp_path: Path, base: HubertModel) -> None:
    path = saved(tmp_path, base)
    content = torch.load(path, weights_only=True)
    content["model"] = {
        name: tensor for name, tensor in content["model"].items() if name.startswith("wav2vec2.")
    }
    content["model"]["heads.0.weight"] = torch.ones(3, 3)
    torch.save(content, path.with_name("student.pt"))
    imported = import_encoder(path.with_name("student.pt"))
    assert imported.ignored == ("heads.0.weight",)
    assert_loads(
        base,
        imported,
        missed={name for name in base.state_dict() if not name.startswith("wav2vec2.")},
    )


@pytest.mark.parametrize("prefix", ["", "hubert."])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_huggingface_as_the_hub_has_it(
    tmp_path: Path, model: HubertModel, prefix: str, file: str
) -> None:
    """An older ``facebook/hubert-base-ls960``: old weight-norm names, ``.bin``, settings at their defaults left out, CTC heads."""
    out = export(load_checkpoint(saved(tmp_path, model)), "huggingface", tmp_path / "out")
    state = old_weight_norm(
        {f"{prefix}{name}": tensor for name, tensor in load_file(out / "model.safetensors").items()}
    )
    (out / "model.safetensors").unlink()
    state["lm_head.weight"] = torch.ones(5, 5)
    torch.save(state, out / file) if file.endswith(".bin") else save_file(state, out / file)
    settings = json.loads((out / "config.json").read_text())
    defaults = {
        "feat_proj_layer_norm": True,
        "conv_pos_batch_norm": False,
        "conv_bias": False,
        "do_stable_layer_norm": False,
    }
    settings = {
        name: value
        for name, value in settings.items()
        if name not in defaults or value != defaults[name]
    }
    (out / "config.json").write_text(json.dumps(settings))
    (out / "preprocessor_config.json").write_text('{"do_normalize": true}')
    for given in (out, out / file):
        imported = import_encoder(given)
        assert (imported.source_format, imported.normalize, imported.ignored) == (
            "huggingface",
            True,
            ("lm_head.weight",),
        )
        assert_loads(
            model,
            imported,
            missed={name for name in model.state_dict() if name.startswith("logit_generator.")},
        )


def test_settings_left_out_of_config_json_are_transformers_defaults() -> None:
    transformers = pytest.importorskip("transformers")
    from fedhubert.formats.foreign_settings import from_huggingface

    default = transformers.HubertConfig().to_dict()
    assert from_huggingface({"model_type": "hubert"}, "empty") == from_huggingface(default, "full")


def test_settings_left_out_of_model_cfg_are_fairseqs_defaults() -> None:
    module = pytest.importorskip(
        "s3prl.upstream.hubert.hubert_model",
        reason="s3prl is not installed: pip install s3prl==0.4.18",
    )
    default = {
        name: getattr(module.HubertConfig(label_rate=50), name)
        for name in module.HubertConfig.__dataclass_fields__
    }
    default = {
        name: str(value) if "choices" in type(value).__name__.lower() else value
        for name, value in default.items()
    }
    assert from_fairseq({"label_rate": 50}, "empty") == from_fairseq(default, "full")


@pytest.mark.parametrize("container", ["model_weight", "model", "state_dict", None])
def test_rounds_of_earlier_scripts_without_settings(
    tmp_path: Path, model: HubertModel, container: str | None
) -> None:
    """fairseq's names and nothing else: sizes come from the shapes, what no shape tells from the run's own model."""
    weights = OrderedDict(fairseq_state(model.config, model.state_dict()))
    path = tmp_path / "round_010_checkpoint.pt"
    torch.save(
        weights
        if container is None
        else {"round": 10, "federated_metrics": {"loss": 1.0}, container: weights},
        path,
    )
    with pytest.raises(CheckpointError, match=r"does not say num_heads, layer_norm_first"):
        import_encoder(path)
    imported = import_encoder(path, like=model.config)
    assert set(imported.assumed) == {"num_heads", "layer_norm_first", "conv_layers"}
    assert same_sizes(imported.config, model.config)
    assert_loads(model, imported)


def test_widths_of_the_released_models_tell_their_heads(
    tmp_path: Path, tiny_model_config: ModelConfig
) -> None:
    config = tiny_model_config.model_copy(
        update={"embed_dim": 768, "ffn_dim": 3072, "num_heads": 12, "num_layers": 1}
    )
    model = build_hubert(config, 0)
    torch.save(
        {"model_weight": fairseq_state(config, model.state_dict())},
        tmp_path / "round_010_checkpoint.pt",
    )
    imported = import_encoder(tmp_path / "round_010_checkpoint.pt")
    assert same_sizes(imported.config, config)
    assert imported.assumed == ("num_heads", "layer_norm_first", "conv_layers")
