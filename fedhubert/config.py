"""The whole configuration of a run as typed, frozen models.

``conf/`` holds the values, :mod:`fedhubert.compose` turns them into a :class:`Config`, and everything else takes the part that it
needs. An unknown key, a wrong type or a value out of range is refused by its dotted name. Units are in the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedhubert.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
ConvLayer = tuple[PositiveInt, PositiveInt, PositiveInt]

NUM_SPECIAL_ROWS = 4
"""Rows that fairseq's Dictionary puts before the clusters (``<s> <pad> </s> <unk>``): cluster i is row i + 4 of the label embeddings."""

PLACEHOLDER = re.compile(r"\{([a-z0-9][a-z0-9_-]*)\}")
"""In a recipe's overrides: the last checkpoint of another stage."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PartitionConfig(_Model):
    """How one manifest becomes the clients' data (simulation; a real site's manifest is its own partition)."""

    kind: Literal["random", "speaker", "column", "dirichlet"] = "random"
    column: str | None = None
    alpha: Positive = 0.5
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2

    @model_validator(mode="after")
    def _column_given(self) -> Self:
        if self.kind in ("column", "dirichlet") and not self.column:
            raise ValueError(f"kind={self.kind} needs `column`, the manifest column to split by")
        return self


class DataConfig(_Model):
    """Where the audio is and how batches are cut from it."""

    manifest: str | None = None
    root: str | None = None
    sample_rate_hz: Literal[16000] = 16000
    min_seconds: Annotated[float, Field(ge=0.25)] = 2.0
    max_seconds: Positive = 15.625
    batch_seconds: Positive = 87.5
    num_workers: Count = 1
    prefetch_batches: PositiveInt = 4
    partition: PartitionConfig = PartitionConfig()

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError("min_seconds is larger than max_seconds")
        if self.batch_seconds < self.max_seconds:
            raise ValueError("batch_seconds is smaller than max_seconds, so the longest crop fits no batch")
        return self


class ModelConfig(_Model):
    """A HuBERT encoder with its masked-prediction head (names as in the HuBERT recipe)."""

    name: str
    conv_layers: tuple[ConvLayer, ...]
    conv_norm: Literal["group_norm", "layer_norm"] = "group_norm"
    conv_bias: bool = False
    embed_dim: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    ffn_dim: PositiveInt
    pos_conv_kernel: PositiveInt = 128
    pos_conv_groups: PositiveInt = 16
    layer_norm_first: bool = False
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    feature_dropout: Probability = 0.1
    layer_drop: Probability = 0.05
    final_dim: PositiveInt = 256
    num_classes: Annotated[int, Field(gt=NUM_SPECIAL_ROWS + 1)] = 504
    logit_temperature: Positive = 0.1
    label_init: Literal["uniform", "normal"] = "uniform"
    feature_grad_mult: PositiveFraction = 0.1

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.embed_dim % self.pos_conv_groups:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of pos_conv_groups {self.pos_conv_groups}")
        stride = 1
        for _, _, layer_stride in self.conv_layers:
            stride *= layer_stride
        if stride != 320:
            raise ValueError(f"conv_layers have a total stride of {stride} samples; HuBERT's frames are 320 samples (50 Hz)")
        return self


class MaskedTask(_Model):
    """What every task has: which frames are hidden, and the penalty on the convolutions' power."""

    name: str
    mask_probability: PositiveFraction = 0.8
    mask_length_frames: PositiveInt = 10
    min_masks: PositiveInt = 2
    feature_penalty: NonNegative = 10.0

    @property
    def needs_labels(self) -> bool:
        """Whether pseudo-labels are predicted."""
        return True


class TaskConfig(MaskedTask):
    """What is learned: masked prediction of pseudo-labels."""

    name: Literal["pretrain"] = "pretrain"


