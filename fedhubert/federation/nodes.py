"""Which nodes there are, and which partitions each can train: connection and preflight.

A node describes itself by its number among ``num-partitions`` nodes. With as many nodes as clients, node i trains partition i. With fewer (a
simulation on few workers), every node can train any partition and a round's partitions are dealt out among them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, Message

from fedhubert.config import Config, client_job
from fedhubert.errors import FederationError
from fedhubert.federation import protocol
from fedhubert.federation.grid import StreamingGrid
from fedhubert.federation.preflight import check_alike, check_versions
from fedhubert.federation.protocol import Failure, Metrics, Reply
from fedhubert.federation.sampling import assign_to_nodes

_TTL_MARGIN_S = 600.0


@dataclass
class Federation:
    """The connected nodes and how to talk to them.

    Attributes:
        hosts: Node id -> partitions it can train, ordered by node number.
        partitions: Partition -> what its site said of it (utterances, seconds of audio, batches per epoch).
    """

    grid: StreamingGrid
    config: Config
    run_key: str
    hosts: dict[int, list[int]] = field(default_factory=dict)
    partitions: dict[int, Metrics] = field(default_factory=dict)
    layout: str = ""

    def __post_init__(self) -> None:
        self._job_json = client_job(self.config).model_dump_json()

    def message(
        self,
        node_id: int,
        kind: str,
        task: Mapping[str, Any],
        *,
        group: str,
        timeout_s: float,
        arrays: Mapping[str, Array] | None = None,
    ) -> Message:
        """Build one request of this run."""
        ttl_s = timeout_s + _TTL_MARGIN_S
        return protocol.request(
            node_id, kind, job_json=self._job_json, run_key=self.run_key, task=task, group=group, ttl_s=ttl_s, arrays=arrays
        )

    def ask(
        self,
        kind: str,
        shares: Mapping[int, Sequence[int]],
        *,
        timeout_s: float,
        arrays: Mapping[str, Array] | None = None,
        task: Mapping[str, Any] | None = None,
    ) -> Iterator[Reply]:
        """Send ``kind`` to every node of ``shares`` (node id -> partitions) and yield the replies as they arrive.

        A node that does not answer in time yields a reply whose failure is ``no_answer``.
        """
        messages = (
            self.message(
                node, kind, {"partitions": list(partitions), **(task or {})}, group=kind, timeout_s=timeout_s, arrays=arrays
            )
            for node, partitions in shares.items()
        )
        for message in self.grid.send_and_receive(messages, timeout=timeout_s):
            yield protocol.read_reply(message)
        for node in self.grid.unanswered:
            yield Reply(node, failures=[Failure(-1, "no_answer")])

    def everyone(self) -> dict[int, list[int]]:
        """Return a share for each node that covers all partitions."""
        load = {partition: float(numbers["train_audio_s"]) for partition, numbers in self.partitions.items()}
        return assign_to_nodes(range(self.config.federated.num_clients), self.hosts, load)


def connect(federation: Federation) -> None:
    """Wait for the nodes, ask each what it can train, and check that together they make the federation of the configuration.

    Raises:
        FederationError: too few or too many nodes, two nodes with one number, versions or models that differ, data that cannot be used; by name.
    """
    federated = federation.config.federated
    descriptions = _describe_all(federation)
    num_nodes = len(descriptions)
    numbers = sorted(int(reply.info["node"]) for reply in descriptions.values())
    if len(set(numbers)) < num_nodes:
        raise FederationError(
            f"two nodes have the same partition-id (ids seen: {numbers}); give each node its own", setting="partition-id"
        )
    own_data = [int(reply.info["node"]) for reply in descriptions.values() if not reply.info["hosts_all"]]
    if own_data and num_nodes != federated.num_clients:
        raise FederationError(
            f"{num_nodes} sites with their own data are connected, but federated.num_clients is {federated.num_clients}; set it to {num_nodes}",
            setting="federated.num_clients",
        )
    ordered = sorted(descriptions, key=lambda node: int(descriptions[node].info["node"]))
    if num_nodes == federated.num_clients:
        federation.hosts = {node: [int(descriptions[node].info["node"])] for node in ordered}
    else:
        federation.hosts = {node: list(range(federated.num_clients)) for node in ordered}
    data, targets = federation.config.data, federation.config.targets
    expected = {
        "sample_rate_hz": data.sample_rate_hz,
        "num_clusters": targets.num_clusters,
        "label_rate_hz": targets.label_rate_hz,
        "layout": federation.layout,
    }
    check_alike({int(reply.info["node"]): reply.info for reply in descriptions.values()}, expected)
    _describe_partitions(federation)


def _describe_all(federation: Federation) -> dict[int, Reply]:
    """Return node id -> description, once all nodes are there."""
    timeout_s = federation.config.federated.connect_timeout_s
    num_clients = federation.config.federated.num_clients
    deadline = time.monotonic() + timeout_s
    described: dict[int, Reply] = {}
    expected = 1
    while True:
        federation.grid.check_stop()
        new = [node for node in federation.grid.get_node_ids() if node not in described]
        for reply in federation.ask(protocol.DESCRIBE, {node: [] for node in new}, timeout_s=timeout_s):
            check_versions(reply)
            if reply.failures or "node" not in reply.info:
                raise FederationError(
                    f"a site is not ready: {describe_failures(reply.failures)}; its site.log says more",
                    setting=_setting(reply.failures),
                )
            described[reply.node_id] = reply
            expected = int(reply.info["num_nodes"])
        if expected > num_clients:
            raise FederationError(
                f"the federation has {expected} SuperNodes (num-supernodes or num-partitions), but federated.num_clients is {num_clients}: "
                f"set federated.num_clients={expected}, or start with num-supernodes={num_clients} or fewer",
                setting="federated.num_clients",
            )
        if len(described) >= expected and described:
            return described
        if time.monotonic() > deadline:
            raise FederationError(
                f"{len(described)} of {expected} nodes connected within {timeout_s:.0f} s; start the others or raise federated.connect_timeout_s",
                setting="federated.connect_timeout_s",
            )
        time.sleep(0.2 if not described else 1.0)


def _describe_partitions(federation: Federation) -> None:
    shares: dict[int, list[int]] = {}
    nodes = list(federation.hosts)
    for partition in range(federation.config.federated.num_clients):
        able = [node for node in nodes if partition in federation.hosts[node]]
        if able:
            shares.setdefault(able[partition % len(able)], []).append(partition)
    failures: list[Failure] = []
    for reply in federation.ask(protocol.DESCRIBE, shares, timeout_s=federation.config.federated.connect_timeout_s):
        federation.partitions.update(reply.metrics)
        failures += reply.failures
    if failures or len(federation.partitions) < federation.config.federated.num_clients:
        raise FederationError(
            f"not every client is ready: {describe_failures(failures) or 'some did not answer'}", setting=_setting(failures)
        )


def describe_failures(failures: Sequence[Failure]) -> str:
    """Return one line that says which partitions failed and why, those that failed alike together."""
    alike: dict[str, list[int]] = {}
    for failure in failures:
        alike.setdefault(str(failure), []).append(failure.partition)
    return "; ".join(f"{_named(sorted(partitions))}: {reason}" for reason, partitions in alike.items())


def _named(partitions: list[int]) -> str:
    if partitions[0] < 0:
        return "node" if len(partitions) == 1 else f"{len(partitions)} nodes"
    shown = ", ".join(map(str, partitions[:10])) + (f" and {len(partitions) - 10} more" if len(partitions) > 10 else "")
    return f"client {shown}" if len(partitions) == 1 else f"clients {shown}"


def _setting(failures: Sequence[Failure]) -> str:
    return next((failure.setting for failure in failures if failure.setting), "")
