"""FedMedian (Yin et al. 2018): the median of each entry."""

from fedhubert.federation.strategies.robust import Robust
from fedhubert.federation.strategies.strategy import register
from fedhubert.federation.wire import flower


@register("FedMedian")
class FedMedian(Robust):
    """Counts every client alike."""

    def in_flower(self) -> flower.FedAvg:
        return flower.FedMedian()
