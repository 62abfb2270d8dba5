"""Low-rank adapters: at first nothing, then what peft computes, and the same when they are merged."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fedhubert.config import ModelConfig, TaskConfig
from fedhubert.errors import CheckpointError
from fedhubert.formats.export import export
from fedhubert.formats.importing import import_encoder
from fedhubert.formats.round_file import load_checkpoint
from fedhubert.formats.starting import load_into
from fedhubert.models.adapters import AdaptedLinear, is_adapters, merged
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.layers import LayerEncoder
from fedhubert.objectives.spec import build_model
from fedhubert.runs.store import RoundStore
from fedhubert.training.parameters import ParameterLayout

EVERY = ("query", "key", "value", "output", "feed_forward")
WAVEFORMS = torch.randn(2, 6_400, generator=torch.Generator().manual_seed(0))


def adapted(config: ModelConfig, **changes: object) -> HubertModel:
    settings = {"trainable": "adapters", "adapter_rank": 3, "adapter_alpha": 5.0} | changes
    return build_model(config.model_copy(update=settings), TaskConfig(), 0).eval()


def trained(config: ModelConfig, **changes: object) -> HubertModel:
    """One whose adapters do something."""
    model, random = adapted(config, **changes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapters(name):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def test_before_training_they_change_nothing(tiny_model_config: ModelConfig) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = adapted(tiny_model_config, adapter_projections=EVERY)
    assert torch.equal(before, torch.get_rng_state())
    plain = build_hubert(tiny_model_config, 0).eval()
    for ours, theirs in zip(
        model.extract_features(WAVEFORMS), plain.extract_features(WAVEFORMS), strict=True
    ):
        assert torch.equal(ours, theirs)
    again = adapted(tiny_model_config, adapter_projections=EVERY).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_what_travels_is_of_the_rank_that_is_named(tiny_model_config: ModelConfig) -> None:
    layout = ParameterLayout.of(adapted(tiny_model_config))
    ours = [name for name in layout.names if name.startswith("wav2vec2.")]
    assert len(ours) == 2 * 2 * 2 and all(map(is_adapters, ours))
    layers, width = tiny_model_config.num_layers, tiny_model_config.embed_dim
    head = ParameterLayout.of(
        build_model(tiny_model_config.model_copy(update={"trainable": "head"}), TaskConfig(), 0)
    )
    assert layout.numel - head.numel == layers * 2 * 3 * 2 * width
    every = ParameterLayout.of(adapted(tiny_model_config, adapter_projections=EVERY))
    numbers = 4 * 2 * width + 2 * (width + tiny_model_config.ffn_dim)
    assert every.numel - head.numel == layers * 3 * numbers


def test_a_layer_computes_what_pefts_does() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    base = nn.Sequential(nn.Linear(7, 5))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    ours = AdaptedLinear(base[0], 3, 5.0)
    layer = theirs.base_model.model[0]
    with torch.no_grad():
        ours.lora_A.normal_(), ours.lora_B.normal_()
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        layer.lora_B["default"].weight.copy_(ours.lora_B)
    x = torch.randn(4, 7)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    for output in (ours(x), theirs(x)):
        output.pow(2).sum().backward()
    for mine, other in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
        gradient = other["default"].weight.grad
        assert torch.allclose(getattr(ours, mine).grad, gradient, rtol=1e-4, atol=1e-5)
    state = {f"x.{name}": tensor for name, tensor in ours.state_dict().items()}
    whole = theirs.merge_and_unload()[0].weight
    assert torch.allclose(merged(state, 5.0)["x.weight"], whole, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("projections", [("query", "value"), EVERY])
def test_what_is_read_and_exported_has_them_merged(
    tmp_path: Path, tiny_model_config: ModelConfig, projections: tuple[str, ...]
) -> None:
    model = trained(tiny_model_config, adapter_projections=projections)
    expected = model.extract_features(WAVEFORMS)
    plain = build_hubert(tiny_model_config, 0).eval().extract_features(WAVEFORMS)
    assert (expected[-1] - plain[-1]).abs().max() > 0.01
    config = {"model": model.config.model_dump(mode="json")}
    path = RoundStore(tmp_path / "run" / "checkpoints").save(
        1, model.state_dict(), config=config, federated_metrics={}, resume=None
    )
    stored = torch.load(path, weights_only=True)
    assert any(map(is_adapters, stored["model"]))
    assert not any(map(is_adapters, stored["model_weight"]))  # s3prl's names
    checkpoint = load_checkpoint(path)
    places = [
        path,
        *(export(checkpoint, name, tmp_path / name) for name in ("huggingface", "s3prl")),
    ]
    for place in places:
        imported = import_encoder(place)
        read = build_hubert(imported.config, 0)
        load_into(read, imported)
        for ours, theirs in zip(expected, read.eval().extract_features(WAVEFORMS), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
    (last,) = LayerEncoder(model, [tiny_model_config.num_layers])(WAVEFORMS)
    assert torch.equal(last, expected[-1])


def test_without_adapters_merging_gives_the_same_tensors(tiny_model_config: ModelConfig) -> None:
    state = build_hubert(tiny_model_config, 0).state_dict()
    found = merged(state, 16.0)
    assert list(found) == list(state) and all(found[name] is state[name] for name in state)


@pytest.mark.parametrize("broken", ["half", "rank", "width"])
def test_half_an_adapter_is_refused_by_name(tiny_model_config: ModelConfig, broken: str) -> None:
    state = trained(tiny_model_config).state_dict()
    place = "wav2vec2.encoder.transformer.layers.0.attention.q_proj"
    if broken == "half":
        del state[f"{place}.lora_B"]
    else:
        shape = (2, 48) if broken == "rank" else (3, 47)
        state[f"{place}.lora_A"] = torch.ones(shape)
    with pytest.raises(CheckpointError, match=r"adapter of .*0\.attention\.q_proj is not whole"):
        merged(state, 5.0)
