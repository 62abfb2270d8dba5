"""Brings the part of the model that a run does not train to the sites: at most once to each."""

import logging
from collections.abc import Callable, Mapping, Sequence

from fedhubert.config import Config
from fedhubert.federation.phases.delivery import Delivery, ModelTransfer, deliver, tensors_of
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire.messages.nodes import HasExtractor, SendExtractor
from fedhubert.models.trainable import FrozenPart

log = logging.getLogger("fedhubert")


def with_frozen_part(config: Config, part: FrozenPart | None) -> Config:
    """Return a configuration that tells the sites which part they need."""
    if part is None:
        return config
    model = config.model.model_copy(update={"frozen_part": part.key})
    return config.model_copy(update={"model": model})


def send_frozen_part(
    federation: Federation,
    part: FrozenPart,
    shares: Mapping[int, Sequence[int]],
    on_event: Callable[[dict[str, object]], None],
    timeout_s: float,
) -> Delivery:
    """Make sure that each node of ``shares`` (node id -> partitions) has the part."""
    transfer = ModelTransfer(
        HasExtractor(extractor=part.key),
        SendExtractor(extractor=part.key, model=part.config, arrays=tensors_of(part)),
    )
    delivery = deliver(federation, transfer, shares, timeout_s)
    log.info(
        "model.trainable=%s: the frozen part (%.1f MB) sent to %d of %d nodes; the others have it",
        part.config.trainable,
        part.num_bytes / 1e6,
        delivery.sent,
        len(shares),
    )
    on_event(
        {
            "event": "frozen_part",
            "hash": part.key,
            "nodes": len(shares),
            "sent_to": delivery.sent,
            "bytes_down": delivery.sent * part.num_bytes,
        }
    )
    return delivery
