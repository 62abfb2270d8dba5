"""The ring of a run's updates: how large its steps are is the server's to say, and is the same in
all rounds, attempts and replays."""

import logging
import math

from fedhubert.config import Config
from fedhubert.config.secure import LEAST_COHORT, least_in_cohort
from fedhubert.errors import FederationError
from fedhubert.federation.roster.bounds import training_bounds
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.secure.noise import LEAST_STEPS
from fedhubert.federation.updates.exact_sum import MAX_WEIGHT
from fedhubert.federation.updates.ring import RING_BITS, Ring
from fedhubert.federation.wire.messages.rounds import RingTerms

log = logging.getLogger("fedhubert")

_FARTHEST = 9.0
"""No draw is as far out, in standard deviations: see
:meth:`fedhubert.federation.secure.streams.SecretStream.normal`; nor, but once in 2**60, a sum."""

_MUCH = 1e-4
"""So many of the entries may be cut off without a warning."""


def ring_of(federation: Federation, state: RoundState, weight_limit: int | None) -> Ring | None:
    """Return the ring of ``federated.update_codec``, None where it has none.

    The largest weight is that of the clients of the first round; who joins later with more weighs
    as much.
    """
    config = federation.config
    bits = RING_BITS.get(config.federated.update_codec)
    if bits is None:
        return None
    if not state.largest_weight:
        state.largest_weight = max(
            (
                training_bounds(config, about, weight_limit).weight
                for about in federation.partitions.values()
            ),
            default=1,
        )
    most, summands = max(1, min(state.largest_weight, MAX_WEIGHT)), summands_of(config)
    share, all_of_it = _noise_of(config, summands)
    ring = Ring(bits, config.federated.ring_clip, summands, most, headroom=_FARTHEST * all_of_it)
    if share and share < LEAST_STEPS * ring.unit:
        raise FederationError(
            f"federated.update_codec={config.federated.update_codec}: a client's noise has a "
            f"standard deviation of {share:.3g}, and the ring has "
            f"steps of {ring.unit:.3g}: lower federated.ring_clip, or take a wider ring",
            setting="federated.update_codec",
        )
    return ring


def terms_of(ring: Ring) -> RingTerms:
    """Return what a client has to know of the ring."""
    return RingTerms(
        clip=ring.clip,
        summands=ring.summands,
        max_weight=ring.max_weight,
        headroom=ring.headroom,
    )


def _noise_of(config: Config, summands: int) -> tuple[float, float]:
    """Return the least standard deviation of one client's noise, and the largest of that of all in
    a sum, with ``privacy=distributed``, over cohorts of up to ``summands``; else nothing."""
    privacy = config.privacy
    if privacy.mechanism != "distributed":
        return 0.0, 0.0
    counts = range(min(LEAST_COHORT, summands), summands + 1)
    honest = [(n, least_in_cohort(n) - privacy.colluding) for n in counts]
    zc = privacy.noise_multiplier * privacy.clip_norm
    return zc / math.sqrt(summands), max(zc * math.sqrt(n / h) for n, h in honest if h > 0)


def summands_of(config: Config) -> int:
    """Return the most updates that a round adds up; with differential privacy it may be all, and
    how many were sampled is nobody's to know."""
    federated = config.federated
    asked = math.ceil(federated.clients_per_round * federated.over_commit)
    return federated.num_clients if config.privacy.central else min(federated.num_clients, asked)


def clipped_entries(outcome: RoundOutcome) -> int:
    """Return how many entries of a round's updates were cut off, as the clients say, or their
    sum."""
    own = [int(metrics.get("clipped_entries", 0)) for metrics in outcome.clients.values()]
    return int(outcome.pooled.get("clipped_entries", 0)) + sum(own)


def warn_of_clipping(outcome: RoundOutcome, clip: float, numel: int) -> None:
    """Say where more than a few of the entries [``numel``] of a round's updates were cut off."""
    cut = clipped_entries(outcome)
    share = cut / max(1, numel * len(outcome.clients))
    if share > _MUCH:
        log.warning(
            "round %d: %.2g of all entries of updates are beyond federated.ring_clip=%g and were "
            "cut off: raise it",
            outcome.number,
            share,
            clip,
        )
