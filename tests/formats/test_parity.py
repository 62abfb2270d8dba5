"""Every export, and every round, through the loaders that others use: the same hidden states at every layer."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedhubert.compose import compose, group_choices
from fedhubert.config import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.formats.export import export
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.runs.store import RoundStore

from .common import SHAPES, hubert_local, saved, trained

TOLERANCE = 1e-4
WIDE = ("hubert_base", "hubert_large", "student_768x2")


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest, tiny_model_config: ModelConfig) -> HubertModel:
    return trained(tiny_model_config.model_copy(update=SHAPES[request.param]))


def _waveforms(samples: int = 9123) -> Tensor:
    return torch.randn(2, samples, generator=torch.Generator().manual_seed(0))


def _ours(model: HubertModel, waveforms: Tensor) -> list[Tensor]:
    """Outputs of all layers, the last one through the norm that ends a pre-norm encoder, as in HuggingFace and s3prl."""
    layers = model.extract_features(waveforms)
    if model.config.layer_norm_first:
        layers[-1] = model.wav2vec2.encoder.transformer.layer_norm(layers[-1])
    return layers


def _assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.std() > 0.1
        assert mine.shape == other.shape
        assert (mine - other).abs().max() < TOLERANCE


def _s3prl(path: Path, waveforms: Tensor) -> list[Tensor]:
    upstream = hubert_local()(str(path)).eval()
    return list(upstream(list(waveforms))["hidden_states"][1:])


@torch.no_grad()
@pytest.mark.parametrize("samples", [9123, 16000], ids=["28 frames", "49 frames"])
def test_a_round_is_s3prls_hubert_local(tmp_path: Path, model: HubertModel, samples: int) -> None:
    path = saved(tmp_path, model)
    waveforms = _waveforms(samples)
    _assert_close(_ours(model, waveforms), _s3prl(path, waveforms))


def test_the_second_names_take_no_second_room(tmp_path: Path, model: HubertModel) -> None:
    path = saved(tmp_path, model)
    checkpoint = load_checkpoint(path)
    weights = sum(tensor.nbytes for tensor in checkpoint["model"].values())
    assert path.stat().st_size < weights + 60_000
    places = {tensor.data_ptr() for tensor in checkpoint["model"].values()}
    assert {tensor.data_ptr() for tensor in checkpoint["model_weight"].values()} == places
    assert len(checkpoint["model_weight"]) == len(checkpoint["model"])


@torch.no_grad()
def test_a_student_without_a_head_is_hubert_local_too(tmp_path: Path, model: HubertModel) -> None:
    config = {"model": model.config.model_dump(mode="json")}
    state = {
        name: tensor for name, tensor in model.state_dict().items() if name.startswith("wav2vec2.")
    }
    store = RoundStore(tmp_path)
    path = store.save(
        3,
        state | {"heads.0.weight": torch.ones(3)},
        config=config,
        federated_metrics={},
        resume=None,
    )
    _assert_close(_ours(model, _waveforms()), _s3prl(path, _waveforms()))
    upstream = hubert_local()(str(path))
    logits = (
        upstream.model.final_proj(torch.randn(5, model.config.embed_dim))
        @ upstream.model.label_embs_concat.T
    )
    assert logits.shape == (5, model.config.num_classes)
    assert torch.all(logits.isfinite()) and torch.all(logits == logits[:, :1])


def test_a_round_that_s3prl_cannot_hold_is_saved_and_says_so(
    tmp_path: Path, tiny_model_config: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(tiny_model_config.model_copy(update={"embed_dim": 32}))
    path = saved(tmp_path, model)
    assert "will not load in s3prl" in caplog.text and "model.embed_dim" in caplog.text
    assert "model_weight" not in load_checkpoint(path)


@torch.no_grad()
def test_huggingface(tmp_path: Path, model: HubertModel) -> None:
    transformers = pytest.importorskip("transformers")
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    out = export(load_checkpoint(saved(tmp_path, model)), "huggingface", tmp_path / "out")
    loaded, info = transformers.HubertModel.from_pretrained(out, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert torch.equal(loaded.masked_spec_embed, model.mask_generator.mask_embedding)
    theirs = loaded.eval()(_waveforms(), output_hidden_states=True)
    layers = [*theirs.hidden_states[1:-1], theirs.last_hidden_state]
    _assert_close(_ours(model, _waveforms()), layers)
    imported = import_huggingface_model(loaded).eval().extract_features(_waveforms())[0]
    _assert_close(model.extract_features(_waveforms()), imported)


@torch.no_grad()
def test_s3prl_and_from_there_torchaudio(tmp_path: Path, model: HubertModel) -> None:
    from torchaudio.models.wav2vec2.utils import import_fairseq_model

    out = export(load_checkpoint(saved(tmp_path, model)), "s3prl", tmp_path / "out")
    _assert_close(_ours(model, _waveforms()), _s3prl(out / "hubert_s3prl.pt", _waveforms()))
    imported = import_fairseq_model(hubert_local()(str(out / "hubert_s3prl.pt")).model).eval()
    _assert_close(model.extract_features(_waveforms()), imported.extract_features(_waveforms())[0])


@torch.no_grad()
def test_fairseqs_layout_builds_its_model(tmp_path: Path, model: HubertModel) -> None:
    """With s3prl's copy of fairseq's ``HubertModel``, from what the file itself says."""
    hubert_local()
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertPretrainingConfig
    from s3prl.upstream.hubert.hubert_model import HubertModel as FairseqHubert
    from s3prl.upstream.utils import merge_with_parent

    out = export(
        load_checkpoint(saved(tmp_path, model, targets={"label_rate_hz": 100})),
        "fairseq",
        tmp_path / "out",
    )
    checkpoint = torch.load(out / "hubert_fairseq.pt", weights_only=True)
    assert checkpoint["cfg"]["model"]["label_rate"] == 100.0
    assert [len(symbols) for symbols in checkpoint["task_state"]["dictionaries"]] == [
        model.config.num_classes
    ]
    settings = merge_with_parent(HubertConfig, checkpoint["cfg"]["model"])
    task = merge_with_parent(HubertPretrainingConfig, checkpoint["cfg"]["task"])
    theirs = FairseqHubert(settings, task, checkpoint["task_state"]["dictionaries"]).eval()
    theirs.load_state_dict(checkpoint["model"], strict=True)
    count = model.config.num_layers
    padding = torch.zeros(2, 9123, dtype=torch.bool)
    last, _ = theirs.extract_features(_waveforms(), padding_mask=padding)
    layers = [
        theirs.extract_features(_waveforms(), padding_mask=padding, output_layer=layer)[0]
        for layer in range(1, count)
    ]
    _assert_close(_ours(model, _waveforms()), [*layers, last])


@torch.no_grad()
def test_torchaudio_by_the_script_beside_it(tmp_path: Path, model: HubertModel) -> None:
    out = export(load_checkpoint(saved(tmp_path, model)), "torchaudio", tmp_path / "out")
    loaded = runpy.run_path(str(out / "load.py"))["load_model"]()
    _assert_close(
        model.extract_features(_waveforms()), loaded.wav2vec2.extract_features(_waveforms())[0]
    )
    rows = model.logit_generator.label_embeddings[NUM_SPECIAL_ROWS:]
    assert torch.equal(loaded.logit_generator.label_embeddings, rows)


@torch.no_grad()
def test_torchaudio_of_a_student(tmp_path: Path, model: HubertModel) -> None:
    checkpoint = load_checkpoint(saved(tmp_path, model))
    checkpoint["model"] = {
        name: tensor for name, tensor in checkpoint["model"].items() if name.startswith("wav2vec2.")
    }
    out = export(checkpoint, "torchaudio", tmp_path / "out")
    loaded = runpy.run_path(str(out / "load.py"))["load_model"]()
    _assert_close(model.extract_features(_waveforms()), loaded.extract_features(_waveforms())[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in WIDE else [])
        for name in group_choices()["model"]
    ],
)
def test_torchaudios_script_loads_every_shipped_model(tmp_path: Path, name: str) -> None:
    """In all but its depth; the gradients of some models' convolutions are scaled, of others not."""
    model = build_hubert(compose([f"model={name}", "model.num_layers=1"]).model, 0).eval()
    out = export(load_checkpoint(saved(tmp_path, model)), "torchaudio", tmp_path / "out")
    loaded = runpy.run_path(str(out / "load.py"))["load_model"]()
    waveforms = _waveforms(4000)[:1]
    theirs = loaded.wav2vec2.extract_features(waveforms)[0]
    _assert_close(model.extract_features(waveforms), theirs)


