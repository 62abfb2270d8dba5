"""A toy strategy in one file: clients normalise by their steps, and the server moves every
parameter by its rate, in the direction of a momentum."""

from collections.abc import Mapping

import torch

from fedhubert.clients import Metrics
from fedhubert.config import ClientTerms, FederatedConfig
from fedhubert.federation.strategies.strategy import NO_MODEL, ServerStrategy, register
from fedhubert.training.parameters import ParameterLayout


@register("ToySign")
class ToySign(ServerStrategy):
    """b = momentum b + d, d the doubled mean; model + learning_rate * sign(b)."""

    vectors_kept = 1

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        super().__init__(config, layout)
        self.state = {"momentum": torch.zeros(layout.numel)}

    def client_terms(self) -> ClientTerms:
        return ClientTerms(normalise_by_steps=True)

    def mean_factor(self, clients: Mapping[int, Metrics], momentum: float) -> float:
        return 2.0

    def step(
        self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0
    ) -> torch.Tensor:
        direction = (
            self.state["momentum"].mul_(self.config.server_momentum).add_(mean_update).sign()
        )
        return torch.add(
            model, direction, alpha=share * self.config.server_learning_rate, out=mean_update
        )
