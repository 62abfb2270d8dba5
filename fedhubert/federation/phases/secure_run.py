"""How a run of secure sums begins and ends on the server."""

import logging

from fedhubert.config.secure import LEAST_COHORT
from fedhubert.errors import FederationError
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.rounds.secure_terms import terms_for
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.nodes import Has
from fedhubert.federation.wire.messages.secure import Close

log = logging.getLogger("fedhubert")

CLOSE_TIMEOUT_S = 30.0
"""Who does not hear of the end within it keeps its run key."""


def say_how_secure(federation: Federation) -> None:
    """Log who protects whom in a run of secure sums, and how many have to; nothing without them.

    Raises:
        FederationError: too few clients for any sum.
    """
    if not federation.config.secure.enabled:
        return
    roster, count = federation.roster, len(federation.connected)
    least = max(LEAST_COHORT, roster.min_sites if roster else 0)
    wanted = min(count, federation.config.federated.clients_per_round)
    if wanted < least:
        raise FederationError(
            f"{count} clients are connected, of which {wanted} make a round: a secure sum is of "
            f"{least} at least",
            setting="federated.num_clients",
        )
    terms = terms_for(federation, "", 0, 0, sorted(federation.connected)[:wanted])
    helpers, threshold = terms.secrets(), terms.threshold
    log.info(
        "secure sums: of %d clients a round any %d open it; %d may drop out, %d may collude with "
        "the server%s",
        wanted,
        threshold,
        helpers - threshold,
        max(0, min(2 * threshold - helpers - 1, helpers - 2)),
        f"; roster {roster.federation}, {roster.fingerprint[:16]}" if roster else "",
    )
    if federation.config.privacy.enabled:
        log.warning(
            "privacy.mechanism=central on opened sums: nobody sees an update, so that clipping, "
            "and with it epsilon, rests on the sites"
        )
    if roster is None:
        log.warning(
            "secure sums with a throw-away roster: this computer plays all sites and has all their "
            "keys, so nothing is protected here; real "
            "sites pin a roster (fedhubert certs --roster)"
        )


def close_run(federation: Federation) -> None:
    """Tell the sites that the run is over, so that they delete its run keys."""
    if not federation.config.secure.enabled:
        return
    failures: list[Failure] = []
    shares: dict[int, list[int]] = {node: [] for node in federation.hosts}
    for reply in federation.ask(Close(), Has, shares, timeout_s=CLOSE_TIMEOUT_S):
        failures += reply.failures
    if failures:
        log.warning(
            "not every site has deleted its keys of this run: %s", describe_failures(failures)
        )
