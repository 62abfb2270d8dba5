"""Students: their sizes, what they take over from the teacher, what they refuse, and what of them travels."""

from typing import Any

import pytest
import torch

from fedhubert.compose import compose
from fedhubert.config import DistillConfig, ModelConfig, ObjectivesConfig
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.models.hubert import HubertModel, build_hubert, encoder_parameters
from fedhubert.models.student import HEADS, init_from_teacher
from fedhubert.models.teacher import Teacher
from fedhubert.objectives.spec import build_model
from fedhubert.training.parameters import ParameterLayout

STUDENT = {"embed_dim": 32, "num_layers": 1, "ffn_dim": 64}


def task_of(config: ModelConfig, **changes: Any) -> DistillConfig:
    objectives = ObjectivesConfig(**changes.pop("objectives", {"layers": 1.0}))
    state = build_hubert(config, 0).state_dict()
    task = DistillConfig(objectives=objectives, **({"layers": (1, 2)} | changes))
    return task.model_copy(update={"teacher_model": Teacher.cut(config, state, task).config})


def student_of(config: ModelConfig, task: DistillConfig, **changes: Any) -> HubertModel:
    return build_model(config.model_copy(update=STUDENT | changes), task, seed=1)


@pytest.mark.parametrize(
    ("name", "parameters", "ratio"),
    [
        ("student_384x6", 16_226_176, 5.8),
        ("student_384x10", 23_324_032, 4.0),
        ("student_768x2", 23_492_224, 4.0),
        ("student_fast", 12_558_464, 7.5),
    ],
)
def test_shipped_students_have_the_stated_sizes(name: str, parameters: int, ratio: float) -> None:
    model = build_hubert(compose([f"model={name}", "targets.num_clusters=500"]).model, seed=0)
    assert encoder_parameters(model) == parameters
    assert 94_370_944 / parameters == pytest.approx(ratio, abs=0.06)


def test_heads_travel_and_what_is_not_trained_does_not(tiny_model_config: ModelConfig) -> None:
    model = student_of(tiny_model_config, task_of(tiny_model_config))
    layout = ParameterLayout.of(model)
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    assert shapes[f"{HEADS}layers.2.weight"] == (48, 32)
    assert not any(name.startswith(("logit_generator", "mask_generator")) for name in shapes)
    assert any(name.startswith("wav2vec2.feature_extractor") for name in shapes)
    frozen = ParameterLayout.of(
        student_of(tiny_model_config, task_of(tiny_model_config, freeze_conv=True))
    )
    assert set(layout.names) - set(frozen.names) == {
        name for name in shapes if name.startswith("wav2vec2.feature_extractor")
    }
    masked = ParameterLayout.of(
        student_of(
            tiny_model_config,
            task_of(tiny_model_config, objectives={"layers": 0.0, "pseudo_labels": 1.0}),
        )
    )
    assert "logit_generator.label_embeddings" in masked.names and not any(
        name.startswith(HEADS) for name in masked.names
    )


