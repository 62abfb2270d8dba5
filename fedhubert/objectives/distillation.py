"""What a student learns from a frozen teacher that hears the unmasked audio.

``layers``         teacher layers from the student's last one, each through a linear head: L1, -log sigmoid of the cosine (DistilHuBERT, 2110.01900)
``hints``          teacher layers from the student's own, each through a linear head: mean squared error (FitNets, 1412.6550)
``logits``         the teacher's distribution over clusters on masked frames: Kullback-Leibler divergence at a temperature (1503.02531)
``pseudo_labels``  HuBERT's own loss on k-means targets of the teacher (DiceHuBERT, 2507.02911)

``layers`` and ``hints`` see the unmasked student on all frames, the other two the masked student on
masked frames. Each is a sum over its frames.

Shape suffixes: B batch, T 50-Hz frames, M masked frames, D the teacher's width, C classes.
"""  # noqa: E501

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhubert.config import NUM_SPECIAL_ROWS, DistillConfig, MaskedTask, ModelConfig
from fedhubert.errors import ConfigError
from fedhubert.models.heads import at_least_float32
from fedhubert.models.hubert import HubertModel, HubertOutput, build_hubert
from fedhubert.models.masking import pick
from fedhubert.models.student import add_heads, init_from_teacher
from fedhubert.models.teacher import TaughtTask
from fedhubert.objectives.masked_prediction import check_labels, score_masked
from fedhubert.objectives.objective import (
    LabelledBatch,
    Objective,
    TeacherOutput,
    TeacherSource,
    ratio,
)
from fedhubert.objectives.spec import ObjectiveSpec, register

Sums = dict[str, Tensor | int]


@dataclass(frozen=True)
class DistillTerms:
    """Sums over a batch (see :class:`fedhubert.objectives.objective.Terms`).

    ``frames`` are all frames, or the masked ones if only objectives on masked frames are active.
    ``sums`` holds ``loss_sum`` (the weighted objectives, without the feature penalty) and
    ``frames``; ``NAME_sum`` and ``NAME_frames`` of every objective, unweighted; ``correct`` with
    ``pseudo_labels``; and the distance to the teacher over all predicted layers (see
    :func:`distance`).
    """

    loss_sum: Tensor
    frames: int
    sums: Mapping[str, Tensor | int]


