"""FedMedian (Yin et al. 2018): the median of each entry."""

from flwr.serverapp import strategy as flower

from fedhubert.federation.strategies.robust import Robust
from fedhubert.federation.strategies.strategy import register


@register("FedMedian")
class FedMedian(Robust):
    """Counts every client alike."""

    def in_flower(self) -> flower.FedAvg:
        return flower.FedMedian()
