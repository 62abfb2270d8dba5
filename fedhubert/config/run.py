"""Everything that defines a run, and what has to fit together in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedhubert.config.base import Count, Model, NonNegative, PositiveInt
from fedhubert.config.client import BaselineConfig, ClientConfig, FaultsConfig
from fedhubert.config.data import DataConfig
from fedhubert.config.federated import MOST_NOISE, FederatedConfig, PrivacyConfig
from fedhubert.config.keys import key
from fedhubert.config.model import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.config.secure import SecureConfig, against_distributed, against_secure
from fedhubert.config.target_sets import other_classes
from fedhubert.config.targets import TargetsConfig
from fedhubert.config.task import Task, TaskConfig


class SimulationConfig(Model):
    """Size of the single host that plays all clients (``fedhubert train``; ``flwr run`` takes
    Flower's own options)."""

    num_workers: PositiveInt = key(2, unit="clients")
    """Clients trained at the same time on this host, or on the hosts of ``ray_address``; not more
    than their cores, or than their GPUs hold. Of a cluster fewer than it has cores: where a host is
    gone, its workers need free ones elsewhere."""

    num_gpus: Count | None = key(None, unit="GPUs")
    """GPUs that Ray may use; null: those it finds."""

    gpus_per_client: NonNegative = key(0.0, unit="GPUs")
    """Share of a GPU per client, for example 0.5 for two clients on each GPU. 2 and more: a client
    trains on so many (``client.device``)."""

    num_supernodes: PositiveInt | None = key(None, unit="nodes")
    """null: one per client (of more than 64 clients, two per worker). Fewer: each hosts several
    clients and answers with their sum."""

    ray_address: str | None = key(None, path=True)
    """Of a Ray cluster that runs already ("auto": the one on this machine); null: start one
    here."""


class CheckpointConfig(Model):
    """Which round checkpoints are written and kept; the last round's always is."""

    every: PositiveInt = key(10, unit="rounds")
    """A checkpoint each so many rounds: what a stopped run loses at most."""

    keep_last: PositiveInt = key(5, unit="checkpoints")
    """How many of the newest stay on the disk."""

    keep_best: bool = True
    """Also keep the model with the best validation loss."""


class EvaluationConfig(Model):
    """Optional evaluation on the server, on a manifest that the server can read."""

    manifest: str | None = key(None, path=True)
    """A held-out manifest that the server may read, on which every round's model is scored; null:
    no evaluation on the server."""

    root: str | None = key(None, path=True)
    """Folder that its paths start from; null: the manifest's own folder."""


class ReportingConfig(Model):
    """Where else a run's figures go (see :mod:`fedhubert.runs.trackers`)."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Also send figures there (each is an extra: pip install 'fedhubert[tensorboard]')."""

    project: Annotated[str, Field(min_length=1)] = "fedhubert"
    """The run's project in wandb, its experiment in mlflow."""


class Config(Model):
    """Everything that defines a run."""

    experiment: Annotated[str, key(..., resume="free")]
    """Name of the experiment, which ``experiment=NAME`` chooses in ``conf/experiment``."""

    seed: Count = key(0, fork=["batches", "labels"])
    """Every random choice derives from it, with round, partition and purpose."""

    out: str | None = key(None, resume="free", path=True, in_report=False)
    """Folder of the run; null: outputs/<experiment>/<date>-<time> below FEDHUBERT_HOME or the
    working directory."""

    resume: Literal["auto", "never"] = key("never", resume="free", in_report=False)
    """auto: go on from the newest whole checkpoint in ``out``, or begin where there is none."""

    checkpoint_dir: str | None = key(None, resume="free", path=True, in_report=False)
    """Where round checkpoints go; null: <out>/checkpoints."""

    dry_run: bool = key(False, resume="free")
    """true: connect, check and describe every site, print a table, train nothing."""

    init_from: str | None = key(None, path=True)
    """Start from this encoder: a HuggingFace folder, a file of fairseq, s3prl or torchaudio, a
    round, hf:facebook/hubert-base-ls960, torchaudio:HUBERT_BASE."""

    data: DataConfig = key(DataConfig(), fork=["batches", "labels"])
    """Which audio, whose it is, and how it is cut into batches."""

    model: ModelConfig
    """The encoder and its head: ``model=NAME`` chooses sizes, which are all in ``conf/model``."""

    task: Task = TaskConfig()
    """What is learned: ``task=pretrain`` (masked prediction), ``distill`` (a teacher's outputs),
    ``classify`` (labels of utterances) or ``ctc`` (transcripts)."""

    targets: TargetsConfig = key(TargetsConfig(), fork=["labels"])
    """Where the pseudo-labels come from: ``targets=kmeans``, ``layer`` or ``precomputed``."""

    federated: FederatedConfig = FederatedConfig()
    """Who takes part in a round and what the server does with the updates."""

    client: ClientConfig = ClientConfig()
    """Local training on one client."""

    baseline: BaselineConfig = key(BaselineConfig(), resume="free")
    """What training without federation (``fedhubert central``, ``compare``) takes instead of
    ``client``'s."""

    privacy: PrivacyConfig = PrivacyConfig()
    """Differential privacy of the clients: ``privacy=none``, ``central`` or ``distributed``."""

    secure: SecureConfig = SecureConfig()
    """Secure aggregation: ``secure=none`` or ``pairwise``."""

    simulation: SimulationConfig = key(SimulationConfig(), resume="free")
    """Size of the single host that plays all clients."""

    checkpoint: CheckpointConfig = key(CheckpointConfig(), resume="free")
    """Which round checkpoints are written and kept."""

    evaluation: EvaluationConfig = key(EvaluationConfig(), resume="free")
    """Optional evaluation on the server."""

    reporting: ReportingConfig = key(ReportingConfig(), resume="free")
    """Where else a run's figures go."""

    faults: FaultsConfig = key(FaultsConfig(), resume="free")
    """Failures to rehearse with; see fedhubert/federation/README.md."""

    @property
    def sends_sketches(self) -> bool:
        """Whether clients send sketches of their updates beside them."""
        return self.federated.client_cosines and not self.privacy.enabled

    @model_validator(mode="after")
    def _privacy_can_be_kept(self) -> Self:
        if self.privacy.enabled and (reasons := list(_against_privacy(self))):
            raise ValueError(f"privacy.mechanism={self.privacy.mechanism}: " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _momentum_can_be_shared(self) -> Self:
        client = self.client
        if client.shares_momentum and client.optimizer != "muon":
            raise ValueError(
                "client.optimizer_policy=shared is for client.optimizer=muon, whose momentum it "
                f"shares: {client.optimizer} takes reset or keep"
            )
        if client.shares_momentum and self.federated.update_codec == "ring16":
            raise ValueError(
                "federated.update_codec=ring16 has too few digits for the momentum of "
                "client.optimizer_policy=shared: take int8, ring24 or ring32"
            )
        if client.shares_momentum and self.privacy.enabled:
            raise ValueError(
                f"privacy.mechanism={self.privacy.mechanism} would spend its clipping norm on the "
                "momentum: set client.optimizer_policy=reset"
            )
        return self

    @model_validator(mode="after")
    def _sums_can_be_secure(self) -> Self:
        if not self.secure.enabled:
            return self
        labelled = self.targets if self.task.needs_labels else None
        if reasons := list(against_secure(self.federated, self.privacy, labelled)):
            raise ValueError("secure.protocol=pairwise: " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _layers_have_a_model(self) -> Self:
        if self.targets.of_a_layer and not self.targets.checkpoint:
            raise ValueError(
                f"targets.source={self.targets.source} needs targets.checkpoint: a round "
                "checkpoint or the folder of a finished run"
            )
        return self

    @model_validator(mode="after")
    def _model_fits_its_task(self) -> Self:
        self.task.check_model(self.model, self.init_from)
        self.task.check_run(self.client.compile, self.privacy.enabled, not self.dry_run)
        if self.evaluation.manifest and not self.task.shares_head:
            raise ValueError(
                "evaluation.manifest is scored by the server, and with task.head=personal the "
                "heads stay at their sites: leave it out, or set task.head=shared"
            )
        return self

    @model_validator(mode="after")
    def _classes_match_clusters(self) -> Self:
        wanted = self.targets.num_clusters + NUM_SPECIAL_ROWS
        if self.model.num_classes != wanted:
            raise ValueError(
                f"model.num_classes is {self.model.num_classes}, but targets.num_clusters "
                f"{self.targets.num_clusters} and "
                f"{NUM_SPECIAL_ROWS} special rows make {wanted}; leave model.num_classes out to "
                "have it derived"
            )
        others = other_classes(self.targets.sets, self.targets.num_clusters)
        if self.model.other_classes != others:
            raise ValueError(
                f"model.other_classes is {list(self.model.other_classes)}, but targets.sets make "
                f"{list(others)}; "
                "leave model.other_classes out to have it derived"
            )
        return self


def _against_privacy(config: Config) -> Iterator[str]:
    """Name what would let one client's data reach the model other than through its one clipped
    update, and what to do about it."""
    federated, privacy, exact = (
        config.federated,
        config.privacy,
        "goes by the clients' exact figures, which epsilon does not cover",
    )
    if federated.weight_by != "uniform":
        yield (
            f"federated.weight_by={federated.weight_by} has data decide what an update counts: set "
            "federated.weight_by=uniform"
        )
    if not privacy.central:
        yield from against_distributed(config.secure, privacy, federated)
    if federated.sampling != "random" and privacy.central:
        yield (
            f"federated.sampling={federated.sampling} tells from one cohort who is in the next: "
            "set federated.sampling=random"
        )
    if federated.over_commit > 1.0:
        yield (
            f"federated.over_commit={federated.over_commit} leaves out who is slow: set "
            "federated.over_commit=1"
        )
    if federated.max_norm_ratio > 0.0:
        yield (
            f"federated.max_norm_ratio={federated.max_norm_ratio} drops updates by the norms of "
            "others: set federated.max_norm_ratio=0"
        )
    if config.checkpoint.keep_best and not privacy.client_metrics:
        yield (
            f"checkpoint.keep_best {exact}: set checkpoint.keep_best=false, or "
            "privacy.client_metrics=true"
        )
    if federated.early_stopping.patience is not None and not privacy.client_metrics:
        yield (
            f"federated.early_stopping {exact}: leave out its patience, or set "
            "privacy.client_metrics=true"
        )
    if privacy.delta >= 1.0 / federated.num_clients:
        yield (
            f"privacy.delta={privacy.delta:g} must be below 1/federated.num_clients, better far "
            "below"
        )
    largest = privacy.largest_clip_norm(federated.num_clients)
    if privacy.clip_norm > largest:
        yield (
            f"privacy.clip_norm={privacy.clip_norm:g} is above {largest:g}, up to which the sums "
            "are exact"
        )
    noise = privacy.noise_on_sum(federated.expected_cohort) * (
        largest if privacy.target_quantile is not None else privacy.clip_norm
    )
    if noise > MOST_NOISE:
        yield (
            f"the noise on the sum of the updates may reach {noise:.3g}, and is exact up to "
            f"{MOST_NOISE:g}: raise privacy.count_noise "
            "further above half of privacy.noise_multiplier, or lower privacy.clip_norm"
        )
