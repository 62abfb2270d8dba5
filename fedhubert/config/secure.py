"""Whether the server sees sums only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from fedhubert.config.base import Model, PositiveInt
from fedhubert.config.federated import FederatedConfig, PrivacyConfig
from fedhubert.config.keys import key
from fedhubert.config.targets import TargetsConfig

SecureProtocol = Literal["none", "pairwise"]

LEAST_COHORT = 3
"""A sum of two tells each of them what the other has."""


class SecureConfig(Model):
    """Secure aggregation (see the chapter in ``fedhubert/federation/secure``)."""

    protocol: SecureProtocol = "none"
    """pairwise: clients mask what they send, so that the server sees sums only; the model is the
    same, bit for bit. Choose it by ``secure=pairwise``."""

    roster: str | None = key(None, path=True, resume="free")
    """File on the server, roster.json (``fedhubert certs --roster``): the keys of the federation's
    sites, which sites pin, too; null: a throw-away one of a simulation, which protects nothing."""

    threshold: PositiveInt | None = key(None, unit="clients", resume="free")
    """Clients who suffice to open a sum; null: two thirds of those asked, and one more, the fewest
    that sites accept. More withstand more sites that collude, and fewer that drop out."""

    neighbours: PositiveInt | None = key(None, unit="clients", resume="free")
    """With how many others each client has a mask; null: with all of up to 50, else with 62. Sites
    that have pinned a roster accept only all."""

    @property
    def enabled(self) -> bool:
        return self.protocol != "none"


def least_threshold(helpers: int) -> int:
    """Return the fewest of ``helpers`` who may open: with 2 T > n + c, c of them who collude cannot
    have some open one thing and the others another."""
    return 2 * helpers // 3 + 1


def least_in_cohort(cohort: int, min_sites: int = 0) -> int:
    """Return the fewest of a ``cohort`` whose sum sites open."""
    return max(LEAST_COHORT, min_sites, least_threshold(cohort))


def against_distributed(
    secure: SecureConfig, privacy: PrivacyConfig, federated: FederatedConfig
) -> Iterator[str]:
    """Name what does not go with noise that clients add themselves, and what to do about it."""
    if not secure.enabled:
        yield (
            "a single client's share of the noise hides little: choose secure=pairwise, so that "
            "the server sees their sum"
        )
    if privacy.target_quantile is not None:
        yield (
            "the norm cannot follow how many updates it leaves as they are, which nobody adds "
            "noise to: leave out privacy.target_quantile"
        )
    least = least_in_cohort(federated.clients_per_round)
    if privacy.colluding >= least:
        yield (
            f"privacy.colluding={privacy.colluding}, and as few as {least} of "
            f"{federated.clients_per_round} clients may be in a sum: "
            f"{least - 1} at most"
        )
    if (
        1.0 + 9.0 * privacy.noise_multiplier
    ) * privacy.clip_norm * federated.num_clients >= 2.0**27:
        yield (
            f"privacy.clip_norm={privacy.clip_norm:g}: updates and their noise may be beyond what "
            "a sum holds"
        )


def against_secure(
    federated: FederatedConfig, privacy: PrivacyConfig, targets: TargetsConfig | None
) -> Iterator[str]:
    """Name what does not go with sums that nobody sees the parts of, and what to do about it;
    ``targets``: None where the task needs no labels."""
    if federated.over_commit > 1.0:
        yield (
            f"federated.over_commit={federated.over_commit} has clients mask in vain, whom all "
            "others have to open: set federated.over_commit=1"
        )
    if federated.client_cosines:
        yield (
            "federated.client_cosines=true sends a sketch of each update: set "
            "federated.client_cosines=false"
        )
    if federated.clients_per_round < LEAST_COHORT:
        yield (
            f"a round of {federated.clients_per_round} clients "
            f"(federated.num_clients={federated.num_clients}, "
            f"federated.client_fraction={federated.client_fraction}) is no sum that hides any: "
            f"{LEAST_COHORT} at least"
        )
    early = federated.early_stopping
    if early.patience is not None and early.over == "clients":
        yield (
            "federated.early_stopping.over=clients goes by each client's figures: set "
            "federated.early_stopping.over=frames"
        )
    if privacy.central and federated.client_fraction < 1.0:
        yield (
            f"federated.client_fraction={federated.client_fraction} counts on nobody knowing who "
            "was sampled, and the sites of a cohort know "
            "each other: set federated.client_fraction=1"
        )
    if privacy.client_metrics:
        yield (
            "privacy.client_metrics=true: there are no figures of single clients: set "
            "privacy.client_metrics=false"
        )
    if targets and targets.kind == "kmeans" and targets.seeding == "local":
        yield "targets.seeding=local sends each client's own centroids: set targets.seeding=moments"
