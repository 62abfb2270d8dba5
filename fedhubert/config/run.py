"""Everything that defines a run, and what has to fit together in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Count, Model, NonNegative, PositiveInt
from fedhubert.config.client import BaselineConfig, ClientConfig, FaultsConfig
from fedhubert.config.data import DataConfig
from fedhubert.config.federated import FederatedConfig, PrivacyConfig
from fedhubert.config.model import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.config.task import TargetsConfig, Task, TaskConfig


class SimulationConfig(Model):
    """Size of the single host that plays all clients (``fedhubert train``; ``flwr run`` takes Flower's own options)."""

    num_workers: PositiveInt = 2
    num_gpus: Count | None = None
    gpus_per_client: NonNegative = 0.0
    num_supernodes: PositiveInt | None = None
    ray_address: str | None = None


class CheckpointConfig(Model):
    """Which round checkpoints are written and kept; the last round's always is."""

    every: PositiveInt = 10
    keep_last: PositiveInt = 5
    keep_best: bool = True


class EvaluationConfig(Model):
    """Optional evaluation on the server, on a manifest that the server can read."""

    manifest: str | None = None
    root: str | None = None


class ReportingConfig(Model):
    """Where else a run's figures go (see :mod:`fedhubert.runs.trackers`); ``project`` is its name there."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    project: Annotated[str, Field(min_length=1)] = "fedhubert"


class Config(Model):
    """Everything that defines a run."""

    experiment: str
    seed: Count = 0
    out: str | None = None
    resume: Literal["auto", "never"] = "never"
    checkpoint_dir: str | None = None
    dry_run: bool = False
    init_from: str | None = None
    data: DataConfig = DataConfig()
    model: ModelConfig
    task: Task = TaskConfig()
    targets: TargetsConfig = TargetsConfig()
    federated: FederatedConfig = FederatedConfig()
    client: ClientConfig = ClientConfig()
    baseline: BaselineConfig = BaselineConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    simulation: SimulationConfig = SimulationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    reporting: ReportingConfig = ReportingConfig()
    faults: FaultsConfig = FaultsConfig()

    @property
    def sends_sketches(self) -> bool:
        """Whether clients send sketches of their updates beside them."""
        return self.federated.client_cosines and not self.privacy.enabled

    @model_validator(mode="after")
    def _privacy_can_be_kept(self) -> Self:
        if self.privacy.enabled and (reasons := list(_against_privacy(self))):
            raise ValueError("privacy.mechanism=central: " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _layers_have_a_model(self) -> Self:
        if self.targets.layer and not self.targets.checkpoint:
            raise ValueError(
                f"targets.source={self.targets.source} needs targets.checkpoint: a round checkpoint or the folder of a finished run"
            )
        return self

    @model_validator(mode="after")
    def _model_fits_its_task(self) -> Self:
        self.task.check_model(self.model, self.init_from)
        return self

    @model_validator(mode="after")
    def _classes_match_clusters(self) -> Self:
        wanted = self.targets.num_clusters + NUM_SPECIAL_ROWS
        if self.model.num_classes != wanted:
            raise ValueError(
                f"model.num_classes is {self.model.num_classes}, but targets.num_clusters {self.targets.num_clusters} and "
                f"{NUM_SPECIAL_ROWS} special rows make {wanted}; leave model.num_classes out to have it derived"
            )
        return self


def _against_privacy(config: Config) -> Iterator[str]:
    """Name what would let one client's data reach the model other than through its one clipped update, and what to do about it."""
    federated, privacy, exact = (
        config.federated,
        config.privacy,
        "goes by the clients' exact figures, which epsilon does not cover",
    )
    if federated.weight_by != "uniform":
        yield f"federated.weight_by={federated.weight_by} has data decide what an update counts: set federated.weight_by=uniform"
    if federated.sampling != "random":
        yield f"federated.sampling={federated.sampling} tells from one cohort who is in the next: set federated.sampling=random"
    if federated.over_commit > 1.0:
        yield f"federated.over_commit={federated.over_commit} leaves out who is slow: set federated.over_commit=1"
    if federated.max_norm_ratio > 0.0:
        yield f"federated.max_norm_ratio={federated.max_norm_ratio} drops updates by the norms of others: set federated.max_norm_ratio=0"
    if config.checkpoint.keep_best and not privacy.client_metrics:
        yield f"checkpoint.keep_best {exact}: set checkpoint.keep_best=false, or privacy.client_metrics=true"
    if federated.early_stopping.patience is not None and not privacy.client_metrics:
        yield f"federated.early_stopping {exact}: leave out its patience, or set privacy.client_metrics=true"
    if privacy.delta >= 1.0 / federated.num_clients:
        yield f"privacy.delta={privacy.delta:g} must be below 1/federated.num_clients, better far below"
    largest = privacy.largest_clip_norm(federated.num_clients)
    if privacy.clip_norm > largest:
        yield f"privacy.clip_norm={privacy.clip_norm:g} is above {largest:g}, up to which the sums are exact"
