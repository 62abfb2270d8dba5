"""Distillation objectives: by hand, against s3prl's and torch's formulas, and their sums over batches and pieces."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedhubert.config import DistillConfig, ModelConfig, ObjectivesConfig
from fedhubert.data.batching import Batch
from fedhubert.errors import TargetsError
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.models.teacher import Teacher
from fedhubert.objectives.distillation import (
    Distillation,
    distance,
    hint_loss,
    layer_loss,
    logit_loss,
)
from fedhubert.objectives.masked_prediction import masked_prediction
from fedhubert.objectives.objective import TeacherOutput
from fedhubert.objectives.spec import build_model

QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "feature_dropout": 0.0, "layer_drop": 0.0}
ALL = {"layers": 1.0, "hints": 0.5, "logits": 2.0, "pseudo_labels": 0.25}


def batch_of(utterances: int = 3, num_samples: int = 8000, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    frames = num_frames(num_samples)
    return Batch(
        torch.from_numpy(rng.standard_normal((utterances, num_samples), dtype=np.float32)),
        torch.from_numpy(rng.integers(0, 100, (utterances, frames))),
        torch.from_numpy(span_mask(utterances, frames, MaskSpec(0.65, 5, 2), rng)),
        0,
    )


class LiveTeacher:
    """The teacher as it is: no rounding, the whole batch at once."""

    def __init__(self, model: HubertModel, layers: tuple[int, ...]) -> None:
        self.model, self.layers = model.eval(), layers

    def __call__(self, waveforms_BN: Tensor) -> TeacherOutput:
        with torch.no_grad():
            features = self.model.extract_features(waveforms_BN)
            logits = self.model(waveforms_BN).logits_MC
        return TeacherOutput(
            {layer: features[layer - 1] for layer in self.layers},
            logits.view(len(waveforms_BN), -1, logits.shape[-1]),
        )


@pytest.fixture()
def teacher(tiny_model_config: ModelConfig) -> HubertModel:
    return build_hubert(tiny_model_config.model_copy(update=QUIET), 0).eval()


def setting(
    teacher: HubertModel, objectives: dict[str, float], **changes: Any
) -> tuple[HubertModel, Distillation]:
    task = DistillConfig(
        objectives=ObjectivesConfig(**({"layers": 0.0} | objectives)),
        **({"layers": (1, 2), "hints": ((1, 2),)} | changes),
    )
    cut = Teacher.cut(teacher.config, teacher.state_dict(), task)
    task = task.model_copy(update={"teacher_model": cut.config})
    student = build_model(
        teacher.config.model_copy(update={"embed_dim": 32, "num_layers": 1, "ffn_dim": 64}),
        task,
        seed=1,
    )
    return student, Distillation(task, LiveTeacher(teacher, (1, 2)))


def test_layer_loss_by_hand() -> None:
    ours, theirs = (
        torch.tensor([[[3.0, 4.0], [1.0, 0.0]]]),
        torch.tensor([[[4.0, 3.0], [0.0, -2.0]]]),
    )
    first = (1 + 1) / 2 + math.log1p(math.exp(-24 / 25))
    second = (1 + 2) / 2 + math.log1p(math.exp(0.0))
    assert float(layer_loss(ours, theirs, 1.0)) == pytest.approx(first + second, rel=1e-6)
    assert float(layer_loss(ours, theirs, 0.0)) == pytest.approx(2.5, rel=1e-6)


def test_layer_loss_is_s3prls_distiller() -> None:
    """s3prl's: feat_pred and feat_tar [B, layers, T, D], mean L1 plus cosine_loss * mean of -logsigmoid(cosine)."""
    ours, theirs = torch.randn(2, 3, 7, 16), torch.randn(2, 3, 7, 16)
    reference = (
        F.l1_loss(ours, theirs) - F.logsigmoid(F.cosine_similarity(ours, theirs, dim=-1)).mean()
    )
    mine = (
        torch.stack(
            [layer_loss(ours[:, layer], theirs[:, layer], 1.0) for layer in range(3)]
        ).mean()
        / 14
    )
    assert float(mine) == pytest.approx(float(reference), rel=1e-5)


def test_hint_loss_by_hand() -> None:
    assert float(
        hint_loss(
            torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[2.0, 4.0], [0.0, 1.0]]])
        )
    ) == pytest.approx(2.5 + 0.5)


def test_logit_loss_is_the_divergence_over_clusters_at_a_temperature() -> None:
    ours, theirs, temperature = torch.randn(5, 12), torch.randn(5, 12), 2.5
    expected = 0.0
    for mine, taught in zip(
        ours.double().numpy()[:, 4:], theirs.double().numpy()[:, 4:], strict=True
    ):
        q, p = np.exp(mine / temperature), np.exp(taught / temperature)
        q, p = q / q.sum(), p / p.sum()
        expected += temperature**2 * float((p * np.log(p / q)).sum())
    assert float(logit_loss(ours, theirs, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(logit_loss(theirs, theirs, temperature)) == pytest.approx(0.0, abs=1e-5)


def test_distance_by_hand() -> None:
    figures = distance(
        [
            (torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])),
            (torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])),
        ]
    )
    assert float(figures["cosine_distance_sum"]) == pytest.approx((1 - 24 / 25 + 1) / 2)
    assert (float(figures["error_energy_sum"]), float(figures["teacher_energy_sum"])) == (7.0, 29.0)


