"""FedAvgM (Hsu et al. 2019); with Nesterov's momentum it is DiLoCo's outer step (Douillard et al.
2023)."""

import torch

from fedhubert.config import FederatedConfig
from fedhubert.federation.strategies.strategy import NO_MODEL, ServerStrategy, register
from fedhubert.training.parameters import ParameterLayout


@register("FedAvgM")
class FedAvgM(ServerStrategy):
    """Momentum on the mean update: b = momentum b + d; model + learning_rate * b,
    or * (d + momentum b) with Nesterov's look-ahead."""

    vectors_kept = 1

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        super().__init__(config, layout)
        self.state = {"momentum": torch.zeros(layout.numel)}

    def step(
        self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0
    ) -> torch.Tensor:
        momentum = self.config.server_momentum
        buffer = self.state["momentum"].mul_(momentum).add_(mean_update)
        direction = mean_update.add_(buffer, alpha=momentum) if self.config.nesterov else buffer
        rate = share * self.config.server_learning_rate
        return torch.add(model, direction, alpha=rate, out=mean_update)
