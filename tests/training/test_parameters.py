"""Parameters as one vector."""

import pytest
import torch
from torch import nn

from fedhubert.config import ModelConfig
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import build_hubert, num_parameters
from fedhubert.training.parameters import ParameterLayout


def small(out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, out), nn.BatchNorm1d(out), nn.Linear(out, 1))


def test_the_vector_holds_the_parameters_in_the_state_dicts_order(
    tiny_model_config: ModelConfig,
) -> None:
    model = build_hubert(tiny_model_config, 0)
    layout = ParameterLayout.of(model)
    state = model.state_dict()
    assert list(layout.names) == [name for name in state if name in layout.names]
    assert layout.numel == num_parameters(model)
    vector = layout.to_vector(model)
    assert vector.dtype == torch.float32 and torch.equal(
        vector, torch.cat([state[name].reshape(-1) for name in layout.names])
    )
    assert {name: tuple(view.shape) for name, view in layout.split(vector).items()} == dict(
        zip(layout.names, layout.shapes, strict=True)
    )


def test_a_loaded_vector_comes_back_bit_for_bit_and_stays_apart(
    tiny_model_config: ModelConfig,
) -> None:
    one, other = build_hubert(tiny_model_config, 0), build_hubert(tiny_model_config, 1)
    layout = ParameterLayout.of(one)
    vector = layout.to_vector(one)
    layout.load_vector(other, vector)
    assert all(
        torch.equal(other.state_dict()[name], value) for name, value in one.state_dict().items()
    )
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert torch.equal(vector, layout.to_vector(one)) and not torch.equal(
        vector, layout.to_vector(other)
    )


def test_an_update_is_how_far_the_parameters_have_moved(tiny_model_config: ModelConfig) -> None:
    one, other = build_hubert(tiny_model_config, 0), build_hubert(tiny_model_config, 1)
    layout = ParameterLayout.of(one)
    start, end = layout.to_vector(one), layout.to_vector(other)
    assert torch.equal(layout.update_of(other, start), end - start)
    assert torch.equal(layout.update_of(other.double(), start), end - start)
    with pytest.raises(TrainingError):
        layout.update_of(one, start[1:])


def test_frozen_parameters_and_buffers_do_not_travel() -> None:
    model = small()
    model[2].requires_grad_(False)
    layout = ParameterLayout.of(model)
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias") and layout.numel == 15
    layout.load_vector(model, torch.zeros(15))
    assert not model[0].weight.any() and model[2].weight.all()


def test_the_fingerprint_tells_names_and_shapes_apart() -> None:
    same = {ParameterLayout.of(small()).fingerprint for _ in range(2)}
    shape = ParameterLayout.of(small(4)).fingerprint
    name = ParameterLayout.of(
        nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.BatchNorm1d(3), nn.Linear(3, 1))
    ).fingerprint
    assert len(same) == 1 and len(same | {shape, name}) == 3


def test_a_model_of_another_shape_is_refused_by_the_parameters_name_and_left_alone() -> None:
    layout, other = ParameterLayout.of(small()), small(4)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(
        TrainingError, match=r"parameter 0.weight: \(3, 2\) expected, the model has \(4, 2\)"
    ):
        layout.load_vector(other, torch.zeros(layout.numel))
    with pytest.raises(TrainingError, match=r"parameter 2.weight: .* lacks it"):
        layout.to_vector(small()[:2])
    assert all(torch.equal(old, new) for old, new in zip(before, other.parameters(), strict=True))


def test_a_vector_of_another_size_is_refused() -> None:
    layout = ParameterLayout.of(small())
    for vector in (torch.zeros(layout.numel + 1), torch.zeros(layout.numel, 1)):
        with pytest.raises(TrainingError, match=rf"for {layout.numel} parameters"):
            layout.load_vector(small(), vector)
