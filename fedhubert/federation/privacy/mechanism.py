"""Central differential privacy of the clients: what leaves the server hardly depends on whether any
one client took part.

A round (McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models"): each
client is in the cohort with probability ``client_fraction``, by itself (Poisson sampling); each
update is clipped to a norm C and counts once; Gaussian noise of standard deviation z C is added to
their sum; the mean is the sum over the *expected* cohort. Who was sampled and fails adds nothing,
and the denominator stays: nothing of one client decides what becomes of another's update. All of it
comes before the server optimiser, which therefore is post-processing.

C is fixed, or follows a quantile of the updates' norms (Andrew et al. 2021, "Differentially Private
Learning with Adaptive Clipping", algorithm 1).

The noise is added to the integer sum, rounded to its grid. An integer plus a rounded variable is
the rounded sum of the two, so the result is the ideal mechanism's, rounded: the gaps of
floating-point noise (Mironov 2012) do not show.

Noise derives from the secret, the round, *and what it is added to*. The same sum after a resume
gets the same noise, and is the same release; another one gets independent noise. One noise on two
sums would give away their difference.
"""

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from fedhubert.config import Config
from fedhubert.errors import FederationError
from fedhubert.federation.privacy.accounting import Ledger, epsilon_of
from fedhubert.federation.privacy.secret import Secret
from fedhubert.federation.updates.exact_sum import ExactSum

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class Release:
    """A round's private mean update [P], the norm for the next round, and a name that only the same
    release has."""

    mean: torch.Tensor
    next_clip_norm: float
    tag: str


class Mechanism:
    """What all mechanisms of a run have: a norm to clip to, and what has been spent.

    Args:
        config: The run's; ``config.privacy`` is enabled.
        ledger: What has been released so far.
        clip_norm: Of the next round.
    """

    def __init__(self, config: Config, ledger: Ledger, clip_norm: float | None = None) -> None:
        self._settings, self._federated = config.privacy, config.federated
        self.ledger = ledger
        self.clip_norm = clip_norm or config.privacy.clip_norm

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each entry of the round's sum."""
        return self._settings.noise_on_sum(self._federated.expected_cohort) * self.clip_norm

    def cohort(self, number: int) -> list[int] | None:
        """Return the partitions of round ``number``; None: as without privacy."""
        return None

    def release(self, number: int, total: ExactSum, clients: int, unclipped: int) -> Release:
        """Return what is released of the sum of the updates of ``clients``, of which so many were
        ``unclipped``."""
        raise NotImplementedError

    def epsilon(self, number: int) -> float:
        """Return epsilon when rounds up to ``number`` are released."""
        return epsilon_of(self.ledger.through(number), self._settings.delta)

    def allows(self, number: int) -> bool:
        """Whether the budget suffices for rounds up to ``number``, and for those that were released
        before an interruption."""
        budget = self._settings.max_epsilon
        return budget is None or self.epsilon(self.ledger.newest(number)) <= budget

    def check_replay(self, number: int, clients: list[int]) -> None:
        """Say that round ``number``, of ``clients``, has come out differently from before an
        interruption.

        Raises:
            FederationError: it would be one release more than the budget allows.
        """
        budget = self._settings.max_epsilon
        spent = self.ledger.through(self.ledger.newest(number), again=number)
        if budget is not None and epsilon_of(spent, self._settings.delta) > budget:
            raise FederationError(
                f"round {number} has come out differently from before the interruption, and to "
                "release it again would exceed "
                f"privacy.max_epsilon={budget:g}; the last checkpoint is the run's result",
                setting="privacy.max_epsilon",
            )
        log.warning(
            "round %d has come out differently from before the interruption (clients %s): it is "
            "accounted for as one release more",
            number,
            clients,
        )

    def metrics(self, number: int) -> dict[str, Any]:
        """Return what is reported of round ``number``, whose release is in the journal; epsilon is
        None where it is infinite."""
        epsilon = self.epsilon(number)
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self._settings.delta,
            "clip_norm": self.clip_norm,
            "noise_std": self.noise_std / self._federated.expected_cohort,
        }

    def to_plain(self) -> dict[str, Any]:
        """Return what resuming needs, but the secret and the journal."""
        return {
            "clip_norm": self.clip_norm,
            "before": [list(kind) for kind in self.ledger.before],
            "begin": self.ledger.begin,
        }


class CentralPrivacy(Mechanism):
    """Noise by the server, on the sum over a sample that it draws.

    Args:
        secret: The server's. The others: see :class:`Mechanism`.
    """

    def __init__(
        self, config: Config, secret: Secret, ledger: Ledger, clip_norm: float | None = None
    ) -> None:
        super().__init__(config, ledger, clip_norm)
        self._secret = secret

    @property
    def _count_noise(self) -> float:
        return self._settings.noise_on_count(self._federated.expected_cohort)

    def cohort(self, number: int) -> list[int]:
        """Return the partitions of round ``number``, each drawn by itself."""
        draws = self._secret.derive("cohort", number).stream().uniform(self._federated.num_clients)
        return [
            partition
            for partition, draw in enumerate(draws)
            if draw <= self._federated.client_fraction
        ]

    def release(self, number: int, total: ExactSum, clients: int, unclipped: int) -> Release:
        """Add the noise to the sum of the updates of ``clients``, of which so many were
        ``unclipped``; it is private from then on."""
        above = unclipped - 0.5 * clients if clients else 0
        digest = hashlib.blake2b(total.partial().total.numpy().data, digest_size=32).hexdigest()
        secret = self._secret.derive("release", number, digest, above, self.noise_std)
        noise = secret.derive("update").stream()
        total.add_noise(self.noise_std, noise.normal)
        mean = total.mean(self._federated.expected_cohort)
        return Release(mean, self._next_clip_norm(secret, above), secret.tag())

    def _next_clip_norm(self, secret: Secret, unclipped: float) -> float:
        quantile = self._settings.target_quantile
        if quantile is None:
            return self.clip_norm
        noised = unclipped + self._count_noise * float(secret.derive("count").stream().normal(1)[0])
        share = 0.5 + noised / self._federated.expected_cohort
        factor = math.exp(-self._settings.clip_learning_rate * (share - quantile))
        return min(
            self.clip_norm * factor, self._settings.largest_clip_norm(self._federated.num_clients)
        )
