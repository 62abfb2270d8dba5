"""Who takes part in a round, what the server does with the updates, and what of it is private."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedhubert.config import elsewhere
from fedhubert.config.base import (
    Count,
    Fraction,
    Model,
    NonNegative,
    Positive,
    PositiveFraction,
    PositiveInt,
    Probability,
)
from fedhubert.config.keys import key
from fedhubert.config.muon import MuonConfig

MOST_NOISE = 2.0**26
"""The largest standard deviation of noise that the integers of a sum hold without losing bits."""

Weighting = Literal["frames", "utterances", "uniform"]
UpdateCodec = Literal["fp32", "bf16", "fp16", "int8", "ring32", "ring24", "ring16"]


class EarlyStoppingConfig(Model):
    """When a run ends before its last round: no improvement by ``min_delta`` over ``patience``
    rounds; off without a patience."""

    monitor: Literal["loss", "masked_accuracy", "accuracy", "macro_f1", "wer", "cer"] = "loss"
    """Figure on the clients' validation splits that has to improve."""

    over: Literal["frames", "clients"] = "frames"
    """frames: the figure over all clients' frames. clients: the median of the clients' figures,
    which no single client can move far."""

    patience: PositiveInt | None = key(None, unit="rounds")
    """Rounds without improvement after which the run ends; null: never."""

    min_delta: NonNegative = 0.0
    """An improvement is more than this (nats, or a share of frames)."""


