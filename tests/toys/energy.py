"""A toy objective in one file: tell how loud masked frames are. It needs no labels and no teacher,
and gives the model a head of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedhubert.config import MaskedTask, ModelConfig
from fedhubert.config.base import Positive
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.objectives.objective import LabelledBatch, Objective, TeacherSource, ratio
from fedhubert.objectives.spec import ObjectiveSpec, register, register_task


@register_task
class EnergyTask(MaskedTask):
    """``scale``: what the energy, in nepers, is divided by."""

    name: Literal["energy"] = "energy"
    scale: Positive = 1.0

    @property
    def needs_labels(self) -> bool:
        return False


@dataclass(frozen=True)
class EnergyTerms:
    """See :class:`fedhubert.objectives.objective.Terms`."""

    loss_sum: Tensor
    frames: int

    @property
    def sums(self) -> Mapping[str, Tensor | int]:
        return {"square_sum": self.loss_sum.detach(), "energy_frames": self.frames}


@register("energy")
class Energy(ObjectiveSpec):
    """Mean squared error of the log energy of masked frames."""

    counted = "energy_frames"

    def build_model(self, config: ModelConfig, seed: int) -> HubertModel:
        model = build_hubert(config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model.energy_head = nn.Linear(config.embed_dim, 1)
        model.logit_generator.requires_grad_(False)
        return model

    def loss(self, teacher: TeacherSource | None = None) -> Objective:
        scale = self.task.model_dump()["scale"]

        def energy(model: HubertModel, batch: LabelledBatch) -> EnergyTerms:
            x_BTD = model.project(model.convolve(batch.waveforms_BN))
            hidden_BTD, _ = model.transform(model.apply_mask(x_BTD, batch.mask_BT))
            found_M = model.get_submodule("energy_head")(hidden_BTD[batch.mask_BT])[:, 0]
            power_BT = nn.functional.adaptive_avg_pool1d(
                batch.waveforms_BN.square(), batch.mask_BT.shape[1]
            )
            wanted_M = power_BT[batch.mask_BT].add(1e-6).log() / scale
            return EnergyTerms((found_M - wanted_M).square().sum(), len(found_M))

        return energy

    def combine(self, sums: Mapping[str, float]) -> dict[str, Any]:
        return {
            "loss": ratio(sums["square_sum"], sums["energy_frames"]),
            "energy_frames": int(sums["energy_frames"]),
        }
