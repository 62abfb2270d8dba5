from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchaudio
import torchaudio.models.wav2vec2.model as torchaudio_model

from fedhubert.compose import compose
from fedhubert.config import ModelConfig
from fedhubert.models import hubert, reference
from fedhubert.models.frames import HUBERT_CONV_LAYERS, num_frames
from fedhubert.models.hubert import HubertModel, build_hubert

PRE_NORM = {"layer_norm_first": True, "conv_norm": "layer_norm"}


def _shipped(name: str) -> ModelConfig:
    config = compose([f"model={name}", "targets.num_clusters=500"]).model
    assert config.num_classes == 504
    return config


def _noise(batch: int = 2, samples: int = 4000) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(1))


def _mask(batch: int, frames: int) -> torch.Tensor:
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    mask[:, 2:7] = True
    return mask


@pytest.fixture
def attention_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The ``attn_mask`` of every attention call."""
    seen: list[Any] = []
    original = F.scaled_dot_product_attention

    def recorder(*args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        seen.append(attn_mask)
        return original(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorder)
    yield seen


@pytest.mark.parametrize(
    ("name", "factory"),
    [("hubert_base", "hubert_pretrain_base"), ("hubert_large", "hubert_pretrain_large")],
)
def test_shipped_configs_ask_for_torchaudios_architecture(
    name: str, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        torchaudio_model, "hubert_pretrain_model", lambda **kwargs: asked.append(kwargs)
    )
    monkeypatch.setattr(reference, "hubert_pretrain_model", lambda **kwargs: asked.append(kwargs))
    config = _shipped(name)
    reference.torchaudio_model(config)
    getattr(torchaudio.models, factory)()
    ours, theirs = asked
    ours["feature_grad_mult"] = (
        None if config.feature_grad_mult == 1.0 else config.feature_grad_mult
    )
    theirs["extractor_conv_layer_config"] = list(
        HUBERT_CONV_LAYERS
    )  # torchaudio's default, by its documentation
    differing = {key for key in theirs if ours[key] != theirs[key]}
    assert differing == {"num_classes", "skip_nomask"}


@pytest.mark.parametrize("changes", [{}, PRE_NORM])
def test_keys_and_first_weights_are_torchaudios(
    tiny_model_config: ModelConfig, changes: dict[str, Any]
) -> None:
    config = tiny_model_config.model_copy(update=changes)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = reference.torchaudio_model(config).state_dict()
    state = build_hubert(config, seed=5).state_dict()
    assert list(state) == list(theirs)
    assert all(torch.equal(state[key], theirs[key]) for key in theirs)
    other = build_hubert(config, seed=6).state_dict()
    for key in (
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight",
        "logit_generator.label_embeddings",
    ):
        assert not torch.equal(state[key], other[key])


def test_building_leaves_the_global_generator_alone(tiny_model_config: ModelConfig) -> None:
    before = torch.get_rng_state()
    build_hubert(tiny_model_config, seed=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("samples", [399, 400, 719, 720, 4000, 16000, 250_000])
def test_frames_match_the_convolutions(samples: int) -> None:
    assert num_frames(samples) == max(0, (samples - 400) // 320 + 1)


def test_frames_of_other_convolutions(tiny_model_config: ModelConfig) -> None:
    layers = ((8, 20, 10), (8, 5, 4), (8, 8, 8))
    config = tiny_model_config.model_copy(update={"conv_layers": layers})
    for samples in (2000, 2345, 4000):
        assert build_hubert(config, 0)(_noise(samples=samples)).frames == num_frames(
            samples, layers
        )


@pytest.mark.parametrize("changes", [{}, PRE_NORM])
def test_no_attention_mask_is_built(
    tiny_model_config: ModelConfig, changes: dict[str, Any], attention_masks: list[Any]
) -> None:
    model = build_hubert(tiny_model_config.model_copy(update=changes), 0).train()
    model(_noise(), _mask(2, num_frames(4000)))
    model.extract_features(_noise())
    assert attention_masks == [None] * (len(attention_masks))
    assert len(attention_masks) >= tiny_model_config.num_layers


@pytest.mark.parametrize("changes", [{}, PRE_NORM])
def test_forward_ends_where_the_last_hidden_state_is(
    tiny_model_config: ModelConfig, changes: dict[str, Any]
) -> None:
    model = build_hubert(tiny_model_config.model_copy(update=changes), 0).eval()
    hidden = model.extract_features(_noise())
    assert [tuple(layer.shape) for layer in hidden] == [(2, 12, 48)] * 2
    assert torch.equal(model.extract_features(_noise(), 1)[0], hidden[0])
    last = model.wav2vec2.encoder.transformer.layer_norm(hidden[-1]) if changes else hidden[-1]
    output = model(_noise())
    assert output.logits_MC.shape == (24, 104)
    torch.testing.assert_close(output.logits_MC, model.logit_generator(last.flatten(0, 1)))


def test_only_masked_frames_are_scored_and_hidden(tiny_model_config: ModelConfig) -> None:
    model = build_hubert(tiny_model_config, 0).eval()
    mask = torch.zeros(1, 12, dtype=torch.bool)
    output = model(_noise(1), mask)
    assert output.logits_MC.shape == (0, 104)
    mask[0, 4:9] = True
    first = model(_noise(1), mask).logits_MC
    assert first.shape == (5, 104)
    with torch.no_grad():
        model.mask_generator.mask_embedding.zero_()
    assert not torch.allclose(first, model(_noise(1), mask).logits_MC)


def test_mask_of_another_length_is_refused(tiny_model_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"\(2, 11\).*\(2, 12\)"):
        build_hubert(tiny_model_config, 0)(_noise(), _mask(2, 11))


def test_all_layers_can_drop(tiny_model_config: ModelConfig, attention_masks: list[Any]) -> None:
    model = build_hubert(tiny_model_config.model_copy(update={"layer_drop": 0.999999}), 0)
    model.train()(_noise())
    assert not attention_masks
    model.eval()(_noise())
    assert len(attention_masks) == tiny_model_config.num_layers


def _gradients(model: HubertModel) -> list[torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model(_noise().double(), _mask(2, 12)).logits_MC.square().sum().backward()
    return [
        torch.zeros(()) if parameter.grad is None else parameter.grad
        for parameter in model.parameters()
    ]


@pytest.mark.parametrize("layer_drop", [0.0, 0.5])
def test_activation_checkpointing_keeps_the_gradients(
    tiny_model_config: ModelConfig, layer_drop: float, attention_masks: list[Any]
) -> None:
    config = tiny_model_config.model_copy(
        update={
            "dropout": 0.3,
            "attention_dropout": 0.2,
            "activation_dropout": 0.1,
            "layer_drop": layer_drop,
            "num_layers": 4,
        }
    )
    # In float64, since with it the convolutions' gradients are added up utterance by utterance.
    plain, saving = (build_hubert(config, 0).double().train() for _ in range(2))
    saving.set_activation_checkpointing(True)
    expected = _gradients(plain)
    calls = len(attention_masks)
    for ours, theirs in zip(_gradients(saving), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (
        len(attention_masks) == 3 * calls > 0
    )  # once without; with, once forward and once more backward
    saving.set_activation_checkpointing(False)
    attention_masks.clear()
    _gradients(saving)
    assert len(attention_masks) == calls


def test_a_large_model_returns_memory_once_a_step(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trims = build_hubert(tiny_model_config, 0).double().train(), []
    expected = _gradients(model)
    monkeypatch.setattr(
        hubert.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=trims.append)
    )
    model.zero_grad()
    _gradients(model)
    assert not trims
    monkeypatch.setattr(hubert, "LARGE", 1)
    model.zero_grad()
    assert all(map(torch.equal, _gradients(model), expected)) and trims == [0]


def test_autocast_scores_in_float32(tiny_model_config: ModelConfig) -> None:
    model = build_hubert(tiny_model_config, 0).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(_noise(), _mask(2, 12))
    assert output.logits_MC.dtype == output.conv_power.dtype == torch.float32
    assert (
        output.logits_MC - model(_noise(), _mask(2, 12)).logits_MC
    ).abs().max() < 0.5  # logits span -10 .. 10
    output.logits_MC.sum().backward()