class Distillation:
    """The weighted objectives of a task, for a student of :meth:`DistillationSpec.build_model`.

    In a mixture each objective counts by its mean over its own frames: a masked frame weighs
    (frames of the batch) / (masked frames of the batch). All rows of a batch have equally many
    masked frames, so pieces of a batch add up to the same sum.
    """

    def __init__(self, task: DistillConfig, teacher: TeacherSource) -> None:
        self.task, self.teacher = task, teacher

    def __call__(self, model: HubertModel, batch: LabelledBatch, /) -> DistillTerms:
        """Run the teacher and the student (once unmasked, once masked, as far as objectives need
        it) on ``batch``.

        Raises:
            TargetsError: ``pseudo_labels`` without labels for the batch.
        """
        if self.task.needs_labels:
            check_labels(batch)
        taught = self.teacher(batch.waveforms_BN)
        conv_BTD = (
            model.convolve(batch.waveforms_BN) if taught.conv_BTD is None else taught.conv_BTD
        )
        x_BTD = model.project(conv_BTD)
        losses: dict[str, Tensor] = {}
        sums: Sums = {}
        if self.task.teacher_layers:
            self._unmasked(model, x_BTD, taught, losses, sums)
        if self.task.predicts_masked:
            hidden_BTD, _ = model.transform(model.apply_mask(x_BTD, batch.mask_BT))
            self._masked(
                model.predict(hidden_BTD, batch.places, conv_BTD), batch, taught, losses, sums
            )
        return self._weighted(losses, sums, batch.mask_BT)

    def _unmasked(
        self,
        model: HubertModel,
        x_BTD: Tensor,
        taught: TeacherOutput,
        losses: dict[str, Tensor],
        sums: Sums,
    ) -> None:
        heads = model.get_submodule("distill_heads")
        last_BTD, kept = model.transform(x_BTD, {student for student, _ in self.task.hint_heads})
        layers = [
            (heads.get_submodule(f"layers.{layer}")(last_BTD), taught.layers[layer])
            for layer in self.task.layer_heads
        ]
        hints = [
            (heads.get_submodule(f"hints.{student}-{layer}")(kept[student]), taught.layers[layer])
            for student, layer in self.task.hint_heads
        ]
        frames = x_BTD.shape[0] * x_BTD.shape[1]
        if layers:
            losses["layers"] = torch.stack(
                [layer_loss(ours, theirs, self.task.cosine_weight) for ours, theirs in layers]
            ).mean()
            sums["layers_frames"] = frames
        if hints:
            losses["hints"] = torch.stack(
                [hint_loss(ours, theirs) for ours, theirs in hints]
            ).mean()
            sums["hints_frames"] = frames
        sums |= distance(layers + hints)

    def _masked(
        self,
        output: HubertOutput,
        batch: LabelledBatch,
        taught: TeacherOutput,
        losses: dict[str, Tensor],
        sums: Sums,
    ) -> None:
        masked_frames = len(output.logits_MC)
        if self.task.objectives.logits > 0.0:
            assert taught.logits_BTC is not None
            theirs_MC = pick(taught.logits_BTC, batch.places.masked_M)
            losses["logits"] = logit_loss(output.logits_MC, theirs_MC, self.task.temperature)
            sums["logits_frames"] = masked_frames
        if self.task.needs_labels:
            penalty = 0.0 if self.task.freeze_conv else self.task.feature_penalty
            terms = score_masked(output, batch, penalty)
            losses["pseudo_labels"] = terms.loss_sum
            sums |= {
                "pseudo_labels_sum": terms.cross_entropy_sum,
                "pseudo_labels_frames": masked_frames,
                "correct": terms.correct,
            }

    def _weighted(self, losses: dict[str, Tensor], sums: Sums, mask_BT: Tensor) -> DistillTerms:
        own = {name: int(sums[f"{name}_frames"]) for name in losses}
        frames = mask_BT.numel() if self.task.teacher_layers else max(own.values())
        total, reported = None, 0.0
        for name, loss in losses.items():
            weight = getattr(self.task.objectives, name) * (
                frames / own[name] if own[name] else 0.0
            )
            weighted = loss if weight == 1.0 else loss * weight
            total = weighted if total is None else total + weighted
            sums.setdefault(f"{name}_sum", loss.detach())
            reported = reported + sums[f"{name}_sum"] * weight
        assert total is not None
        assert isinstance(reported, Tensor)
        return DistillTerms(total, frames, {"loss_sum": reported, "frames": frames, **sums})


def layer_loss(ours_BTD: Tensor, theirs_BTD: Tensor, cosine_weight: float) -> Tensor:
    """Return DistilHuBERT's loss summed over frames: mean absolute difference, plus
    ``cosine_weight`` times -log sigmoid of the cosine."""
    ours_BTD = at_least_float32(ours_BTD)
    absolute = F.l1_loss(ours_BTD, theirs_BTD, reduction="none").mean(-1).sum()
    return (
        absolute
        - cosine_weight * F.logsigmoid(F.cosine_similarity(ours_BTD, theirs_BTD, dim=-1)).sum()
    )


def hint_loss(ours_BTD: Tensor, theirs_BTD: Tensor) -> Tensor:
    """Return the mean squared difference of each frame, summed over frames."""
    return F.mse_loss(at_least_float32(ours_BTD), theirs_BTD, reduction="none").mean(-1).sum()


