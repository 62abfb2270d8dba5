"""FedTrimmedAvg (Yin et al. 2018): the mean of each entry without its largest and smallest
values."""

from fedhubert.federation.strategies.robust import Robust
from fedhubert.federation.strategies.strategy import register
from fedhubert.federation.wire import flower


@register("FedTrimmedAvg")
class FedTrimmedAvg(Robust):
    """Cuts ``trim_fraction`` of the clients off at each end, and counts the others alike."""

    def in_flower(self) -> flower.FedAvg:
        return flower.FedTrimmedAvg(beta=self.config.trim_fraction)
