"""FedYogi (Reddi et al. 2021)."""

import torch

from fedhubert.federation.strategies.adaptive import Adaptive
from fedhubert.federation.strategies.strategy import register


@register("FedYogi")
class FedYogi(Adaptive):
    """v = v - (1 - beta2) d^2 sign(v - d^2)."""

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        square = d * d
        v.sub_(square * torch.sign(v - square), alpha=1.0 - self.beta2)