def logit_loss(ours_MC: Tensor, theirs_MC: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) over the clusters at ``temperature``, times its square
    (1503.02531), summed over frames, in nats.

    The special rows, which no frame is ever labelled with, are left out.
    """
    ours = F.log_softmax(ours_MC[:, NUM_SPECIAL_ROWS:] / temperature, dim=-1)
    theirs = F.log_softmax(theirs_MC[:, NUM_SPECIAL_ROWS:] / temperature, dim=-1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2


def distance(pairs: list[tuple[Tensor, Tensor]]) -> Sums:
    """Return how far predictions [B, T, D] are from the teacher's layers, in sums over frames.

    ``cosine_distance_sum``: 1 - cosine, mean over the pairs. ``error_energy_sum`` and
    ``teacher_energy_sum``: squared L2 norms of the difference and of the teacher; the root of their
    quotient is the relative L2 distance.
    """
    with torch.no_grad():
        pairs = [(at_least_float32(ours), theirs) for ours, theirs in pairs]
        return {
            "cosine_distance_sum": torch.stack(
                [(1.0 - F.cosine_similarity(*pair, dim=-1)).sum() for pair in pairs]
            ).mean(),
            "error_energy_sum": torch.stack(
                [(ours - theirs).pow(2).sum() for ours, theirs in pairs]
            ).sum(),
            "teacher_energy_sum": torch.stack([theirs.pow(2).sum() for _, theirs in pairs]).sum(),
        }


@register("distill")
class DistillationSpec(ObjectiveSpec):
    """A student of a frozen teacher. Crops stay the same, so that what the teacher says of them can
    be kept."""

    fixed_crops = True
    words: ClassVar[Mapping[str, str]] = {
        "loss": "loss",
        "masked_accuracy": "accuracy",
        "cosine_distance": "distance",
    }

    def __init__(self, task: MaskedTask) -> None:
        super().__init__(task)
        assert isinstance(task, DistillConfig)
        self.settings = task

    @property
    def taught(self) -> TaughtTask:
        return self.settings

    @property
    def sum_names(self) -> tuple[str, ...]:
        task = self.settings
        used = {
            "layers": bool(task.layer_heads),
            "hints": bool(task.hint_heads),
            "logits": task.objectives.logits > 0.0,
            "pseudo_labels": task.needs_labels,
        }
        own = [f"{name}_{what}" for name in used if used[name] for what in ("sum", "frames")]
        distances = ("cosine_distance_sum", "error_energy_sum", "teacher_energy_sum")
        return (
            *("loss_sum", "frames", *own),
            *(distances if task.teacher_layers else ()),
            *(("correct",) if task.needs_labels else ()),
        )

    def build_model(self, config: ModelConfig, seed: int) -> HubertModel:
        model = build_hubert(config, seed)
        add_heads(model, self.settings, seed)
        return model

    def init_from_teacher(self, model: HubertModel, state: Mapping[str, Tensor]) -> list[str]:
        return init_from_teacher(model, state, self.settings)

    def loss(self, teacher: TeacherSource | None = None) -> Objective:
        if teacher is None:
            raise ConfigError("a distillation needs its teacher", setting="task.teacher")
        return Distillation(self.settings, teacher)

    def combine(self, sums: Mapping[str, float]) -> dict[str, object]:
        """Return ``loss`` (of all weighted objectives) per frame, ``frames``; ``objectives``, each
        one's mean over its own frames; where layers are predicted ``cosine_distance`` (mean over
        frames of 1 - cosine) and ``relative_l2``, both against the teacher; ``masked_accuracy``
        where pseudo-labels are."""
        figures: dict[str, object] = {
            "loss": ratio(sums["loss_sum"], sums["frames"]),
            "frames": int(sums["frames"]),
        }
        names = [name.removesuffix("_frames") for name in sums if name.endswith("_frames")]
        figures["objectives"] = {
            name: ratio(sums[f"{name}_sum"], sums[f"{name}_frames"]) for name in names
        }
        if "cosine_distance_sum" in sums:
            frames = max(sums.get("layers_frames", 0), sums.get("hints_frames", 0))
            figures["cosine_distance"] = ratio(sums["cosine_distance_sum"], frames)
            figures["relative_l2"] = math.sqrt(
                sums["error_energy_sum"] / max(sums["teacher_energy_sum"], 1e-30)
            )
        if "correct" in sums:
            figures["masked_accuracy"] = ratio(sums["correct"], sums["pseudo_labels_frames"])
        return figures
