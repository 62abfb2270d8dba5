"""FedProx (Li et al. 2020)."""

from fedhubert.config import ClientTerms
from fedhubert.federation.strategies.strategy import ServerStrategy, register


@register("FedProx")
class FedProx(ServerStrategy):
    """Clients are pulled towards the incoming model by ``proximal_mu``; the server averages."""

    def client_terms(self) -> ClientTerms:
        return ClientTerms(proximal_mu=self.config.proximal_mu)
