"""Distributed differential privacy: clients add the noise before they mask their updates, so that
nobody, the server included, sees a sum without it.

Each update is clipped to C by its site and counts once; each site adds Gaussian noise of standard
deviation z C / sqrt(T - c), where T is the least number of clients that sites open a sum of, and c
how many of them may collude with the server (:mod:`fedhubert.federation.secure.noise`). The others'
noise adds up to z C or more. There is no sampling to count on, since sites and server know who
takes part: a round is a Gaussian mechanism of multiplier z, whose epsilon holds *if at least T - c
clients of each sum are honest*. Neighbours are runs in which one client's updates are zero.

The clip rests on the sites, too: one that does not clip is a danger to the model, and to its own
privacy alone.
"""

import hashlib
import logging
from typing import Any

from fedhubert.config import Config
from fedhubert.config.secure import least_in_cohort
from fedhubert.federation.privacy.accounting import Ledger
from fedhubert.federation.privacy.mechanism import Mechanism, Release
from fedhubert.federation.updates.exact_sum import ExactSum

log = logging.getLogger("fedhubert")


class DistributedPrivacy(Mechanism):
    """Noise by the clients: nothing is added here, and what is opened is private already."""

    def __init__(self, config: Config, ledger: Ledger, clip_norm: float | None = None) -> None:
        super().__init__(config, ledger, clip_norm)
        self._clients = config.federated.clients_per_round

    @property
    def noise_std(self) -> float:
        """Standard deviation of the honest clients' noise on each entry of a sum, at least."""
        return self._settings.noise_multiplier * self.clip_norm

    @property
    def honest(self) -> int:
        """So many clients of a sum have to be honest."""
        least = least_in_cohort(self._federated.clients_per_round)
        return least - self._settings.colluding

    def release(self, number: int, total: ExactSum, clients: int, unclipped: int) -> Release:
        """Return the mean of an opened sum: over who is in it, which is known anyway."""
        self._clients = max(1, clients)
        digest = hashlib.blake2b(total.partial().total.numpy().data, digest_size=8).hexdigest()
        return Release(total.mean(), self.clip_norm, digest)

    def metrics(self, number: int) -> dict[str, Any]:
        """Return the same as other mechanisms, with what epsilon rests on."""
        figures = super().metrics(number)
        figures["noise_std"] = self.noise_std / self._clients
        return {**figures, "honest_clients": self.honest}
