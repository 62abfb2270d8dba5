"""What of a run's configuration clients receive."""

from __future__ import annotations

from typing import Literal

from fedhubert.config.base import Count, Model, NonNegative, PositiveInt
from fedhubert.config.client import ClientConfig, FaultsConfig
from fedhubert.config.data import DataConfig
from fedhubert.config.model import ModelConfig
from fedhubert.config.run import Config
from fedhubert.config.task import DistillConfig, TargetsConfig, Task


class ClientTerms(Model):
    """What a strategy has clients do beside plain local training: see :class:`ClientJob`."""

    proximal_mu: NonNegative = 0.0
    normalise_by_steps: bool = False


class ClientJob(Model):
    """The part of a run's configuration that clients receive: no server path is in it."""

    seed: Count
    num_clients: PositiveInt
    num_rounds: PositiveInt
    weight_by: Literal["frames", "utterances", "uniform"]
    proximal_mu: NonNegative
    normalise_by_steps: bool
    update_codec: Literal["fp32", "bf16", "fp16", "int8"]
    sends_sketches: bool
    data: DataConfig
    model: ModelConfig
    task: Task
    targets: TargetsConfig
    client: ClientConfig
    faults: FaultsConfig

    @property
    def keeps_state(self) -> bool:
        """Whether sites keep something between rounds: a local optimiser, or what a lossy codec left over."""
        return self.client.optimizer_policy == "keep" or self.update_codec == "int8"


def job_with(config: Config, terms: ClientTerms) -> ClientJob:
    """Return what clients need to know of ``config``; ``terms`` are its strategy's."""
    return ClientJob(
        seed=config.seed,
        num_clients=config.federated.num_clients,
        num_rounds=config.federated.num_rounds,
        weight_by=config.federated.weight_by,
        proximal_mu=terms.proximal_mu,
        normalise_by_steps=terms.normalise_by_steps,
        update_codec=config.federated.update_codec,
        sends_sketches=config.sends_sketches,
        data=config.data,
        model=config.model,
        task=config.task.model_copy(update={"teacher": None}) if isinstance(config.task, DistillConfig) else config.task,
        targets=config.targets.model_copy(update={"checkpoint": None}),
        client=config.client,
        faults=config.faults,
    )
