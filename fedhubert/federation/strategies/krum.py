"""Krum (Blanchard et al. 2017): the update that is nearest to most others."""

from fedhubert.config import FederatedConfig
from fedhubert.errors import ConfigError
from fedhubert.federation.strategies.robust import Robust
from fedhubert.federation.strategies.strategy import NO_MODEL, register
from fedhubert.federation.wire import flower
from fedhubert.training.parameters import ParameterLayout


@register("Krum")
class Krum(Robust):
    """Picks one client's update; of n clients, ``num_malicious`` = f may lie if n >= 2 f + 3."""

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        super().__init__(config, layout)
        needed = 2 * config.num_malicious + 3
        if config.quorum < needed:
            raise ConfigError(
                f"strategy=Krum against num_malicious={config.num_malicious} needs at least "
                f"{needed} updates a round (n >= 2 f + 3), and as few as {config.quorum} would do "
                "here: raise min_clients",
                setting="federated.min_clients",
            )

    def in_flower(self) -> flower.FedAvg:
        return flower.Krum(num_malicious_nodes=self.config.num_malicious)
