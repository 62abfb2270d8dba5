"""What a strategy is, and where to find one by its name.

A new one is a file in this room: a class registered by its name, which overrides what it does
otherwise than plain averaging.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from fedhubert.clients import Metrics
from fedhubert.config import ClientJob, ClientTerms, Config, FederatedConfig, job_with
from fedhubert.config.elsewhere import STRATEGIES
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.registry import Registry
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.schedule import lr_factor, round_progress

NO_MODEL = ParameterLayout((), ())
"""The layout of no parameters."""

Updates = Mapping[int, tuple[torch.Tensor, int]]
"""Partition -> (update [P], weight)."""


class ServerStrategy:
    """A strategy: by default plain averaging, with a step of ``server_learning_rate`` times the
    mean update.

    Args:
        config: Its settings.
        layout: Names and shapes of the model's P parameters; :data:`NO_MODEL` to ask it questions
            only, which takes no memory.

    Attributes:
        state: What the server keeps between rounds: float32 vectors, most of them [P].
        layout: As given.

    Raises:
        ConfigError: settings that do not go with the strategy.
    """

    needs_every_update: ClassVar[bool] = False
    """Whether it looks at all updates of a round at once (:meth:`combine`); else their exact sum
    suffices."""

    only_adds_up: ClassVar[bool] = True
    """Whether a client's data reaches the model through nothing but its update in the sum:
    differential privacy counts on it."""

    vectors_kept: ClassVar[int] = 0
    """Vectors [P] of ``state``."""

    has_flower_form: ClassVar[bool] = False
    """Whether there is a form with ``bias_correction=flower``."""

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        self.config, self.layout = config, layout
        self.state: dict[str, torch.Tensor] = {}
        if config.bias_correction == "flower" and not self.has_flower_form:
            raise ConfigError(
                "bias_correction=flower is for strategy=FedAdam: Flower corrects no other",
                setting="federated.bias_correction",
            )

    def client_terms(self) -> ClientTerms:
        """Return what clients do beside plain local training."""
        return ClientTerms()

    def combine(self, model: torch.Tensor, updates: Updates) -> torch.Tensor:
        """Return what becomes of a round's ``updates`` of ``model`` [P]: an update, float32[P].
        Only with :attr:`needs_every_update`."""
        raise NotImplementedError

    def mean_factor(self, clients: Mapping[int, Metrics], momentum: float) -> float:
        """Return what the mean update is multiplied by before the step.

        Args:
            clients: Partition -> figures of the clients in the mean, ``train_steps`` and ``weight``
                among them.
            momentum: Of the clients' SGD.
        """
        return 1.0

    def pooled_factor(self, sums: Mapping[str, int | float]) -> float:
        """Return the same as :meth:`mean_factor` where only the clients' figures' ``sums`` are
        known (:mod:`fedhubert.federation.secure.figures`)."""
        return 1.0

    def step(
        self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0
    ) -> torch.Tensor:
        """Return the new model [P], after a step at ``share`` of the rate, in the memory of
        ``mean_update``; ``model`` is left as it is."""
        rate = share * self.config.server_learning_rate
        return torch.add(model, mean_update, alpha=rate, out=mean_update)

    def round_bytes(self, numel: int) -> float:
        """Return the server's memory for a round's updates of ``numel`` entries beyond their one
        sum, for ``fedhubert plan``."""
        return 0.0

    def state_numel(self, layout: ParameterLayout) -> int:
        """Return how many numbers :attr:`state` would have for a model, for ``fedhubert plan``."""
        return self.vectors_kept * layout.numel

    def step_flop(self, layout: ParameterLayout) -> float:
        """Return the floating-point operations of a step for a model, beyond a few for each
        parameter; for ``fedhubert plan``."""
        return 0.0

    def warnings(self, config: Config) -> Iterator[str]:
        """Yield what of a run's settings goes badly with the strategy, by key and with a
        remedy."""
        if config.client.optimizer == "muon" and config.federated.clients_per_round > 1:
            yield (
                "client.optimizer=muon: the mean of clients' orthogonal steps is biased where "
                "their "
                "audio differs, and need not converge (arXiv 2509.26337); "
                "federated.strategy=FedMuon with client.optimizer=sgd client.local_steps=1 "
                "orthogonalises the mean instead"
                + (
                    ""
                    if config.client.shares_momentum or config.privacy.enabled
                    else ", and client.optimizer_policy=shared brings a few local steps closer "
                    "to that"
                )
            )

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take the state of a checkpoint; raises :class:`CheckpointError` when it is another
        strategy's."""
        if set(state) != set(self.state) or any(
            state[key].shape != self.state[key].shape for key in state
        ):
            raise CheckpointError(
                f"the checkpoint's server optimiser state {sorted(state)} does not fit the "
                f"strategy's {sorted(self.state)}; "
                "resume with the strategy and model that the run began with",
                setting="federated.strategy",
            )
        self.state = {key: value.to(torch.float32).clone() for key, value in state.items()}


