"""What a run's differential privacy adds and spends: noise on each round's mean update, epsilon
when all rounds are released, and the seconds in which noise is drawn."""

from dataclasses import dataclass

from fedhubert.config import Config
from fedhubert.federation.privacy.distributed import DistributedPrivacy
from fedhubert.federation.privacy.mechanism import Mechanism
from fedhubert.federation.privacy.opening import ledger_of
from fedhubert.planning.inputs import Inputs

NOISE_S = 5e-8
"""To draw one normal variable and add it."""


@dataclass(frozen=True)
class PrivacyPlan:
    """Estimates of a private run.

    Attributes:
        epsilon: At ``delta``, when all rounds are released; None: infinite.
        noise_std: Standard deviation of the noise on each parameter of a round's mean update, with
            ``privacy.clip_norm``; of distributed, of the honest clients' noise alone.
        honest_clients: So many of each sum have to be honest; None where the server adds noise.
    """

    mechanism: str
    epsilon: float | None
    delta: float
    noise_std: float
    honest_clients: int | None


def privacy_of(config: Config) -> PrivacyPlan | None:
    """Return the estimates of the run of ``config``; None where it asks for no privacy.

    Raises:
        ConfigError: ``dp-accounting`` is missing.
    """
    if not config.privacy.enabled:
        return None
    kind = Mechanism if config.privacy.central else DistributedPrivacy
    figures = kind(config, ledger_of(config)).metrics(config.federated.num_rounds)
    return PrivacyPlan(
        config.privacy.mechanism,
        figures["epsilon"],
        figures["delta"],
        figures["noise_std"],
        figures.get("honest_clients"),
    )


def client_noise_s(inputs: Inputs) -> float:
    """Return the seconds in which a client draws its noise for a round."""
    privacy = inputs.config.privacy
    return NOISE_S * inputs.numel if privacy.enabled and not privacy.central else 0.0


def server_noise_s(inputs: Inputs) -> float:
    """Return the seconds in which the server draws a round's noise."""
    return NOISE_S * inputs.numel if inputs.config.privacy.central else 0.0
