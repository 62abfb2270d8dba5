"""The teacher on a site: bits that depend on the crop alone, a cache that changes nothing but time, and the cache's limits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.config import ClientConfig, DataConfig, DistillConfig, ModelConfig, ObjectivesConfig
from fedhubert.data.batching import Batch, BatchPlan
from fedhubert.disk_cache import DiskCache
from fedhubert.errors import TrainingError
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import build_hubert
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.models.student import init_from_teacher
from fedhubert.models.teacher import Teacher
from fedhubert.objectives.distillation import Distillation
from fedhubert.objectives.spec import build_model
from fedhubert.training.local import LocalResult, Progress, train_locally
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.teacher_runner import TeacherRunner

CPU = torch.device("cpu")


def batch_of(seed: int, utterances: int = 3, num_samples: int = 6400) -> Batch:
    rng = np.random.default_rng(seed)
    frames = num_frames(num_samples)
    return Batch(
        torch.from_numpy(rng.standard_normal((utterances, num_samples), dtype=np.float32)),
        torch.from_numpy(rng.integers(0, 100, (utterances, frames))),
        torch.from_numpy(span_mask(utterances, frames, MaskSpec(0.65, 5, 2), rng)),
        seed,
    )


def teaching(
    config: ModelConfig, cache: DiskCache | None = None, **changes: Any
) -> tuple[DistillConfig, Teacher, TeacherRunner]:
    task = DistillConfig(**({"layers": (1, 2)} | changes))
    teacher = Teacher.cut(config, build_hubert(config, 0).state_dict(), task)
    task = task.model_copy(update={"teacher_model": teacher.config, "teacher_sha256": teacher.key})
    return task, teacher, TeacherRunner(teacher, task, CPU, cache)


def test_a_crops_bits_do_not_depend_on_its_batch(tiny_model_config: ModelConfig) -> None:
    _, _, teacher = teaching(tiny_model_config, objectives=ObjectivesConfig(logits=1.0))
    waveforms = batch_of(0, 5).waveforms_BN
    together, alone, pair = teacher(waveforms), teacher(waveforms[2:3]), teacher(waveforms[[4, 2]])
    for layer in (1, 2):
        assert torch.equal(together.layers[layer][2], alone.layers[layer][0])
        assert torch.equal(together.layers[layer][2], pair.layers[layer][1])
    assert together.logits_BTC is not None and alone.logits_BTC is not None
    assert torch.equal(together.logits_BTC[2], alone.logits_BTC[0])
    assert torch.equal(together.layers[1], together.layers[1].half().float())


def test_outputs_are_the_teachers_rounded(tiny_model_config: ModelConfig) -> None:
    _, _, teacher = teaching(
        tiny_model_config, freeze_conv=True, objectives=ObjectivesConfig(logits=1.0)
    )
    model, waveforms = build_hubert(tiny_model_config, 0).eval(), batch_of(0, 1).waveforms_BN
    output = teacher(waveforms)
    with torch.no_grad():
        for layer, features in enumerate(model.extract_features(waveforms), start=1):
            assert torch.equal(output.layers[layer], features.half().float())
        assert output.conv_BTD is not None and torch.equal(
            output.conv_BTD, model.convolve(waveforms).half().float()
        )
        assert output.logits_BTC is not None and torch.equal(
            output.logits_BTC[0], model(waveforms).logits_MC.half().float()
        )


def test_an_output_that_float16_cannot_hold_is_an_error(tiny_model_config: ModelConfig) -> None:
    _, _, teacher = teaching(tiny_model_config)
    teacher.model.wav2vec2.encoder.transformer.layers[1].final_layer_norm.weight.fill_(1e6)
    with pytest.raises(TrainingError, match=r"layer\.2.*float16"):
        teacher(batch_of(0).waveforms_BN)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_student_in_lower_precision_is_told_the_same(
    tiny_model_config: ModelConfig, tmp_path: Path, precision: str
) -> None:
    """Under autocast torch refuses to stack the teacher's float16 with the other kind."""
    everything = {
        "hints": ((1, 1),),
        "objectives": ObjectivesConfig(layers=1.0, hints=1.0, logits=1.0, pseudo_labels=1.0),
        "freeze_conv": True,
    }
    cache = DiskCache(tmp_path, 10**9)
    expected = train(tiny_model_config, None, **everything)[1]
    for source in (None, cache, cache):
        found = train(tiny_model_config, source, precision, **everything)[1]
        for name in ("layers_sum", "hints_sum", "logits_sum", "pseudo_labels_sum"):
            assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=0.03)


