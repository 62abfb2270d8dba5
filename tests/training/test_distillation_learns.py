"""Each distillation objective, alone, teaches: its own loss on held-out audio falls by a fifth and more."""

from typing import Any

import numpy as np
import pytest
import torch

from fedhubert.config import ClientConfig, DistillConfig, ModelConfig, ObjectivesConfig
from fedhubert.data.batching import FRAME_SAMPLES, Batch
from fedhubert.models.frames import num_frames
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.models.masking import MaskSpec, span_mask
from fedhubert.models.student import init_from_teacher
from fedhubert.models.teacher import Teacher
from fedhubert.objectives.distillation import Distillation
from fedhubert.objectives.spec import build_model
from fedhubert.targets.kmeans import assign
from fedhubert.targets.labels import unigram_entropy_nats
from fedhubert.training.local import EvaluationResult, Progress, evaluate, train_locally
from fedhubert.training.teacher_runner import TeacherRunner

CPU = torch.device("cpu")
STEPS, UTTERANCES, SAMPLES, CLUSTERS = 150, 6, 9600, 8


def audio(seed: int) -> torch.Tensor:
    """Sounds of a third of a second with one of four pairs of frequencies, in noise [B, N]."""
    rng = np.random.default_rng(seed)
    pairs_hz = np.array([[300, 2300], [700, 1200], [450, 900], [550, 1800]])
    segment = 16 * FRAME_SAMPLES
    drawn = pairs_hz[rng.integers(0, 4, (UTTERANCES, -(-SAMPLES // segment)))].repeat(
        segment, axis=1
    )[:, :SAMPLES]
    phases = 2 * np.pi * np.cumsum(drawn, axis=1) / 16000
    return torch.from_numpy(
        (0.3 * np.sin(phases).sum(-1) + 0.02 * rng.standard_normal((UTTERANCES, SAMPLES))).astype(
            np.float32
        )
    )


class Lesson:
    """A teacher, its student, and batches with the teacher's k-means labels."""

    def __init__(self, config: ModelConfig, **changes: Any) -> None:
        quiet = {
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "feature_dropout": 0.0,
            "layer_drop": 0.0,
            "label_init": "normal",
        }
        config = config.model_copy(
            update={**quiet, "num_classes": CLUSTERS + 4, "feature_grad_mult": 1.0}
        )
        self.model: HubertModel = build_hubert(config, 0).eval()
        task = DistillConfig(
            feature_penalty=0.0, mask_probability=0.65, mask_length_frames=5, **changes
        )
        teacher = Teacher.cut(config, self.model.state_dict(), task)
        self.task = task.model_copy(
            update={"teacher_model": teacher.config, "teacher_sha256": teacher.key}
        )
        self.student = build_model(
            config.model_copy(update={"embed_dim": 32, "num_layers": 1, "ffn_dim": 64}),
            self.task,
            seed=1,
        )
        init_from_teacher(self.student, teacher.state, self.task)
        self.objective = Distillation(self.task, TeacherRunner(teacher, self.task, CPU))
        features = self.features(audio(10_000))
        rng = np.random.default_rng(0)
        self.mean, self.scale = features.mean(0), features.std(0)
        self.centroids = ((features - self.mean) / self.scale)[
            rng.choice(len(features), CLUSTERS, replace=False)
        ]

    def features(self, waveforms: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.model.extract_features(waveforms)[-1].flatten(0, 1).numpy()

    def batch(self, position: int) -> Batch:
        waveforms, frames = audio(position), num_frames(SAMPLES)
        labels = assign(
            ((self.features(waveforms) - self.mean) / self.scale).astype(np.float32), self.centroids
        )[0]
        mask = span_mask(UTTERANCES, frames, MaskSpec(0.65, 5, 2), np.random.default_rng(position))
        return Batch(
            waveforms,
            torch.from_numpy(labels.astype(np.int64)).view(UTTERANCES, frames),
            torch.from_numpy(mask),
            position,
        )

    def held_out(self) -> EvaluationResult:
        batches = iter([self.batch(20_000), self.batch(20_001), self.batch(20_002)])
        return evaluate(self.student, batches, task=self.task, device=CPU, objective=self.objective)

    def train(self) -> None:
        train_locally(
            self.student,
            (self.batch(position) for position in range(STEPS)),
            client=ClientConfig(lr=3e-3, warmup_fraction=0.05),
            task=self.task,
            progress=Progress(1, 1, STEPS),
            seed=0,
            partition=0,
            device=CPU,
            objective=self.objective,
        )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("layers", {"layers": (1, 2)}, marks=pytest.mark.slow),
        ("layers", {"layers": (1, 2), "freeze_conv": True}),
        pytest.param("hints", {"hints": ((1, 1),)}, marks=pytest.mark.slow),
        ("logits", {}),
        pytest.param("pseudo_labels", {}, marks=pytest.mark.slow),
    ],
)
def test_an_objective_alone_lowers_its_own_loss(
    tiny_model_config: ModelConfig, name: str, changes: dict[str, Any]
) -> None:
    lesson = Lesson(
        tiny_model_config, objectives=ObjectivesConfig(**({"layers": 0.0} | {name: 1.0})), **changes
    )
    before = lesson.held_out()
    lesson.train()
    after = lesson.held_out()
    first, last = (
        result.metrics[f"{name}_sum"] / result.metrics[f"{name}_frames"]
        for result in (before, after)
    )
    print(
        f"{name}: {first:.4f} -> {last:.4f}",
        {key: round(value / after.frames, 4) for key, value in after.metrics.items()},
    )
    assert last <= 0.8 * first
    if name == "pseudo_labels":  # below what the labels' frequencies alone would give
        labels = torch.cat(
            [
                lesson.batch(position).labels_BT[lesson.batch(position).mask_BT]
                for position in (20_000, 20_001, 20_002)
            ]
        )
        assert last < 0.8 * unigram_entropy_nats(torch.bincount(labels).numpy())
    if "cosine_distance_sum" in after.metrics:
        assert after.metrics["cosine_distance_sum"] <= 0.8 * before.metrics["cosine_distance_sum"]
        assert after.metrics["error_energy_sum"] <= 0.8 * before.metrics["error_energy_sum"]
