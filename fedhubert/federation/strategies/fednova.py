"""FedNova (Wang et al. 2020): updates are averaged per effective local step."""

from collections.abc import Mapping

from fedhubert.clients import Metrics
from fedhubert.config import ClientTerms
from fedhubert.federation.secure.figures import on_grid
from fedhubert.federation.secure.tail import BITS
from fedhubert.federation.strategies.strategy import ServerStrategy, register
from fedhubert.federation.updates.pipeline import effective_steps


@register("FedNova")
class FedNova(ServerStrategy):
    """Clients divide their updates by their effective steps; the mean gets back the cohort's mean
    number of them, each on the grid of a secure sum's figures: the same in the clear and masked."""

    only_adds_up = False

    def client_terms(self) -> ClientTerms:
        return ClientTerms(normalise_by_steps=True)

    def mean_factor(self, clients: Mapping[int, Metrics], momentum: float) -> float:
        weights = [int(client["weight"]) for client in clients.values()]
        steps = [
            on_grid(effective_steps(int(client["train_steps"]), momentum))
            for client in clients.values()
        ]
        total = sum(weight * step for weight, step in zip(weights, steps, strict=True))
        return total / 2**BITS / sum(weights)

    def pooled_factor(self, sums: Mapping[str, int | float]) -> float:
        return sums["weighted_steps"] / sums["weight"]