def train(
    config: ModelConfig, cache: DiskCache | None, precision: str = "fp32", **changes: Any
) -> tuple[torch.Tensor, LocalResult, TeacherRunner]:
    task, teacher, source = teaching(config, cache, **changes)
    student = build_model(
        config.model_copy(update={"embed_dim": 32, "num_layers": 1, "ffn_dim": 64}), task, seed=1
    )
    init_from_teacher(student, teacher.state, task)
    result = train_locally(
        student,
        iter([batch_of(seed) for seed in (0, 1, 0, 1)]),
        client=ClientConfig(lr=1e-3, precision=precision),
        task=task,
        progress=Progress(1, 1, 4),
        seed=0,
        partition=0,
        device=CPU,
        objective=Distillation(task, source),
    )
    return ParameterLayout.of(student).to_vector(student), result, source


@pytest.mark.parametrize("freeze_conv", [False, True])
def test_the_cache_changes_nothing_but_what_is_computed(
    tiny_model_config: ModelConfig, tmp_path: Path, freeze_conv: bool
) -> None:
    settings: dict[str, Any] = {
        "freeze_conv": freeze_conv,
        "objectives": ObjectivesConfig(hints=1.0, logits=1.0),
        "hints": ((1, 2),),
    }
    without, plain, live = train(tiny_model_config, None, **settings)
    filled, first, filling = train(tiny_model_config, DiskCache(tmp_path, 10**9), **settings)
    again, second, reading = train(tiny_model_config, DiskCache(tmp_path, 10**9), **settings)
    assert (live.computed, filling.computed, reading.computed) == (12, 6, 0)
    assert torch.equal(without, filled) and torch.equal(without, again)
    assert plain.metrics == first.metrics == second.metrics
    other = train(
        tiny_model_config, DiskCache(tmp_path, 10**9), **settings, teacher_precision="bf16"
    )[2]
    assert other.computed == 6  # another precision is another output


def test_with_frozen_convolutions_the_student_never_runs_them(
    tiny_model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, teacher, source = teaching(tiny_model_config, freeze_conv=True)
    student = build_model(tiny_model_config, task, seed=1)
    init_from_teacher(student, teacher.state, task)
    monkeypatch.setattr(
        student, "convolve", lambda waveforms: pytest.fail("the student's convolutions ran")
    )
    assert Distillation(task, source)(student, batch_of(0)).frames > 0


def test_fixed_crops_are_the_same_in_every_epoch() -> None:
    lengths = np.random.default_rng(0).integers(16000, 60000, 50)
    data = DataConfig(min_seconds=1.0, max_seconds=2.0, batch_seconds=8.0)
    plan = BatchPlan(lengths, np.arange(50), data, seed=0, partition=3, fixed_crops=True)
    crops: dict[int, set[tuple[int, int]]] = {}
    orders = []
    for epoch in range(3):
        specs = [plan.batch(epoch * plan.num_batches + index) for index in range(plan.num_batches)]
        orders.append([row for spec in specs for row in spec.rows.tolist()])
        for spec in specs:
            for row, start in zip(spec.rows.tolist(), spec.starts.tolist(), strict=True):
                crops.setdefault(row, set()).add((start, spec.num_samples))
                assert start % 320 == 0 and start + spec.num_samples <= lengths[row]
    assert len(crops) == 50 and all(len(seen) == 1 for seen in crops.values())
    assert orders[0] != orders[1]
    starts = {start for row, seen in crops.items() for start, _ in seen if lengths[row] > 40000}
    assert len(starts) > 5  # not all at the beginning
    kept = sum(samples for seen in crops.values() for _, samples in seen) / sum(
        np.minimum(lengths, 32000)
    )
    assert kept > 0.85
