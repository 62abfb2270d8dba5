"""FedAvg (McMahan et al. 2017)."""

from fedhubert.federation.strategies.strategy import ServerStrategy, register


@register("FedAvg")
class FedAvg(ServerStrategy):
    """model + learning_rate * mean update."""
