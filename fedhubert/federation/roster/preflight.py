"""What is checked before anything trains: that all sites and the server agree, by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedhubert import __version__
from fedhubert.errors import FederationError
from fedhubert.federation.wire.messages.message import PROTOCOL_VERSION, Answer
from fedhubert.federation.wire.protocol import Reply

Traits = Mapping[str, str | int | float]
"""What a site says of itself, by the keys of :data:`TRAITS`, among others."""


@dataclass(frozen=True)
class Trait:
    """Something that every site must have as the server has it.

    Attributes:
        key: Its name in a site's description.
        text: What it is called in a message.
        remedy: What to do where it differs.
        setting: The config key to look at.
    """

    key: str
    text: str
    remedy: str
    setting: str


TRAITS = (
    Trait("protocol", "protocol", "install the same version of fedhubert on both", "version"),
    Trait("version", "fedhubert version", "install the same version on both", "version"),
    Trait(
        "sample_rate_hz",
        "sample rate",
        "set data.sample_rate_hz to one value",
        "data.sample_rate_hz",
    ),
    Trait(
        "num_clusters",
        "number of clusters",
        "make the site's labels with the federation's centroids, or set targets.num_clusters to "
        "their number",
        "targets.num_clusters",
    ),
    Trait(
        "label_rate_hz",
        "label rate in Hz",
        "make the site's labels at the server's rate, or set targets.label_rate_hz (on the site: "
        "label-rate-hz) to what they are",
        "targets.label_rate_hz",
    ),
    Trait(
        "centroids_hash",
        "hash of the centroids",
        "label every site's audio with one set of centroids",
        "targets.labels",
    ),
    Trait(
        "layout", "model shape", "install the same versions of fedhubert and torch on both", "model"
    ),
)


def check_versions(reply: Reply[Answer]) -> None:
    """Raise :class:`FederationError` if a site that answered runs another protocol or package."""
    stated = reply.versions
    if stated is not None:
        named = "site" if stated.node < 0 else f"site {stated.node}"
        _check(
            {named: {"protocol": stated.protocol, "version": stated.package}},
            {"protocol": PROTOCOL_VERSION, "version": __version__},
        )


def check_alike(sites: Mapping[int, Traits], expected: Traits) -> None:
    """Compare what sites (by partition-id) say of themselves with the server's values.

    ``centroids_hash`` has no value of the server's with precomputed labels: the sites that state
    one must agree.

    Raises:
        FederationError: naming every site that differs in the first trait in which any does, both
            values, and the remedy.
    """
    stated = sorted(
        {str(site["centroids_hash"]) for site in sites.values() if site.get("centroids_hash")}
    )
    values = {"centroids_hash": stated[0], **expected} if stated else expected
    compared = {f"site {number}": site for number, site in sorted(sites.items())}
    _check(compared, values)


def _check(sites: Mapping[str, Traits], expected: Traits) -> None:
    for trait in TRAITS:
        if trait.key not in expected:
            continue
        wanted = expected[trait.key]
        optional = trait.key == "centroids_hash"
        differing = {
            name: str(site.get(trait.key, "not stated"))[:64]
            for name, site in sites.items()
            if site.get(trait.key) != wanted and not (optional and not site.get(trait.key))
        }
        if differing:
            named = ", ".join(f"{name} has {value}" for name, value in differing.items())
            reference = "another site" if optional and len(sites) > 1 else "the server"
            raise FederationError(
                f"{trait.text}: {named}, {reference} {wanted}: {trait.remedy}",
                setting=trait.setting,
            )
