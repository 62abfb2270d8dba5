"""``client.compile``: the same step as without, a graph for each length and not for each number of crops, and what happens when it fails.

Graphs are made here by torch's tracer and its differentiation alone (``aot_eager``): C++ takes minutes on the CPU (marker ``slow``).
"""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from fedhubert.config import ClientConfig, DataConfig, ModelConfig, TaskConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.models import compiled
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.training.local import Progress, train_locally
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.stepping import Trainer

CPU = torch.device("cpu")
NO_DRAWS = {"dropout": 0.0, "attention_dropout": 0.0, "feature_dropout": 0.0, "layer_drop": 0.0}
SGD = ClientConfig(
    optimizer="sgd",
    lr=0.1,
    weight_decay=0.0,
    schedule="constant",
    warmup_fraction=0.0,
    accumulate=2,
)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch_of(position: int, rows: int = 2, num_samples: int = 6400) -> Batch:
    rng, frames = np.random.default_rng(position), num_frames(num_samples)
    return Batch(
        torch.from_numpy(rng.standard_normal((rows, num_samples), dtype=np.float32)),
        torch.from_numpy(rng.integers(0, 100, (rows, frames))),
        torch.from_numpy(span_mask(rows, frames, MaskSpec(0.65, 5, 2), rng)),
        position,
    )


def model_of(config: ModelConfig, enabled: bool, **changes: Any) -> HubertModel:
    model = build_hubert(config.model_copy(update=NO_DRAWS | changes), seed=0)
    model.set_compiled(enabled)
    return model


def train(model: HubertModel, client: ClientConfig = SGD) -> torch.Tensor:
    """Return the update of two steps."""
    layout = ParameterLayout.of(model)
    start = layout.to_vector(model)
    batches = iter([batch_of(position, rows=1 + position) for position in range(4)])
    progress = Progress(1, 1, 2)
    train_locally(
        model,
        batches,
        client=client,
        task=TaskConfig(),
        progress=progress,
        seed=0,
        partition=0,
        device=CPU,
    )
    return layout.to_vector(model) - start


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


WAYS: dict[str, Callable[[ModelConfig], tuple[dict[str, Any], ClientConfig, float]]] = {
    "float32": lambda config: ({}, SGD, 1e-5),
    "bf16": lambda config: ({}, SGD.model_copy(update={"precision": "bf16"}), 0.02),
    "wide convolutions in bf16": lambda config: (
        {"conv_layers": tuple((256, kernel, stride) for _, kernel, stride in config.conv_layers)},
        SGD.model_copy(update={"precision": "bf16"}),
        0.02,
    ),
    "norms first": lambda config: (
        {"layer_norm_first": True, "conv_norm": "layer_norm"},
        SGD,
        1e-5,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_steps_are_those_without(tiny_model_config: ModelConfig, way: str) -> None:
    changes, client, tolerance = WAYS[way](tiny_model_config)
    expected = train(model_of(tiny_model_config, False, **changes), client)
    assert not counters["stats"]["unique_graphs"]
    found = train(model_of(tiny_model_config, True, **changes), client)
    assert counters["stats"]["unique_graphs"] and relative(found, expected) < tolerance


@pytest.mark.slow
def test_steps_by_the_compiler_are_those_without(tiny_model_config: ModelConfig) -> None:
    expected = train(model_of(tiny_model_config, False))
    assert relative(train(model_of(tiny_model_config, True)), expected) < 1e-5


def test_activation_checkpointing_goes_with_it(tiny_model_config: ModelConfig) -> None:
    expected = train(model_of(tiny_model_config, False))
    model = model_of(tiny_model_config, True)
    model.set_activation_checkpointing(True)
    assert relative(train(model), expected) < 1e-5


def test_a_graph_is_made_for_a_length_and_not_for_a_number_of_crops_or_layers(
    tiny_model_config: ModelConfig,
) -> None:
    model = model_of(tiny_model_config, True, num_layers=3)
    trainer = Trainer(model, SGD, TaskConfig(), 0, 0, CPU, 0.0)
    trainer.step([batch_of(0, rows=2)], 0.1)
    parts = len(compiled.AS_THEY_ARE)
    assert counters["stats"]["unique_graphs"] == parts
    trainer.step([batch_of(1, rows=3), batch_of(2, rows=4)], 0.1)
    assert counters["stats"]["unique_graphs"] == parts
    trainer.step([batch_of(3, rows=3, num_samples=8000)], 0.1)
    assert counters["stats"]["unique_graphs"] == 2 * parts


def test_draws_of_dropout_depend_on_the_seed_alone(tiny_model_config: ModelConfig) -> None:
    drawing = {"dropout": 0.2, "layer_drop": 0.2}
    first, second = (train(model_of(tiny_model_config, True, **drawing)) for _ in range(2))
    assert torch.equal(first, second)


def test_evaluation_and_copies_run_as_they_are(tiny_model_config: ModelConfig) -> None:
    model = model_of(tiny_model_config, True).eval()
    with torch.no_grad():
        model(batch_of(0).waveforms_BN)
    assert not counters["stats"]["unique_graphs"]
    assert (
        copy.deepcopy(model).state_dict().keys()
        == model_of(tiny_model_config, False).state_dict().keys()
    )


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_what_fails_compiled_is_done_without_and_said(
    tiny_model_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: str,
) -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            if fails == "forward":
                raise RuntimeError("no compiler here")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            raise RuntimeError("no compiler here")

    expected = train(model_of(tiny_model_config, False))
    broken = compiled.AS_THEY_ARE._replace(
        layer=lambda layer, x: Breaks.apply(compiled.apply_layer(layer, x))
    )
    model = model_of(tiny_model_config, True)
    monkeypatch.setattr(model, "_compiled", broken)
    with caplog.at_level(logging.WARNING, "fedhubert.site"):
        found = train(model)
    assert torch.equal(found, expected) and not model.compiled
    (said,) = caplog.messages
    assert "client.compile" in said and "no compiler here" in said


def test_memory_that_runs_out_is_not_taken_for_a_failed_compiler(
    tiny_model_config: ModelConfig,
) -> None:
    model = model_of(tiny_model_config, True)
    sizes: list[int] = []

    def tight(layer: Any, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compiled.apply_layer(layer, x)

    model._compiled = compiled.AS_THEY_ARE._replace(layer=tight)
    train(model)
    assert model.compiled and max(sizes) > 2


def test_crops_have_few_lengths_the_same_for_all_clients() -> None:
    rng, data = (
        np.random.default_rng(0),
        DataConfig(min_seconds=1.0, max_seconds=8.0, batch_seconds=24.0),
    )
    grid = [int(8.0 * 16000 / 1.15**power) for power in range(20)]
    seen: set[int] = set()
    for client in range(3):
        lengths = rng.integers(16000, 12 * 16000, 300)
        plan = BatchPlan(lengths, np.arange(300), data, 0, client, few_lengths=True)
        specs = [plan.batch(position) for position in range(plan.num_batches)]
        seen |= {spec.num_samples for spec in specs}
        for spec in specs:
            usable = np.minimum(lengths[spec.rows], 128000)
            assert (spec.starts + spec.num_samples <= lengths[spec.rows]).all() and (
                spec.num_samples * 1.151 >= usable
            ).all()
        heard = sum(len(spec.rows) * spec.num_samples for spec in specs) / 16000
        assert plan.audio_s(range(plan.num_batches)) == pytest.approx(heard)
        assert sorted(row for spec in specs for row in spec.rows) == list(range(300))
    assert seen <= set(grid) and len(seen) <= 17
