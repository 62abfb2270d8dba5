"""The ring of a run's updates: how large its steps are is the server's to say, and is the same in
all rounds, attempts and replays."""

import logging
import math

from fedhubert.config import Config
from fedhubert.federation.roster.bounds import training_bounds
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.updates.exact_sum import MAX_WEIGHT
from fedhubert.federation.updates.ring import RING_BITS, Ring

log = logging.getLogger("fedhubert")

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
    most = max(1, min(state.largest_weight, MAX_WEIGHT))
    return Ring(bits, config.federated.ring_clip, summands_of(config), most)


def summands_of(config: Config) -> int:
    """Return the most updates that a round adds up; with differential privacy it may be all, and how
    many were sampled is nobody's to know."""
    federated = config.federated
    asked = math.ceil(federated.clients_per_round * federated.over_commit)
    return federated.num_clients if config.privacy.enabled else min(federated.num_clients, asked)


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
            "round %d: %.2g of all entries of updates are beyond federated.ring_clip=%g and were cut off: raise it",
            outcome.number,
            share,
            clip,
        )
