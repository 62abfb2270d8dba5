"""Brings the model whose layer gives a second iteration's features to the sites: at most once to each."""

import logging
from collections.abc import Callable
from typing import Any

from fedhubert.checkpoints.importing import import_encoder
from fedhubert.config import Config
from fedhubert.federation import protocol
from fedhubert.federation.delivery import Parcel, deliver
from fedhubert.federation.nodes import Federation
from fedhubert.reporting.run_folder import on_server
from fedhubert.targets.extractor import Extractor

log = logging.getLogger("fedhubert")


def read_extractor(config: Config) -> Extractor | None:
    """Return the model that ``targets.source=layer:N`` names, cut down to that layer; None for other sources.

    Raises:
        CheckpointError, TargetsError: nothing usable at ``targets.checkpoint``, or a model of fewer layers.
    """
    layer = config.targets.layer
    if layer is None:
        return None
    source = str(config.targets.checkpoint)
    imported = import_encoder(source if source.startswith("torchaudio:") else on_server(source))
    return Extractor.cut(imported.config, imported.state, layer)


def distribute(
    federation: Federation, extractor: Extractor, nodes: list[int], on_event: Callable[[dict[str, Any]], None]
) -> None:
    """Make sure that each of ``nodes`` has ``extractor``.

    Raises:
        FederationError: a node that cannot keep it.
    """
    parcel = Parcel(
        "extractor", extractor.key, protocol.HAS_EXTRACTOR, protocol.SEND_EXTRACTOR, extractor.config, extractor.state
    )
    sent = deliver(federation, parcel, nodes)
    layer, width = extractor.config.num_layers, extractor.config.embed_dim
    log.info(
        "features: layer %d, %d wide; extractor (%.1f MB) sent to %d of %d nodes",
        layer,
        width,
        extractor.num_bytes / 1e6,
        sent,
        len(nodes),
    )
    on_event(
        {
            "event": "extractor",
            "hash": extractor.key,
            "layer": layer,
            "nodes": len(nodes),
            "sent_to": sent,
            "bytes_down": sent * extractor.num_bytes,
        }
    )