def test_a_student_depends_on_configuration_and_seed_alone(tiny_model_config: ModelConfig) -> None:
    task = task_of(tiny_model_config, objectives={"layers": 1.0, "hints": 1.0}, hints=((1, 2),))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (student_of(tiny_model_config, task).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert f"{HEADS}hints.1-2.weight" in first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_convolutions_are_the_teachers(tiny_model_config: ModelConfig) -> None:
    state, task = build_hubert(tiny_model_config, 0).state_dict(), task_of(tiny_model_config)
    model = student_of(tiny_model_config, task)
    names = init_from_teacher(model, state, task)
    assert names and all(name.startswith("wav2vec2.feature_extractor.") for name in names)
    waveforms = torch.randn(1, 4000)
    teacher = build_hubert(tiny_model_config, 0)
    assert torch.equal(model.eval().convolve(waveforms), teacher.eval().convolve(waveforms))


def test_a_student_with_convolutions_of_its_own_takes_nothing_over(
    tiny_model_config: ModelConfig,
) -> None:
    narrow = {"conv_layers": ((8, 10, 5), *[(12, 3, 2)] * 4, *[(16, 2, 2)] * 2)}
    task = task_of(tiny_model_config, init="none", layers=(2,))
    model = student_of(tiny_model_config, task, **narrow)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert init_from_teacher(model, build_hubert(tiny_model_config, 0).state_dict(), task) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    waveforms = torch.randn(2, 6400)
    theirs = build_hubert(tiny_model_config, 0).extract_features(waveforms)[-1]
    assert model.extract_features(waveforms)[-1].shape[:2] == theirs.shape[:2]
    assert "wav2vec2.feature_extractor.conv_layers.0.conv.weight" in ParameterLayout.of(model).names
    with pytest.raises(ConfigError, match=r"task\.init=channels or none"):  # says the remedy
        student_of(tiny_model_config, task_of(tiny_model_config), **narrow)


@pytest.mark.parametrize("init", ["none", "channels"])
def test_convolutions_of_ones_own_cannot_be_the_teachers(init: str) -> None:
    with pytest.raises(ValueError, match=rf"task\.init={init} gives the student others"):
        DistillConfig(init=init, freeze_conv=True, teacher="x").check_model(
            compose(["model=student_fast"]).model, None
        )


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_channels_that_nobody_reads_are_the_ones_left_out(
    tiny_model_config: ModelConfig, norm: str
) -> None:
    """A teacher of which only some channels reach the next layer: the narrow student's features are the teacher's own."""
    narrow = ((8, 10, 5), *[(12, 3, 2)] * 4, *[(16, 2, 2)] * 2)
    teacher_config = tiny_model_config.model_copy(update={"conv_norm": norm})
    teacher, random = build_hubert(teacher_config, 0).eval(), torch.Generator().manual_seed(2)
    layers = teacher.wav2vec2.feature_extractor.conv_layers
    used = [torch.randperm(32, generator=random)[:count].sort().values for count, _, _ in narrow]
    with torch.no_grad():
        for kept, after in zip(used, layers[1:], strict=False):
            unread = torch.ones(32, dtype=torch.bool)
            unread[kept] = False
            after.conv.weight[:, unread] = 0.0
        unread = torch.ones(32, dtype=torch.bool)
        unread[used[-1]] = False
        teacher.wav2vec2.encoder.feature_projection.projection.weight[:, unread] = 0.0
    task = task_of(teacher_config, init="channels", layers=(2,))
    model = student_of(teacher_config, task, conv_layers=narrow).eval()
    names = init_from_teacher(model, teacher.state_dict(), task)
    assert "wav2vec2.encoder.feature_projection.layer_norm.weight" in names
    waveforms = torch.randn(2, 6400, generator=random)
    ours, theirs = model.convolve(waveforms), teacher.convolve(waveforms)
    if norm == "group_norm":  # a norm over channels sees those that nobody reads, too
        assert torch.allclose(ours, theirs[..., used[-1]], atol=1e-5)
    assert ours.shape[-1] == 16 and bool(ours.isfinite().all())


def test_a_prefix_makes_the_student_the_first_layers_of_its_teacher(
    tiny_model_config: ModelConfig,
) -> None:
    task = task_of(tiny_model_config, init="prefix", layers=(2,))
    model = build_model(tiny_model_config.model_copy(update={"num_layers": 1}), task, seed=1)
    teacher = build_hubert(tiny_model_config, 0).eval()
    init_from_teacher(model, teacher.state_dict(), task)
    waveforms = torch.randn(2, 6400)
    assert torch.equal(
        model.eval().extract_features(waveforms)[0], teacher.extract_features(waveforms)[0]
    )


@pytest.mark.parametrize(
    ("student", "changes", "named"),
    [
        (
            {"conv_layers": ((16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2)},
            {},
            "model.conv_layers",
        ),
        ({"conv_norm": "layer_norm"}, {}, "model.conv_norm"),
        (
            {"conv_layers": ((16, 10, 5), *[(16, 3, 2)] * 3, (16, 4, 2), *[(16, 2, 2)] * 2)},
            {"init": "none"},
            "other channels alone",
        ),
        (
            {"conv_layers": ((33, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2)},
            {"init": "channels"},
            "takes some of its",
        ),
        ({"conv_norm": "layer_norm"}, {"init": "channels"}, "model.conv_norm"),
        ({}, {"init": "prefix"}, "model.embed_dim"),
        ({"num_classes": 54}, {"objectives": {"logits": 1.0}}, "targets.num_clusters"),
    ],
)
def test_a_student_that_does_not_fit_is_refused_by_name(
    tiny_model_config: ModelConfig, student: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        student_of(tiny_model_config, task_of(tiny_model_config, **changes), **student)


def test_layers_that_the_teacher_lacks_are_refused(tiny_model_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="layer 3"):
        task_of(tiny_model_config, layers=(1, 3))


def test_a_student_without_a_teacher_is_refused(tiny_model_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"task\.teacher"):
        build_model(tiny_model_config, DistillConfig(), seed=0)


def test_only_what_the_task_needs_of_a_teacher_is_kept(tiny_model_config: ModelConfig) -> None:
    model = build_hubert(tiny_model_config, 0).eval()
    first = Teacher.cut(tiny_model_config, model.state_dict(), DistillConfig(layers=(1,)))
    assert first.config.num_layers == 1
    assert not any(name.startswith("logit_generator") for name in first.state)
    waveforms = torch.randn(1, 5000)
    built = first.build(torch.device("cpu"))
    assert not built.training and not any(
        parameter.requires_grad for parameter in built.parameters()
    )
    assert torch.equal(built.extract_features(waveforms)[0], model.extract_features(waveforms)[0])
    whole = Teacher.cut(
        tiny_model_config,
        model.state_dict(),
        DistillConfig(layers=(1,), objectives=ObjectivesConfig(logits=1.0)),
    )
    assert "logit_generator.label_embeddings" in whole.state and whole.config.num_layers == 2
    assert torch.equal(
        whole.build(torch.device("cpu"))(waveforms).logits_MC, model(waveforms).logits_MC
    )
    assert whole.key != first.key


def test_a_bf16_teacher_says_nearly_the_same(tiny_model_config: ModelConfig) -> None:
    teacher = Teacher.cut(
        tiny_model_config,
        build_hubert(tiny_model_config, 0).state_dict(),
        DistillConfig(layers=(2,)),
    )
    waveforms = torch.randn(1, 8000)
    exact = teacher.build(torch.device("cpu")).extract_features(waveforms)[1]
    rough = (
        teacher.build(torch.device("cpu"), "bf16").extract_features(waveforms.bfloat16())[1].float()
    )
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.03


def test_a_headless_teacher_has_no_logits(tiny_model_config: ModelConfig) -> None:
    encoder = {
        name: tensor
        for name, tensor in build_hubert(tiny_model_config, 0).state_dict().items()
        if name.startswith("wav2vec2.")
    }
    with pytest.raises(CheckpointError, match="cluster head"):
        Teacher.cut(
            tiny_model_config,
            encoder,
            DistillConfig(layers=(1,), objectives=ObjectivesConfig(logits=1.0)),
        )


def test_a_kept_teacher_is_whole_or_absent(tiny_model_config: ModelConfig, tmp_path: Any) -> None:
    teacher = Teacher.cut(
        tiny_model_config,
        build_hubert(tiny_model_config, 0).state_dict(),
        DistillConfig(layers=(1,)),
    )
    assert Teacher.find(tmp_path, teacher.key) is None
    teacher.save(tmp_path)
    found = Teacher.find(tmp_path, teacher.key)
    assert found is not None and found.key == teacher.key
    path = Teacher.file(tmp_path, teacher.key)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert Teacher.find(tmp_path, teacher.key) is None
    path.write_bytes(damaged[: len(damaged) // 2])
    assert Teacher.find(tmp_path, teacher.key) is None
    arrays = {name: tensor.numpy() for name, tensor in teacher.state.items()}
    assert Teacher.received(teacher.config, arrays, teacher.key).key == teacher.key
    with pytest.raises(CheckpointError, match="announced"):
        Teacher.received(teacher.config, arrays, "0" * 64)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Teacher.find(tmp_path, "../../etc/passwd")
