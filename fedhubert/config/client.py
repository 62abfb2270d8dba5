"""Local training, and failures to rehearse with."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from fedhubert.config.base import (
    Count,
    Fraction,
    Model,
    NonNegative,
    Positive,
    PositiveInt,
    Probability,
)
from fedhubert.config.keys import key
from fedhubert.config.muon import MuonConfig


def device_names(text: str) -> tuple[str, ...]:
    """Return cuda:0 and cuda:1 for ``cuda:0,1``; what names one device by itself."""
    kind, _, numbers = text.partition(":")
    return tuple(f"{kind}:{number}" for number in numbers.split(",")) if "," in numbers else (text,)


class ClientConfig(Model):
    """Local training on one client."""

    local_steps: PositiveInt | None = key(None, unit="optimiser steps")
    """Steps of a client per round; null: ``local_epochs``. More of them mean fewer rounds and
    bytes, and clients that drift further apart."""

    local_epochs: PositiveInt = 1
    """Passes over a client's audio per round, where ``local_steps`` is null."""

    max_seconds: Positive | None = key(None, unit="s")
    """A client that trains longer stops early and sends what it has; null: no limit. For sites of
    very different speed."""

    accumulate: PositiveInt = key(1, unit="micro-batches")
    """Micro-batches per optimiser step: larger batches than the memory holds."""

    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """Local optimiser. muon learns faster where one client is the whole run; sgd for one step a
    round (its step is the gradient, for FedAdam or FedMuon) and for FedNova."""

    optimizer_policy: Literal["reset", "keep", "shared"] = key("reset", fork=["momenta"])
    """keep: the optimiser's state stays on the site between rounds; reset: every round begins
    without; shared: muon's momentum is averaged like the model and goes out with it, for several
    local steps a round (nearly twice the bytes)."""

    lr: Positive = 5e-4
    """Peak learning rate of the local optimiser. The first key to tune with another model or number
    of clients."""

    momentum: Probability = 0.0
    """Of sgd; adamw has ``betas``, and muon a momentum of its own."""

    muon: MuonConfig = MuonConfig()
    """Of muon: how it orthogonalises."""

    betas: tuple[Probability, Probability] = (0.9, 0.98)
    """Decay of adamw's means of gradients and of their squares, as in the HuBERT recipe; also
    of what muon leaves to adamw."""

    eps: Positive = 1e-6
    """Added to adamw's denominator; raise it where fp16 gradients are tiny."""

    weight_decay: NonNegative = 0.01
    """Decoupled weight decay of adamw and muon (sgd: L2), as in the HuBERT recipe."""

    warmup_fraction: Fraction = 0.08
    """Share of the whole run's rounds in which the rate rises from 0."""

    schedule: Literal["linear", "constant"] = "linear"
    """The rate after the warm-up, over the whole run: linear falls to 0. constant where the server
    has a schedule."""

    grad_clip_norm: NonNegative = 10.0
    """Longest gradient of a step; longer ones are scaled down to it. 0: off."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of forward and backward pass; weights stay fp32. bf16 on GPUs that have it, fp16 on
    older ones."""

    activation_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""

    compile: bool = False
    """``torch.compile`` of the training step: a graph for each of a few lengths, to which training
    crops are then cut (up to 13 % shorter). Worth its minutes of compiling on GPUs; where it fails,
    training goes on without."""

    device: str = key("auto", resume="free", site="device")
    """Where a client trains: auto (a GPU where there is one), cpu, cuda, cuda:1. Several, as
    cuda:0,1,2,3 or cpu:0,1, share each step's ``accumulate`` micro-batches: one process for each,
    and the same step to rounding."""

    threads: Annotated[int, Field(ge=1, le=1024)] = key(1, unit="CPU threads")
    """Threads of a client's arithmetic; on a simulating host times ``simulation.num_workers``. Sums
    depend on it in the last bits."""

    validation_batches: Count = key(0, unit="micro-batches")
    """Of the validation split, scored by each client each round; 0: all. The final model is scored
    on all."""

    validation_every: PositiveInt = key(1, unit="rounds")
    """Clients score the incoming model in the first round and in every so manieth after it. More
    than 1 where rounds are as short as a step: scoring a micro-batch costs two fifths of one.
    Early stopping and ``checkpoint.keep_best`` see the scored models alone."""

    state_dir: str | None = key(None, resume="free", site="state-dir", path=True)
    """Folder where a site keeps labels, features, teachers, kept optimisers and personal heads;
    null: below the user's cache folder."""

    state_max_gb: Positive | None = key(100.0, unit="GB", site="state-max-gb")
    """At the start of a run, what was not used for longest goes until the state folder fits; null:
    nothing goes."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that share a client's steps: no more than a step has micro-batches."""
        return device_names(self.device)[: self.accumulate]

    def steps_per_round(self, num_batches: int) -> int:
        """Return the optimiser steps of a round for a client whose epoch has ``num_batches``
        micro-batches."""
        return self.local_steps or max(1, num_batches // self.accumulate) * self.local_epochs

    def scores_in(self, round_number: int) -> bool:
        """Whether clients score the model that they get in this round, counted from 1."""
        return (round_number - 1) % self.validation_every == 0

    @property
    def shares_momentum(self) -> bool:
        """Whether muon's momentum travels with the model."""
        return self.optimizer_policy == "shared"

    @property
    def remembered_steps(self) -> int:
        """The last steps that most of muon's momentum is of."""
        return math.ceil(1.0 / (1.0 - self.muon.momentum))

    @property
    def sgd_momentum(self) -> float:
        """The momentum that FedNova has to know of; AdamW's and Muon's count as none."""
        return self.momentum if self.optimizer == "sgd" else 0.0


class BaselineConfig(Model):
    """What training without federation takes instead of ``client``'s (None: the same): a server
    optimiser's clients may need another optimiser."""

    optimizer: Literal["adamw", "muon", "sgd"] | None = None
    """Optimiser of ``fedhubert central`` and ``compare``; null: ``client.optimizer``. adamw, or
    muon beside FedMuon, where the clients take plain steps."""

    lr: Positive | None = None
    """Its peak learning rate; null: ``client.lr``."""

    schedule: Literal["linear", "constant"] | None = None
    """Its rate after the warm-up; null: ``client.schedule``."""

    warmup_fraction: Fraction | None = None
    """Share of the run in which its rate rises from 0; null: ``client.warmup_fraction``."""

    weight_decay: NonNegative | None = None
    """Its weight decay; null: ``client.weight_decay``."""

    def of(self, client: ClientConfig) -> ClientConfig:
        """Return the settings of ``client`` with these in their place."""
        return client.model_copy(update=self.model_dump(exclude_none=True))


class FaultsConfig(Model):
    """Failures to rehearse with: each client of each round draws, from the run's seed, whether it
    fails and how."""

    crash: Fraction = 0.0
    """Probability that the node dies instead of answering (a node that hosts several clients loses
    all of them)."""

    delay_s: NonNegative = key(0.0, unit="s")
    """Up to this long a client waits before it answers."""

    nan: Fraction = 0.0
    """Probability of an update with a value that is not a number."""

    truncate: Fraction = 0.0
    """Probability of an update that is cut short."""