def test_pseudo_labels_alone_are_huberts_own_loss(teacher: HubertModel) -> None:
    student, objective = setting(teacher, {"pseudo_labels": 1.0})
    batch = batch_of()
    terms, reference = objective(student, batch), masked_prediction(student, batch, objective.task)
    assert torch.equal(terms.loss_sum, reference.loss_sum)
    assert terms.frames == reference.masked_frames == terms.sums["pseudo_labels_frames"]
    assert (
        terms.sums["pseudo_labels_sum"] == reference.cross_entropy_sum
        and terms.sums["correct"] == reference.correct
    )
    with pytest.raises(TargetsError, match="no pseudo-labels"):
        objective(student, Batch(batch.waveforms_BN, None, batch.mask_BT, 0))


def test_every_objective_is_what_a_straightforward_reference_says(teacher: HubertModel) -> None:
    student, objective = setting(
        teacher, ALL, cosine_weight=0.7, temperature=2.0, feature_penalty=3.0
    )
    student.train()
    batch = batch_of()
    terms = objective(student, batch)
    heads: Any = student.distill_heads
    features = student.extract_features(batch.waveforms_BN)
    theirs = teacher.extract_features(batch.waveforms_BN)
    layers = 0.0
    for layer in (1, 2):
        predicted = heads["layers"][str(layer)](features[-1])
        cosine = F.cosine_similarity(predicted, theirs[layer - 1], dim=-1)
        layers = (
            layers
            + ((predicted - theirs[layer - 1]).abs().mean(-1) - 0.7 * F.logsigmoid(cosine)).mean()
            / 2
        )
    hints = (heads["hints"]["1-2"](features[0]) - theirs[1]).pow(2).mean()
    output = student(batch.waveforms_BN, batch.mask_BT)
    taught = teacher(batch.waveforms_BN).logits_MC.view(*batch.mask_BT.shape, -1)[batch.mask_BT]
    logits = 4.0 * F.kl_div(
        (output.logits_MC[:, 4:] / 2).log_softmax(-1),
        (taught[:, 4:] / 2).softmax(-1),
        reduction="batchmean",
    )
    assert batch.labels_BT is not None
    pseudo = F.cross_entropy(output.logits_MC, batch.labels_BT[batch.mask_BT] + 4)
    total = layers + 0.5 * hints + 2 * logits + 0.25 * (pseudo + 3.0 * output.conv_power)
    assert terms.frames == batch.mask_BT.numel()
    assert float(terms.loss_sum / terms.frames) == pytest.approx(float(total), rel=1e-5)
    for name, mean in (
        ("layers", layers),
        ("hints", hints),
        ("logits", logits),
        ("pseudo_labels", pseudo),
    ):
        assert float(terms.sums[f"{name}_sum"]) / int(
            terms.sums[f"{name}_frames"]
        ) == pytest.approx(float(mean), rel=1e-5)
    assert float(terms.sums["loss_sum"]) / terms.frames == pytest.approx(
        float(total) - 0.75 * float(output.conv_power), rel=1e-5
    )


@pytest.mark.parametrize("objectives", [{name: 1.0} for name in ALL] + [ALL])
def test_pieces_of_a_batch_add_up(teacher: HubertModel, objectives: dict[str, float]) -> None:
    student, objective = setting(teacher, objectives)
    batch = batch_of(4)
    whole, pieces = (
        objective(student, batch),
        [objective(student, piece) for piece in batch.split(3)],
    )
    assert whole.frames == sum(piece.frames for piece in pieces)
    assert float(sum(piece.loss_sum for piece in pieces)) == pytest.approx(
        float(whole.loss_sum), rel=1e-5
    )
    for name, value in whole.sums.items():
        assert float(sum(piece.sums[name] for piece in pieces)) == pytest.approx(
            float(value), rel=1e-4
        ), name


@pytest.mark.parametrize("objectives", [{name: 1.0} for name in ALL] + [ALL])
def test_every_parameter_that_travels_has_a_gradient_and_no_other(
    teacher: HubertModel, objectives: dict[str, float]
) -> None:
    student, objective = setting(teacher, objectives)
    objective(student, batch_of()).loss_sum.backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_shared_frozen_convolutions_come_from_the_teacher(teacher: HubertModel) -> None:
    student, objective = setting(teacher, {"layers": 1.0}, freeze_conv=True)
    live = objective.teacher
    conv = torch.randn(2, num_frames(8000), 32)

    def with_conv(waveforms: Tensor) -> TeacherOutput:
        return TeacherOutput(live(waveforms).layers, None, conv)

    objective.teacher = with_conv
    batch = batch_of(2)
    terms = objective(student, batch)
    hidden, _ = student.transform(student.project(conv))
    expected = layer_loss(
        student.get_submodule("distill_heads.layers.1")(hidden),
        live(batch.waveforms_BN).layers[1],
        1.0,
    )
    other = layer_loss(
        student.get_submodule("distill_heads.layers.2")(hidden),
        live(batch.waveforms_BN).layers[2],
        1.0,
    )
    assert float(terms.loss_sum) == pytest.approx(float((expected + other) / 2), rel=1e-5)
