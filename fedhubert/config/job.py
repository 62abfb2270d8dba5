"""What of a run's configuration clients receive."""

from __future__ import annotations

from typing import TypeVar

from fedhubert.config.base import Count, Model, NonNegative, PositiveInt
from fedhubert.config.client import ClientConfig, FaultsConfig
from fedhubert.config.data import DataConfig
from fedhubert.config.federated import UpdateCodec, Weighting
from fedhubert.config.keys import rules_of
from fedhubert.config.model import ModelConfig
from fedhubert.config.run import Config
from fedhubert.config.secure import SecureProtocol
from fedhubert.config.targets import TargetsConfig
from fedhubert.config.task import Task

GroupT = TypeVar("GroupT", bound=Model)


class ClientTerms(Model):
    """What a strategy has clients do beside plain local training: see :class:`ClientJob`."""

    proximal_mu: NonNegative = 0.0
    """Weight of a pull towards the incoming model in the local loss; 0: none."""

    normalise_by_steps: bool = False
    """Whether a client divides its update by its effective local steps."""


class ClientJob(Model):
    """The part of a run's configuration that clients receive: no server path is in it."""

    seed: Count
    """The run's ``seed``."""

    num_clients: PositiveInt
    """``federated.num_clients``."""

    num_rounds: PositiveInt
    """``federated.num_rounds``, of which schedules are shares."""

    weight_by: Weighting
    """``federated.weight_by``."""

    proximal_mu: NonNegative
    """The strategy's :class:`ClientTerms`: weight of the pull towards the incoming model; 0:
    none."""

    normalise_by_steps: bool
    """The strategy's :class:`ClientTerms`: whether a client divides its update by its steps."""

    update_codec: UpdateCodec
    """``federated.update_codec``."""

    sends_sketches: bool
    """Whether a sketch of the update goes with it (``federated.client_cosines``, never with
    privacy)."""

    secure: SecureProtocol
    """``secure.protocol``."""

    noise_multiplier: NonNegative
    """``privacy.noise_multiplier`` of ``privacy=distributed``; 0: clients add no noise."""

    colluding: Count
    """``privacy.colluding``."""

    data: DataConfig
    """The server's ``data``; a site's own manifest takes the place of its paths."""

    model: ModelConfig
    """``model``."""

    task: Task
    """``task`` without its server-only keys."""

    targets: TargetsConfig
    """``targets`` without its server-only keys."""

    client: ClientConfig
    """``client``."""

    faults: FaultsConfig
    """``faults``."""

    @property
    def keeps_state(self) -> bool:
        """Whether sites keep something between rounds: a local optimiser, what a lossy codec left
        over, or a head of their own."""
        return (
            self.client.optimizer_policy == "keep"
            or self.update_codec == "int8"
            or not self.task.shares_head
        )


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
        secure=config.secure.protocol,
        noise_multiplier=config.privacy.noise_multiplier
        if config.privacy.mechanism == "distributed"
        else 0.0,
        colluding=config.privacy.colluding,
        data=_without_server_keys(config.data),
        model=_without_server_keys(config.model),
        task=_without_server_keys(config.task),
        targets=_without_server_keys(config.targets),
        client=_without_server_keys(config.client),
        faults=_without_server_keys(config.faults),
    )


def _without_server_keys(group: GroupT) -> GroupT:
    """Return ``group`` with its server-only keys as if nobody had set them."""
    fields = type(group).model_fields.items()
    return group.model_copy(
        update={name: field.default for name, field in fields if rules_of(field).get("server_only")}
    )