_STRATEGIES: Registry[type[ServerStrategy]] = Registry(__package__, STRATEGIES.add)

register = _STRATEGIES.register
"""Decorator: ``@register("FedAvg")`` before a :class:`ServerStrategy`; the name is that of
``federated.strategy``."""


def strategy_of(config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> ServerStrategy:
    """Return the strategy that ``config.strategy`` names (see :class:`ServerStrategy`); raises
    :class:`ConfigError`."""
    return _STRATEGIES[config.strategy](config, layout)


def stepped(
    strategy: ServerStrategy,
    layout: ParameterLayout,
    model: torch.Tensor,
    mean_update: torch.Tensor,
    share: float,
) -> torch.Tensor:
    """Return the new model [P] of ``layout`` as :meth:`ServerStrategy.step`, in the memory of
    ``mean_update``; the clients' momenta, which stand behind the parameters that the strategy
    steps, are their mean."""
    count = layout.numel - layout.num_momenta
    if count == layout.numel:
        return strategy.step(model, mean_update, share)
    mean_update[count:].add_(model[count:])
    mean_update[:count].copy_(strategy.step(model[:count], mean_update[:count], share))
    return mean_update


def check_strategy(config: Config) -> ServerStrategy:
    """Return the run's strategy, to be asked questions only.

    Raises:
        ConfigError: it does not go with its settings, with nodes of several clients, or with
        differential privacy.
    """
    strategy, name = strategy_of(config.federated), config.federated.strategy
    nodes = config.simulation.num_supernodes
    if strategy.needs_every_update and nodes is not None and nodes < config.federated.num_clients:
        raise ConfigError(
            f"federated.strategy={name} needs every client's own update, and with "
            f"simulation.num_supernodes={nodes} nodes reply with sums over several clients: leave "
            "simulation.num_supernodes out",
            setting="simulation.num_supernodes",
        )
    if config.privacy.enabled and (strategy.needs_every_update or not strategy.only_adds_up):
        raise ConfigError(
            f"privacy.mechanism={config.privacy.mechanism}: federated.strategy={name} does more "
            "with updates than "
            "add them up: choose FedAvg, FedAvgM, FedAdam, ...",
            setting="federated.strategy",
        )
    if config.client.shares_momentum and strategy.client_terms().normalise_by_steps:
        raise ConfigError(
            f"client.optimizer_policy=shared: federated.strategy={name} divides updates by their "
            "steps, and momenta are not made of steps: choose FedAvg, FedAvgM, ...",
            setting="federated.strategy",
        )
    if config.secure.enabled and strategy.needs_every_update:
        raise ConfigError(
            f"secure.protocol=pairwise: federated.strategy={name} needs every client's own update, "
            "and there are only sums: choose FedAvg, "
            "FedAvgM, FedAdam, ...",
            setting="federated.strategy",
        )
    return strategy


def client_job(config: Config) -> ClientJob:
    """Return what clients receive of ``config``, with what its strategy has them do; raises
    :class:`ConfigError` as :func:`check_strategy`."""
    return job_with(config, check_strategy(config).client_terms())


def server_share(config: FederatedConfig, round_number: int) -> float:
    """Return what of its rate the server takes in a round, counted from 1: ``server_schedule`` at
    the round's middle."""
    progress = round_progress(round_number, config.num_rounds)
    return lr_factor(progress, config.server_warmup_fraction, config.server_schedule)