class ObjectivesConfig(_Model):
    """Weights of the distillation objectives (see :mod:`fedhubert.objectives.distillation`); 0 leaves one out."""

    layers: NonNegative = 1.0
    hints: NonNegative = 0.0
    logits: NonNegative = 0.0
    pseudo_labels: NonNegative = 0.0

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the objectives that have a weight."""
        return tuple(name for name, weight in self if weight > 0.0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.active:
            raise ValueError("all weights are 0: give layers, hints, logits or pseudo_labels one")
        return self


class DistillConfig(MaskedTask):
    """A student that learns from a frozen teacher.

    Attributes:
        teacher: Where the server finds the teacher; it is not sent to sites.
        teacher_sha256, teacher_model: Digest and sizes of what is used of the teacher. The server fills them in; where a digest is given, another
            teacher is refused.
        layers: Teacher layers, from 1, that the student's last layer predicts, each through a linear head.
        hints: Pairs (student layer, teacher layer), from 1.
        init: What the student takes over: ``conv``, or ``prefix`` (all before the layers, and as many layers as it has; needs the teacher's width).
        teacher_cache: Keep the teacher's outputs on the site, in at most ``teacher_cache_bytes``; results are the same.
    """

    name: Literal["distill"] = "distill"
    objectives: ObjectivesConfig = ObjectivesConfig()
    layers: tuple[PositiveInt, ...] = (4, 8, 12)
    cosine_weight: NonNegative = 1.0
    hints: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    temperature: Positive = 1.0
    teacher: str | None = None
    teacher_sha256: str | None = None
    teacher_model: ModelConfig | None = None
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    teacher_cache: bool = True
    teacher_cache_bytes: PositiveInt = 20_000_000_000
    init: Literal["conv", "prefix"] = "conv"
    freeze_conv: bool = False

    @property
    def needs_labels(self) -> bool:
        return self.objectives.pseudo_labels > 0.0

    @property
    def predicts_masked(self) -> bool:
        """Whether an objective scores masked frames, with the student's masked-prediction head."""
        return self.objectives.pseudo_labels > 0.0 or self.objectives.logits > 0.0

    @property
    def layer_heads(self) -> tuple[int, ...]:
        """Teacher layers that the student's last layer predicts."""
        return self.layers if self.objectives.layers > 0.0 else ()

    @property
    def hint_heads(self) -> tuple[tuple[int, int], ...]:
        """Pairs (student layer, teacher layer) in use."""
        return self.hints if self.objectives.hints > 0.0 else ()

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Teacher layers in use, in order."""
        return tuple(sorted({*self.layer_heads, *(theirs for _, theirs in self.hint_heads)}))

    @model_validator(mode="after")
    def _layers_given(self) -> Self:
        for name in self.objectives.active:
            if name in ("layers", "hints") and (
                not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name))
            ):
                raise ValueError(f"objectives.{name} has a weight, so `{name}` must name at least one, and none of them twice")
        return self


_TASKS = ("pretrain", "distill")
Task = Annotated[TaskConfig | DistillConfig, Field(discriminator="name")]


class TargetsConfig(_Model):
    """Where the pseudo-labels come from.

    ``source`` names what k-means sees: ``mfcc`` (100 Hz), or ``layer:N`` (50 Hz), the output of the N-th transformer layer, counted from 1, of
    the model in ``checkpoint``.
    """

    kind: Literal["kmeans", "precomputed"] = "kmeans"
    source: str = "mfcc"
    checkpoint: str | None = None
    num_clusters: Annotated[int, Field(ge=2)] = 500
    label_rate_hz: Literal[50, 100] = 100
    labels: str | None = None
    max_iterations: PositiveInt = 30
    tolerance: NonNegative = 1e-4
    max_frames_per_client: PositiveInt = 200_000
    seed_frames_per_client: PositiveInt = 20_000
    min_frames: PositiveInt = 20
    group_frames: PositiveInt = 1
    label_column: str | None = None
    label_values: tuple[str, ...] = ()

    @property
    def layer(self) -> int | None:
        """The transformer layer that k-means sees, from 1; None for MFCC and precomputed labels."""
        return int(self.source.removeprefix("layer:")) if self.kind == "kmeans" and self.source != "mfcc" else None

    @field_validator("source")
    @classmethod
    def _source_known(cls, source: str) -> str:
        if not re.fullmatch(r"mfcc|layer:[1-9][0-9]{0,2}", source):
            raise ValueError(f"{source!r} is neither mfcc nor layer:N with N from 1 on")
        return source

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_source(cls, values: Any) -> Any:
        """``label_rate_hz: null`` means the rate at which the source's labels come."""
        if isinstance(values, Mapping) and values.get("label_rate_hz") is None:
            return {**values, "label_rate_hz": 50 if str(values.get("source", "mfcc")).startswith("layer:") else 100}
        return values

    @model_validator(mode="after")
    def _labels_given(self) -> Self:
        if self.kind == "precomputed" and not self.labels:
            raise ValueError("kind=precomputed needs `labels`: a .km file, or column:NAME for a manifest column")
        rate_hz = 50 if self.layer else 100
        if self.kind == "kmeans" and self.label_rate_hz != rate_hz:
            raise ValueError(
                f"label_rate_hz={self.label_rate_hz}, but labels of source={self.source} come at {rate_hz} Hz; leave it out"
            )
        if bool(self.label_column) != bool(self.label_values):
            raise ValueError(
                "label_column and label_values belong together: the values, in an agreed order, keep their names on the sites"
            )
        if len(set(self.label_values)) < len(self.label_values):
            raise ValueError("label_values names a value twice")
        return self


class EarlyStoppingConfig(_Model):
    """When a run ends before its last round: no improvement by ``min_delta`` over ``patience`` rounds; off without a patience."""

    monitor: Literal["loss", "masked_accuracy"] = "loss"
    patience: PositiveInt | None = None
    min_delta: NonNegative = 0.0


class FederatedConfig(_Model):
    """Who takes part in a round and what the server does with the updates."""

    num_clients: PositiveInt = 10
    num_rounds: PositiveInt = 100
    client_fraction: PositiveFraction = 0.5
    min_clients: PositiveInt | None = None
    over_commit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    strategy: Literal[
        "FedAvg",
        "FedAvgM",
        "FedAdam",
        "FedYogi",
        "FedAdagrad",
        "FedProx",
        "FedNova",
        "FedMedian",
        "FedTrimmedAvg",
        "Krum",
    ] = "FedAdam"
    server_learning_rate: Positive = 1.0
    server_momentum: Probability = 0.9
    nesterov: bool = False
    proximal_mu: NonNegative = 0.01
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    eta: Positive = 0.01
    tau: Positive = 0.001
    bias_correction: Literal["none", "flower"] = "none"
    num_malicious: Count = 1
    trim_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    weight_by: Literal["frames", "utterances", "uniform"] = "frames"
    max_norm_ratio: NonNegative = 10.0
    update_codec: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    broadcast_codec: Literal["fp32", "bf16"] = "fp32"
    round_timeout_s: Positive = 3600.0
    round_retries: Count = 2
    connect_timeout_s: Positive = 300.0
    node_keys: str | None = None
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()

    @property
    def clients_per_round(self) -> int:
        """Updates that make a round: the fraction of all clients, rounded, at least ``min_clients``."""
        return min(self.num_clients, max(self.min_clients or 1, round(self.client_fraction * self.num_clients), 1))

    @property
    def quorum(self) -> int:
        """Updates without which a round does not count: ``min_clients``, or half of those that make a round."""
        return self.min_clients or -(-self.clients_per_round // 2)

    @property
    def expected_cohort(self) -> float:
        """Clients of a round on average, where each is sampled by itself (differential privacy)."""
        return self.client_fraction * self.num_clients

    @property
    def is_robust(self) -> bool:
        """Whether the strategy looks at all updates at once, which needs each of them in the server's memory."""
        return self.strategy in ("FedMedian", "FedTrimmedAvg", "Krum")

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if self.min_clients is not None and self.min_clients > self.num_clients:
            raise ValueError(f"min_clients {self.min_clients} is larger than num_clients {self.num_clients}")
        if self.strategy == "Krum" and self.quorum < 2 * self.num_malicious + 3:
            raise ValueError(
                f"strategy=Krum against num_malicious={self.num_malicious} needs at least {2 * self.num_malicious + 3} updates a round "
                f"(n >= 2 f + 3), and as few as {self.quorum} would do here: raise min_clients"
            )
        if self.bias_correction == "flower" and self.strategy != "FedAdam":
            raise ValueError("bias_correction=flower is for strategy=FedAdam: Flower corrects no other")
        return self


class PrivacyConfig(_Model):
    """Central differential privacy of the clients (see :mod:`fedhubert.federation.privacy`).

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of ``clip_norm``, as it is accounted for; 0 clips only, and protects nothing.
        clip_norm: Longest update; with ``target_quantile``, in the first round.
        target_quantile: Share of the updates to be left as they are, which the norm then follows at ``clip_learning_rate``; None: the norm is fixed.
        count_noise: Standard deviation of the noise on the number of updates left as they are; None: a twentieth of the expected cohort, and at
            least ``noise_multiplier``.
        delta: The probability with which epsilon may fail.
        max_epsilon: The budget: the run ends before the round that would exceed it.
        client_metrics: Whether checkpoints carry the clients' exact figures, which epsilon does not cover.
    """

    mechanism: Literal["none", "central"] = "none"
    noise_multiplier: Annotated[float, Field(ge=0.0, le=1e3)] = 1.0
    clip_norm: Positive = 1.0
    target_quantile: Probability | None = None
    clip_learning_rate: Positive = 0.2
    count_noise: Positive | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    max_epsilon: Positive | None = None
    client_metrics: bool = False

    @property
    def enabled(self) -> bool:
        return self.mechanism == "central"

    @property
    def hides_figures(self) -> bool:
        """Whether the clients' exact figures stay out of checkpoints."""
        return self.enabled and not self.client_metrics

    def largest_clip_norm(self, num_clients: int) -> float:
        """Return the norm up to which the sum of all clients' updates and its noise stay within the exact sum's integers."""
        return 2.0**27 / max(num_clients, 16.0 * self.noise_multiplier)

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.count_noise is not None and 2.0 * self.count_noise <= self.noise_multiplier:
            raise ValueError(
                f"count_noise={self.count_noise} must be more than half of noise_multiplier={self.noise_multiplier}, which covers the count, too"
            )
        if self.max_epsilon is not None and self.noise_multiplier == 0.0:
            raise ValueError(
                "noise_multiplier=0 has an infinite epsilon, and max_epsilon would allow no round: leave one of them out"
            )
        return self


class ClientConfig(_Model):
    """Local training on one client."""

    local_steps: Annotated[int, Field(ge=1)] | None = None
    local_epochs: PositiveInt = 1
    max_seconds: Positive | None = None
    accumulate: PositiveInt = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    optimizer_policy: Literal["reset", "keep"] = "reset"
    lr: Positive = 5e-4
    momentum: Probability = 0.0
    betas: tuple[Probability, Probability] = (0.9, 0.98)
    eps: Positive = 1e-6
    weight_decay: NonNegative = 0.01
    warmup_fraction: Fraction = 0.08
    schedule: Literal["linear", "constant"] = "linear"
    grad_clip_norm: NonNegative = 10.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    validation_batches: Count = 0
    state_dir: str | None = None
    state_max_gb: Positive | None = 100.0

    @property
    def sgd_momentum(self) -> float:
        """The momentum that FedNova has to know of; AdamW's counts as none."""
        return self.momentum if self.optimizer == "sgd" else 0.0


class SimulationConfig(_Model):
    """Size of the single host that plays all clients (``fedhubert train``; ``flwr run`` takes Flower's own options)."""

    num_workers: PositiveInt = 2
    num_gpus: Count | None = None
    gpus_per_client: NonNegative = 0.0
    num_supernodes: PositiveInt | None = None
    ray_address: str | None = None


class CheckpointConfig(_Model):
    """Which round checkpoints are written and kept; the last round's always is."""

    every: PositiveInt = 10
    keep_last: PositiveInt = 5
    keep_best: bool = True


class EvaluationConfig(_Model):
    """Optional evaluation on the server, on a manifest that the server can read."""

    manifest: str | None = None
    root: str | None = None


class FaultsConfig(_Model):
    """Failures to rehearse with: each client of each round draws, from the run's seed, whether it fails and how.

    Attributes:
        crash: Probability that the node dies instead of answering (a node that hosts several clients loses all of them).
        delay_s: Up to this long a client waits before it answers.
        nan: Probability of an update with a value that is not a number.
        truncate: Probability of an update that is cut short.
    """

    crash: Fraction = 0.0
    delay_s: NonNegative = 0.0
    nan: Fraction = 0.0
    truncate: Fraction = 0.0


class Config(_Model):
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
    privacy: PrivacyConfig = PrivacyConfig()
    simulation: SimulationConfig = SimulationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    faults: FaultsConfig = FaultsConfig()

    @model_validator(mode="after")
    def _robust_is_flat(self) -> Self:
        nodes = self.simulation.num_supernodes
        if self.federated.is_robust and nodes is not None and nodes < self.federated.num_clients:
            raise ValueError(
                f"federated.strategy={self.federated.strategy} needs every client's own update, and with simulation.num_supernodes={nodes} "
                "nodes reply with sums over several clients: leave simulation.num_supernodes out"
            )
        return self

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
    def _student_fits_its_task(self) -> Self:
        if not isinstance(self.task, DistillConfig):
            return self
        if not self.task.teacher:
            raise ValueError(
                "task=distill needs task.teacher: a round checkpoint, a run's folder, or a file that `init_from` takes"
            )
        deepest = max((ours for ours, _ in self.task.hint_heads), default=0)
        if deepest > self.model.num_layers:
            raise ValueError(
                f"task.hints names layer {deepest} of the student, which has {self.model.num_layers} (model.num_layers)"
            )
        if self.task.freeze_conv and self.init_from:
            raise ValueError(
                "task.freeze_conv=true takes the teacher's convolutions, and init_from brings others: leave one of them out"
            )
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
    if federated.strategy in ("FedNova", "FedMedian", "FedTrimmedAvg", "Krum"):
        yield f"federated.strategy={federated.strategy} does more with updates than add them up: choose FedAvg, FedAvgM, FedAdam, ..."
    if federated.weight_by != "uniform":
        yield f"federated.weight_by={federated.weight_by} has data decide what an update counts: set federated.weight_by=uniform"
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


class Stage(_Model):
    """One step of a recipe: a training run (``overrides`` of ``fedhubert train``), or an export of an earlier stage's last checkpoint.

    ``{previous}`` and ``{NAME}`` in overrides stand for the last checkpoint of the training stage before, or of that name.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    overrides: tuple[str, ...] = ()
    export: str | None = None
    of: str = "previous"

    @property
    def needs(self) -> list[str]:
        """The stages whose checkpoints this one takes."""
        return [self.of] if self.export else [name for text in self.overrides for name in PLACEHOLDER.findall(text)]


class Recipe(_Model):
    """Stages in the order in which they run."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        trained: list[str] = []
        for number, stage in enumerate(self.stages):
            if stage.name in [*(other.name for other in self.stages[:number]), "previous"]:
                raise ValueError(f"stage {stage.name!r}: the name is taken")
            if bool(stage.overrides) == bool(stage.export):
                raise ValueError(f"stage {stage.name!r} needs either overrides or export")
            unknown = [name for name in stage.needs if name not in trained and not (name == "previous" and trained)]
            if unknown:
                raise ValueError(
                    f"stage {stage.name!r} takes the checkpoint of {unknown[0]!r}, which is no training stage before it"
                )
            if stage.overrides:
                trained.append(stage.name)
        return self


class ClientJob(_Model):
    """The part of a run's configuration that clients receive: no server path is in it."""

    seed: Count
    num_clients: PositiveInt
    num_rounds: PositiveInt
    weight_by: Literal["frames", "utterances", "uniform"]
    proximal_mu: NonNegative
    normalise_by_steps: bool
    update_codec: Literal["fp32", "bf16", "fp16", "int8"]
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


def client_job(config: Config) -> ClientJob:
    """Return what clients need to know of ``config``."""
    return ClientJob(
        seed=config.seed,
        num_clients=config.federated.num_clients,
        num_rounds=config.federated.num_rounds,
        weight_by=config.federated.weight_by,
        proximal_mu=config.federated.proximal_mu if config.federated.strategy == "FedProx" else 0.0,
        normalise_by_steps=config.federated.strategy == "FedNova",
        update_codec=config.federated.update_codec,
        data=config.data,
        model=config.model,
        task=config.task.model_copy(update={"teacher": None}) if isinstance(config.task, DistillConfig) else config.task,
        targets=config.targets.model_copy(update={"checkpoint": None}),
        client=config.client,
        faults=config.faults,
    )


ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(cls: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """Build ``cls`` from plain values.

    Raises:
        ConfigError: with one line per offending key: its dotted name, what is wrong and the value found.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError("; ".join(lines), setting=_dotted(error.errors()[0]["loc"])) from None


def from_json(cls: type[ModelT], text: str) -> ModelT:
    """Inverse of ``model_dump_json``; raises :class:`ConfigError` like :func:`validate`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("not a JSON object")
    return validate(cls, values)


def _dotted(location: tuple[int | str, ...]) -> str:
    """Name a key; the kind of task that pydantic puts after ``task`` is no part of it."""
    parts = [part for before, part in zip((None, *location), location, strict=False) if before != "task" or part not in _TASKS]
    return ".".join(map(str, parts))


def _explain(item: Any) -> str:
    name = _dotted(item["loc"])
    if item["type"] == "union_tag_invalid":
        return f"{name}.name: {item['ctx']['tag']!r} is none of {', '.join(_TASKS)}"
    if item["type"] == "extra_forbidden":
        return f"unknown key `{name}`"
    if item["type"] == "missing":
        return f"`{name}` is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}={item['input']!r}: {message[0].lower()}{message[1:]}"
