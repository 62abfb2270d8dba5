"""Brings the model whose layer gives a second iteration's features to the sites: at most once to each."""

import logging
from collections.abc import Callable
from typing import Any

from flwr.app import Array

from fedhubert.checkpoints.importing import import_encoder
from fedhubert.config import Config
from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.nodes import Federation, describe_failures
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

    Nodes are asked for its hash first. Of those that lack it one is sent it, then the others are asked again: nodes that share a state folder (a
    simulation) get it once together.

    Raises:
        FederationError: a node that cannot keep it.
    """
    lacking = _lacking(federation, extractor, nodes)
    sent = 0
    if lacking:
        log.info("sending the extractor (%.1f MB) to sites that lack it", extractor.num_bytes / 1e6)
        sent += _send(federation, extractor, lacking[:1])
        others = _lacking(federation, extractor, lacking[1:])
        sent += _send(federation, extractor, others)
    layer, width = extractor.config.num_layers, extractor.config.embed_dim
    log.info("features: layer %d, %d wide; extractor sent to %d of %d nodes", layer, width, sent, len(nodes))
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


def _lacking(federation: Federation, extractor: Extractor, nodes: list[int]) -> list[int]:
    lacking = [
        node for node, has in _ask(federation, protocol.HAS_EXTRACTOR, nodes, {"extractor": extractor.key}, None) if not has
    ]
    return sorted(lacking, key=nodes.index)


def _send(federation: Federation, extractor: Extractor, nodes: list[int]) -> int:
    task = {"extractor": extractor.key, "model": extractor.config.model_dump_json()}
    arrays = {name: Array(tensor.numpy()) for name, tensor in extractor.state.items()}
    return len(_ask(federation, protocol.SEND_EXTRACTOR, nodes, task, arrays))


def _ask(
    federation: Federation, kind: str, nodes: list[int], task: dict[str, Any], arrays: dict[str, Array] | None
) -> list[tuple[int, bool]]:
    timeout_s = federation.config.federated.round_timeout_s
    answers = []
    for reply in federation.ask(kind, {node: [] for node in nodes}, timeout_s=timeout_s, arrays=arrays, task=task):
        if reply.failures:
            raise FederationError(
                f"{kind} failed: {describe_failures(reply.failures)} (the site's log says more)",
                setting=reply.failures[0].setting,
            )
        answers.append((reply.node_id, reply.info.get("has") == 1))
    return answers
