"""FedAdam (Reddi et al. 2021), and as Flower has it."""

import torch

from fedhubert.config import FederatedConfig
from fedhubert.federation.strategies.adaptive import Adaptive
from fedhubert.federation.strategies.strategy import NO_MODEL, register
from fedhubert.training.parameters import ParameterLayout


@register("FedAdam")
class FedAdam(Adaptive):
    """v = beta2 v + (1 - beta2) d^2.

    With ``bias_correction=flower`` as Flower 1.41 has it: ``v`` starts at 0, and eta is corrected
    by Adam's factors of step t + 1 in step t.
    """

    has_flower_form = True

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        super().__init__(config, layout)
        if config.bias_correction == "flower":
            self.state["v"].zero_()
            self.state["steps"] = torch.zeros(1)

    def _rate(self) -> float:
        if self.config.bias_correction == "none":
            return self.eta
        self.state["steps"] += 1
        power = float(self.state["steps"]) + 1.0
        return float(self.eta * (1.0 - self.beta2**power) ** 0.5 / (1.0 - self.beta1**power))

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        v.mul_(self.beta2).addcmul_(d, d, value=1.0 - self.beta2)
