"""FedMuon: Muon as server optimiser (see :mod:`fedhubert.training.muon`).

The mean of plain SGD steps at one rate is minus the gradient of all clients' audio, so that with
``client.local_steps=1`` this is central Muon. It is not the method that arXiv 2509.26337 gives the
same name, which corrects clients that step by Muon themselves.
"""

from collections.abc import Iterator

import torch

from fedhubert.config import Config, FederatedConfig
from fedhubert.federation.strategies.strategy import NO_MODEL, ServerStrategy, register
from fedhubert.training.device import resolve_device
from fedhubert.training.muon import (
    adamw_step,
    is_hidden_matrix,
    muon_step,
    numel_of_matrices,
    orthogonalising_flop,
)
from fedhubert.training.parameters import ParameterLayout


@register("FedMuon")
class FedMuon(ServerStrategy):
    """Hidden matrices by Muon, all else by AdamW (with ``beta1``, ``beta2`` and ``tau``), both at
    ``eta``; the gradient is minus the mean update."""

    def __init__(self, config: FederatedConfig, layout: ParameterLayout = NO_MODEL) -> None:
        super().__init__(config, layout)
        self._matrices = [
            name
            for name, shape in zip(layout.names, layout.shapes, strict=True)
            if is_hidden_matrix(name, shape)
        ]
        self._others = [name for name in layout.names if name not in set(self._matrices)]
        matrices = numel_of_matrices(layout)
        others = layout.numel - matrices
        self.state = {
            "momentum": torch.zeros(matrices),
            "exp_avg": torch.zeros(others),
            "exp_avg_sq": torch.zeros(others),
            "steps": torch.zeros(1 if layout.numel else 0),
        }

    def step(
        self, model: torch.Tensor, mean_update: torch.Tensor, share: float = 1.0
    ) -> torch.Tensor:
        config, lr = self.config, share * self.config.eta
        weights, updates = self.layout.split(model), self.layout.split(mean_update)
        device = resolve_device(config.server_device, "federated.server_device")
        buffers = torch.split(
            self.state["momentum"], [weights[name].numel() for name in self._matrices]
        )
        for name, buffer in zip(self._matrices, buffers, strict=True):
            weight = weights[name].to(device, copy=True)
            momentum = buffer.view_as(weights[name]).to(device)
            muon_step(
                weight,
                -updates[name].to(device),
                momentum,
                config.muon,
                lr,
                config.server_weight_decay,
            )
            buffer.copy_(momentum.flatten())
            updates[name].copy_(weight)
        if self._others:
            self._step_others(weights, updates, lr)
        return mean_update

    def _step_others(
        self, weights: dict[str, torch.Tensor], updates: dict[str, torch.Tensor], lr: float
    ) -> None:
        """Put the other parameters' new values in the place of their updates."""
        config, others = self.config, self._others
        stepped = torch.cat([weights[name].flatten() for name in others])
        adamw_step(
            [stepped],
            [-torch.cat([updates[name].flatten() for name in others])],
            [self.state["exp_avg"]],
            [self.state["exp_avg_sq"]],
            [self.state["steps"].squeeze()],
            lr=lr,
            betas=(config.beta1, config.beta2),
            eps=config.tau,
            weight_decay=config.server_weight_decay,
        )
        parts = torch.split(stepped, [weights[name].numel() for name in others])
        for name, part in zip(others, parts, strict=True):
            updates[name].copy_(part.view_as(updates[name]))

    def state_numel(self, layout: ParameterLayout) -> int:
        return 2 * layout.numel - numel_of_matrices(layout) + 1

    def step_flop(self, layout: ParameterLayout) -> float:
        return orthogonalising_flop(layout)

    def warnings(self, config: Config) -> Iterator[str]:
        yield from super().warnings(config)
        client = config.client
        if (client.optimizer, client.momentum, client.local_steps) != ("sgd", 0.0, 1):
            yield (
                "federated.strategy=FedMuon is central Muon where clients take one plain step, and "
                "drifts from it where they take several, or other ones: set client.optimizer=sgd "
                "client.momentum=0 client.local_steps=1"
            )