class FederatedConfig(Model):
    """Who takes part in a round and what the server does with the updates."""

    num_clients: PositiveInt = key(10, unit="clients", fork=["batches", "labels"])
    """Clients of the federation: partitions of data that train."""

    num_rounds: PositiveInt = key(100, unit="rounds")
    """Length of the run; schedules are shares of it."""

    client_fraction: PositiveFraction = 0.5
    """Share of all clients that make a round; with privacy, the probability of each to be asked."""

    sampling: Literal["random", "reshuffled"] = "random"
    """How a round's clients are drawn. reshuffled: nobody is asked twice before all have been asked
    once."""

    min_clients: PositiveInt | None = key(None, unit="clients")
    """Updates without which a round does not count (the quorum); null: half of those that make
    one."""

    over_commit: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """1.3: ask 1.3 times as many clients and take the first that suffice. For sites that are slow
    or fail."""

    strategy: Literal[
        "FedAvg",
        "FedAvgM",
        "FedAdam",
        "FedYogi",
        "FedAdagrad",
        "FedMuon",
        "FedProx",
        "FedNova",
        "FedMedian",
        "FedTrimmedAvg",
        "Krum",
    ] = key("FedAdam", fork=["server_optimizer"])
    """How the server makes a step of the updates; see fedhubert/federation/README.md."""

    server_learning_rate: Positive = 1.0
    """Factor on the mean update, of all strategies but those with ``eta``."""

    server_schedule: Literal["linear", "constant"] = "constant"
    """The server's rate (``eta`` or ``server_learning_rate``) over the rounds. linear for runs of
    one step a round."""

    server_warmup_fraction: Fraction = 0.0
    """Share of the rounds in which the server's rate rises from 0."""

    server_momentum: Probability = 0.9
    """Momentum over rounds of FedAvgM."""

    nesterov: bool = False
    """Of FedAvgM: with true, DiLoCo's outer step."""

    proximal_mu: NonNegative = 0.01
    """Of FedProx: weight of the pull towards the incoming model in local training; 0 is FedAvg."""

    beta1: Probability = 0.9
    """Decay of the mean of updates, of FedAdam, FedYogi and FedAdagrad, and of what FedMuon leaves
    to AdamW."""

    beta2: Probability = 0.999
    """Decay of the mean of squared updates, of FedAdam and FedYogi, and of what FedMuon leaves to
    AdamW."""

    eta: Positive = 0.01
    """The server's rate, of FedAdam, FedYogi, FedAdagrad and FedMuon."""

    tau: Positive = 0.001
    """Added to the denominator of FedAdam, FedYogi and FedAdagrad, and of AdamW beside FedMuon; the
    larger, the less adaptive. On gradients (one plain step at rate 1) far below the default."""

    muon: MuonConfig = MuonConfig()
    """Of FedMuon: how it orthogonalises."""

    server_weight_decay: NonNegative = 0.0
    """Decoupled weight decay of FedMuon, as ``client.weight_decay`` has it for adamw and muon."""

    server_device: str = key("cpu", resume="free")
    """Where FedMuon orthogonalises: cpu, auto (a GPU where the server has one), cuda, cuda:1. A GPU
    for models of tens of millions of parameters: see ``fedhubert plan``."""

    bias_correction: Literal["none", "flower"] = key("none", fork=["server_optimizer"])
    """Of FedAdam: none is the paper's (Reddi et al. 2021), flower as Flower has it."""

    num_malicious: Count = key(1, unit="clients")
    """Of Krum: how many clients of a round may lie; it needs a quorum of 2 f + 3."""

    trim_fraction: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    """Of FedTrimmedAvg: share of a round's clients that is cut off at each end."""

    weight_by: Weighting = "frames"
    """What an update weighs in the mean: masked frames trained on, utterances, or all the same
    (privacy needs uniform)."""

    max_norm_ratio: NonNegative = 10.0
    """An update this many times longer than the median of earlier rounds' (of its own round's where
    there are few) is dropped; 0: none is."""

    max_weight_ratio: NonNegative = 10.0
    """No update weighs more than this many times what the median client's can; 0: no limit."""

    update_codec: UpdateCodec = "fp32"
    """How updates travel. int8 sends a quarter, and keeps what rounding left over on the site.
    ring32, ring24, ring16: integers of 4, 3, 2 bytes that add up modulo their ring, masked or not;
    ring16 where ``ring_clip`` is close to the largest entries."""

    ring_clip: Positive = 1.0
    """Of ring32, ring24 and ring16: entries of an update beyond it are cut off, and counted
    (``clipped_entries``); the steps between two integers are proportional to it."""

    broadcast_codec: Literal["fp32", "bf16"] = "fp32"
    """How the model travels to the clients."""

    client_cosines: bool = True
    """Clients send a sketch (16 kB) of their update, which gives its cosine to the mean; never with
    privacy."""

    round_timeout_s: Positive = key(3600.0, unit="s", resume="free")
    """Who has not answered by then is left out of the round."""

    round_retries: Count = key(2, resume="free")
    """How often a round below the quorum asks others, or again, before the run stops."""

    connect_timeout_s: Positive = key(300.0, unit="s", resume="free")
    """How long the server waits for the nodes at the start."""

    node_keys: str | None = key(None, path=True, resume="free")
    """Folder of node-N.pub and site-N.pub (``fedhubert certs --enrol``) on the server: node N
    trains client N only with the one, and its replies count only when signed with the other, where
    there are any; null: any node does, and nothing is signed."""

    signing_key: str | None = key(None, path=True, resume="free")
    """File on the server, coordinator.key (``fedhubert certs``), that signs what sites are asked;
    null: nothing is signed, and sites that have pinned a coordinator's key answer nothing."""

    early_stopping: EarlyStoppingConfig = key(EarlyStoppingConfig(), resume="free")
    """When a run ends before its last round."""

    _known_strategy = field_validator("strategy", mode="wrap")(elsewhere.strategy)

    @property
    def clients_per_round(self) -> int:
        """Updates that make a round: the fraction of all clients, rounded, at least
        ``min_clients``."""
        return min(
            self.num_clients,
            max(self.min_clients or 1, round(self.client_fraction * self.num_clients), 1),
        )

    @property
    def quorum(self) -> int:
        """Updates without which a round does not count: ``min_clients``, or half of those that make
        a round."""
        return self.min_clients or -(-self.clients_per_round // 2)

    @property
    def expected_cohort(self) -> float:
        """Clients of a round on average, where each is sampled by itself (differential privacy)."""
        return self.client_fraction * self.num_clients

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if self.min_clients is not None and self.min_clients > self.num_clients:
            raise ValueError(
                f"min_clients {self.min_clients} is larger than num_clients {self.num_clients}"
            )
        if self.signing_key is not None and self.node_keys is None:
            raise ValueError(
                "signing_key needs node_keys: requests are signed for the site that a node's key "
                "belongs to"
            )
        return self


class PrivacyConfig(Model):
    """Differential privacy of the clients (see :mod:`fedhubert.federation.privacy.mechanism` and
    :mod:`fedhubert.federation.privacy.distributed`)."""

    mechanism: Literal["none", "central", "distributed"] = "none"
    """central: the server adds noise, so that the model hardly depends on whether any one client
    took part. distributed: each client adds its share before it masks its update (needs
    ``secure=pairwise``). Choose it by ``privacy=central`` or ``privacy=distributed``."""

    noise_multiplier: Annotated[float, Field(ge=0.0, le=1e3)] = key(1.0, unit="clip_norm")
    """Standard deviation of the noise, as it is accounted for. 0: updates are clipped only, which
    protects nothing."""

    clip_norm: Positive = 1.0
    """Longer updates are scaled down to it; with a ``target_quantile``, in the first round."""

    target_quantile: Probability | None = None
    """Share of the updates to be left as they are, which the norm then follows; null: the norm
    stays."""

    clip_learning_rate: Positive = 0.2
    """How fast the norm follows ``target_quantile``."""

    count_noise: Positive | None = key(None, unit="updates")
    """Standard deviation of the noise on the number of updates left as they are; null: a twentieth
    of the expected cohort, and at least ``noise_multiplier``."""

    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """The probability with which epsilon may fail; below 1/``federated.num_clients``, better far
    below."""

    colluding: Count = key(0, unit="clients")
    """Of distributed: clients of a round who may tell the server their noise, or add none; the
    others' is made to suffice without theirs."""

    max_epsilon: Positive | None = None
    """The budget: the run ends before the round that would exceed it; null: there is none."""

    client_metrics: bool = False
    """Whether checkpoints carry the clients' exact figures, which epsilon does not cover."""

    @property
    def enabled(self) -> bool:
        return self.mechanism != "none"

    @property
    def central(self) -> bool:
        """Whether the server adds the noise, to the updates of a sample that it draws."""
        return self.mechanism == "central"

    @property
    def hides_figures(self) -> bool:
        """Whether the clients' exact figures stay out of checkpoints."""
        return self.enabled and not self.client_metrics

    def noise_on_count(self, expected_cohort: float) -> float:
        """Return the standard deviation of the noise on the number of updates left as they are."""
        return self.count_noise or max(expected_cohort / 20.0, self.noise_multiplier)

    def noise_on_sum(self, expected_cohort: float) -> float:
        """Return the standard deviation of the noise on the sum of the updates, in clip norms.

        With an adaptive norm a part of the budget goes to the count, so that the two together are
        one release at the noise multiplier: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2).
        """
        z, count_noise = self.noise_multiplier, self.noise_on_count(expected_cohort)
        if self.target_quantile is not None and z:
            z = (z**-2 - (2.0 * count_noise) ** -2) ** -0.5
        return z

    def largest_clip_norm(self, num_clients: int) -> float:
        """Return the norm up to which the sum of all clients' updates and its noise stay within the
        exact sum's integers."""
        return 2.0**27 / max(num_clients, 16.0 * self.noise_multiplier)

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.count_noise is not None and 2.0 * self.count_noise <= self.noise_multiplier:
            raise ValueError(
                f"count_noise={self.count_noise} must be more than half of "
                f"noise_multiplier={self.noise_multiplier}, which covers the count, too"
            )
        if self.max_epsilon is not None and self.noise_multiplier == 0.0:
            raise ValueError(
                "noise_multiplier=0 has an infinite epsilon, and max_epsilon would allow no round: "
                "leave one of them out"
            )
        return self
