"""What FedAdam, FedYogi and FedAdagrad have in common (Reddi et al. 2021, Algorithm 2): no bias
correction, and ``v`` starts at ``tau ** 2``."""

import torch

from fedhubert.config import FederatedConfig
from fedhubert.federation.strategies.strategy import NO_MODEL, ServerStrategy
from fedhubert.training.parameters import ParameterLayout


class Adaptive(ServerStrategy):
    """m = beta1 m + (1 - beta1) d; v by the rule of the subclass; then
    model + eta m / (sqrt(v) + tau)."""

    vectors_kept = 2

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        super().__init__(config, layout)
        self.eta, self.tau = config.eta, config.tau
        self.beta1, self.beta2 = config.beta1, config.beta2
        self.state = {"m": torch.zeros(layout.numel), "v": torch.full((layout.numel,), self.tau**2)}

    def step(
        self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0
    ) -> torch.Tensor:
        m, v = self.state["m"], self.state["v"]
        m.mul_(self.beta1).add_(mean_update, alpha=1.0 - self.beta1)
        self._second_moment(v, mean_update)
        scale = torch.sqrt(v, out=mean_update).add_(self.tau)
        return torch.addcdiv(model, m, scale, value=share * self._rate(), out=mean_update)

    def _rate(self) -> float:
        return self.eta

    def _second_moment(self, v: torch.Tensor, d: torch.Tensor) -> None:
        """Update ``v`` in place."""
        raise NotImplementedError
