"""FedNova (Wang et al. 2020): updates are averaged per effective local step."""

from collections.abc import Mapping

from fedhubert.clients import Metrics
from fedhubert.config import ClientTerms
from fedhubert.federation.strategies.strategy import ServerStrategy, register
from fedhubert.federation.updates.pipeline import effective_steps


@register("FedNova")
class FedNova(ServerStrategy):
    """Clients divide their updates by their effective steps; the mean gets back the cohort's mean
    number of them."""

    only_adds_up = False

    def client_terms(self) -> ClientTerms:
        return ClientTerms(normalise_by_steps=True)

    def mean_factor(self, clients: Mapping[int, Metrics], momentum: float) -> float:
        ordered = [clients[partition] for partition in sorted(clients)]
        steps = [effective_steps(int(client["train_steps"]), momentum) for client in ordered]
        weights = [float(client["weight"]) for client in ordered]
        return sum(weight * step for weight, step in zip(weights, steps, strict=True)) / sum(
            weights
        )
