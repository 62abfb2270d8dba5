from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.models.wav2vec2.components import _get_feature_extractor

from fedhubert.models import convolutions
from fedhubert.models.convolutions import extract

HUBERT = [(24, 10, 5), *[(16, 3, 2)] * 4, *[(20, 2, 2)] * 2]
OTHERS = [
    (8, 20, 10),
    (12, 5, 4),
    (6, 3, 5),
    (7, 9, 2),
]  # a gap between kernels, and more than two strides in one


@pytest.fixture(autouse=True)
def small_ones_count_as_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 1)


def _built(
    norm: str, shapes: list[tuple[int, int, int]], bias: bool, dtype: torch.dtype = torch.float64
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        built = _get_feature_extractor(norm, shapes, bias).to(dtype)
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return built


def _noise(samples: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, samples, generator=torch.Generator().manual_seed(1), dtype=dtype)


def _gradients(features: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.randn(
        features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    return torch.autograd.grad((features * weights).sum(), inputs)


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shapes", "samples"), [(HUBERT, 400), (HUBERT, 4011), (OTHERS, 4011)])
def test_features_and_gradients_are_torchaudios(
    norm: str, bias: bool, shapes: Any, samples: int
) -> None:
    reference = _built(norm, shapes, bias)
    waveforms = _noise(samples).requires_grad_()
    ours, theirs = extract(reference, waveforms), reference(waveforms, None)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    inputs = [waveforms, *reference.parameters()]
    for found, expected in zip(_gradients(ours, inputs), _gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(extract(reference, waveforms), theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", ["layer_norm", "conv.weight", "conv.bias"])
def test_frozen_parameters_get_no_gradient(frozen: str) -> None:
    reference = _built("layer_norm", HUBERT, bias=True)
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(frozen not in name)
    trained = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    waveforms = _noise(2000)
    ours = _gradients(extract(reference, waveforms), trained)
    for found, expected in zip(
        ours, _gradients(reference(waveforms, None)[0], trained), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    extract(reference, waveforms).sum().backward()
    assert all(
        (parameter.grad is None) != parameter.requires_grad for parameter in reference.parameters()
    )


def test_only_the_convolutions_outputs_are_kept() -> None:
    reference = _built("layer_norm", HUBERT, bias=False)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        extract(reference, _noise(16000))
    weights = {parameter.data_ptr() for parameter in reference.parameters()}
    sizes = {
        tensor.data_ptr(): tensor.numel()
        for tensor in kept
        if tensor.data_ptr() not in weights and tensor.dim() == 3
    }
    frames, outputs = 16000, 3 * 16000
    for channels, kernel, stride in HUBERT:
        frames = (frames - kernel) // stride + 1
        outputs += 3 * frames * channels
    last = 3 * frames * HUBERT[-1][0]
    assert (
        sum(sizes.values()) <= outputs + 2 * last
    )  # the last norm's and GELU's inputs are as long as the features


@pytest.mark.parametrize("autocast", [False, True])
def test_narrower_types_take_torchs_convolutions(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("matrix products of a narrower type")

    monkeypatch.setattr(convolutions, "_extract_by_products", refuse)
    dtype = torch.float32 if autocast else torch.bfloat16
    reference = _built("group_norm", HUBERT, bias=False, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours = extract(reference, _noise(2000, dtype))
        theirs, _ = reference(_noise(2000, dtype), None)
    assert torch.equal(ours, theirs)
