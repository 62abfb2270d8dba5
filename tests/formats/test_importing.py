"""Encoders of other tools: what is read equals what was written, and what cannot be read is refused with a reason."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats import FORMATS
from fedhubert.formats.export import export
from fedhubert.formats.fairseq_form import fairseq_state, model_settings
from fedhubert.formats.foreign_settings import from_fairseq
from fedhubert.formats.importing import encoder_sha256, import_encoder
from fedhubert.formats.reading import conversion_command
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.formats.sizes import STRUCTURE
from fedhubert.formats.starting import load_into
from fedhubert.models.hubert import HubertModel, build_hubert

from .common import SHAPES, saved, trained

LABELS = "logit_generator.label_embeddings"


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config.model_copy(update=SHAPES[request.param]))


@pytest.fixture
def base(tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config)


def _same_sizes(config: ModelConfig, other: ModelConfig) -> bool:
    return all(getattr(config, name) == getattr(other, name) for name in STRUCTURE)


def _assert_loads(model: HubertModel, imported: Any, *, missed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """A model that starts elsewhere becomes ``model``, but for what ``missed``."""
    fresh = build_hubert(model.config, 7)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    report = load_into(fresh, imported)
    assert set(report.missed) == missed
    assert set(report.used) | missed == before.keys()
    wanted = model.state_dict() | {name: before[name] for name in missed}
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_is_exported_is_imported_to_the_same_bits(
    tmp_path: Path, model: HubertModel, format_name: str
) -> None:
    out = export(load_checkpoint(saved(tmp_path, model)), format_name, tmp_path / "out")
    imported = import_encoder(out)
    assert imported.source_format == format_name
    assert _same_sizes(imported.config, model.config)
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
    _assert_loads(model, imported, missed=head if format_name == "huggingface" else set())


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
        _assert_loads(model, imported)
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
    _assert_loads(
        base,
        imported,
        missed={name for name in base.state_dict() if not name.startswith("wav2vec2.")},
    )


def _old_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    for new, old in renamed.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


@pytest.mark.parametrize("prefix", ["", "hubert."])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_huggingface_as_the_hub_has_it(
    tmp_path: Path, model: HubertModel, prefix: str, file: str
) -> None:
    """An older ``facebook/hubert-base-ls960``: old weight-norm names, ``.bin``, settings at their defaults left out, CTC heads."""
    out = export(load_checkpoint(saved(tmp_path, model)), "huggingface", tmp_path / "out")
    state = _old_weight_norm(
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
        _assert_loads(
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
    assert _same_sizes(imported.config, model.config)
    _assert_loads(model, imported)


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
    assert _same_sizes(imported.config, config)
    assert imported.assumed == ("num_heads", "layer_norm_first", "conv_layers")


@pytest.mark.parametrize("prefix", ["", "wav2vec2.", "module.", "w2v_encoder.w2v_model."])
def test_torchaudios_own_state_dicts(tmp_path: Path, model: HubertModel, prefix: str) -> None:
    state = {
        name.removeprefix("wav2vec2."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith("wav2vec2.")
    }
    torch.save(
        _old_weight_norm({f"{prefix}{name}": tensor for name, tensor in state.items()}),
        tmp_path / "encoder.pth",
    )
    imported = import_encoder(tmp_path / "encoder.pth", like=model.config)
    assert imported.source_format == "weights"
    _assert_loads(
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
    _assert_loads(
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
    assert _same_sizes(imported.config, model.config)
    _assert_loads(model, imported)


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
    _assert_loads(model, import_encoder(tmp_path / "hubert.pt"))


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
    _assert_loads(base, imported)


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
