"""Brings the model whose layer gives a second iteration's features to the sites: at most once to
each."""

import logging
from collections.abc import Callable, Mapping, Sequence

from fedhubert.federation.phases.delivery import Delivery, ModelTransfer, deliver, tensors_of
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.wire.messages.nodes import HasExtractor, SendExtractor
from fedhubert.targets.extractor import Extractor

log = logging.getLogger("fedhubert")


def distribute(
    federation: Federation,
    extractor: Extractor,
    shares: Mapping[int, Sequence[int]],
    on_event: Callable[[dict[str, object]], None],
    timeout_s: float,
) -> Delivery:
    """Make sure that each node of ``shares`` (node id -> partitions) has ``extractor``."""
    transfer = ModelTransfer(
        HasExtractor(extractor=extractor.key),
        SendExtractor(
            extractor=extractor.key, model=extractor.config, arrays=tensors_of(extractor)
        ),
    )
    delivery = deliver(federation, transfer, shares, timeout_s)
    sent = delivery.sent
    layer, width = extractor.config.num_layers, extractor.config.embed_dim
    log.info(
        "features: layer %d, %d wide; extractor (%.1f MB) sent to %d of %d nodes",
        layer,
        width,
        extractor.num_bytes / 1e6,
        sent,
        len(shares),
    )
    on_event(
        {
            "event": "extractor",
            "hash": extractor.key,
            "layer": layer,
            "nodes": len(shares),
            "sent_to": sent,
            "bytes_down": sent * extractor.num_bytes,
        }
    )
    return delivery