def test_huggingfaces_names_are_those_that_every_version_loads(
    tmp_path: Path, model: HubertModel
) -> None:
    out = export(load_checkpoint(saved(tmp_path, model)), "huggingface", tmp_path / "out")
    names = {name for name in load_file(out / "model.safetensors") if "pos_conv_embed" in name}
    stem = "encoder.pos_conv_embed.conv."
    assert names == {f"{stem}weight_g", f"{stem}weight_v", f"{stem}bias"}


@torch.no_grad()
@pytest.mark.parametrize("format_name", ["huggingface", "torchaudio", "s3prl"])
def test_what_the_card_says_of_padding(
    tmp_path: Path, model: HubertModel, format_name: str
) -> None:
    """One waveform alone, and beside a longer one: equal frames, or not, as the card says."""
    out = export(load_checkpoint(saved(tmp_path, model)), format_name, tmp_path / "out")
    waveforms, length = _waveforms(16000), 9000
    waveforms[0, length:] = 0.0
    frames = model.extract_features(waveforms[:1, :length])[-1].shape[1]
    if format_name == "huggingface":
        transformers = pytest.importorskip("transformers")
        loaded = transformers.HubertModel.from_pretrained(out).eval()
        mask = torch.ones(2, 16000, dtype=torch.long)
        mask[0, length:] = 0
        alone = loaded(waveforms[:1, :length]).last_hidden_state
        beside = loaded(waveforms, attention_mask=mask).last_hidden_state[:1, :frames]
    elif format_name == "torchaudio":
        encoder = runpy.run_path(str(out / "load.py"))["load_model"]().wav2vec2
        alone = encoder.extract_features(waveforms[:1, :length])[0][-1]
        lengths = torch.tensor([length, 16000])
        beside = encoder.extract_features(waveforms, lengths)[0][-1][:1, :frames]
    else:
        upstream = hubert_local()(str(out / "hubert_s3prl.pt")).eval()
        alone = upstream([waveforms[0, :length]])["hidden_states"][-1]
        both = upstream([waveforms[0, :length], waveforms[1]])["hidden_states"][-1]
        beside = both[:1, :frames]
    difference = float((alone - beside).abs().max())
    card = (out / "README.md").read_text()
    if model.config.conv_norm == "group_norm":
        assert "change **all** of its frames" in card and difference > 0.05
    elif format_name == "s3prl":
        assert "change its frames a little" in card and 1e-4 < difference < 0.3
    else:
        assert "change no frame of it as long as" in card and difference < 1e-4


@torch.no_grad()
def test_base_in_full_size(tmp_path: Path) -> None:
    """94.7 M parameters: the sizes, group counts and kernel of HuBERT base itself."""
    transformers = pytest.importorskip("transformers")
    config = compose(["experiment=research_standard_pretraining", "data.manifest=unused"]).model
    model = build_hubert(config, 0).eval()
    path = saved(tmp_path, model)
    waveforms = _waveforms()[:1]
    ours = _ours(model, waveforms)
    _assert_close(ours, _s3prl(path, waveforms))
    loaded: Any = transformers.HubertModel.from_pretrained(
        export(load_checkpoint(path), "huggingface", tmp_path / "out")
    )
    _assert_close(ours, list(loaded.eval()(waveforms, output_hidden_states=True).hidden_states[1:]))
