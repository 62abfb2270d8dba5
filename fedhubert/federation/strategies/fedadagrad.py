"""FedAdagrad (Reddi et al. 2021)."""

import torch

from fedhubert.federation.strategies.adaptive import Adaptive
from fedhubert.federation.strategies.strategy import register


@register("FedAdagrad")
class FedAdagrad(Adaptive):
    """v = v + d^2."""

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        v.addcmul_(d, d)
