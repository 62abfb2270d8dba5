"""Which nodes there are, and which partitions each can train: connection and preflight.

A node describes itself by its number among ``num-partitions`` nodes. With as many nodes as clients, node i trains partition i. With fewer (a
simulation on few workers), every node can train any partition and a round's partitions are dealt out among them. Between rounds nodes may leave, and
others come (:func:`refresh`).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fedhubert.clients import Metrics
from fedhubert.config import Config
from fedhubert.errors import FederationError
from fedhubert.federation.roster.correspondence import Correspondence
from fedhubert.federation.roster.node_keys import NodeKeys
from fedhubert.federation.roster.preflight import Traits, check_alike, check_versions
from fedhubert.federation.roster.sampling import assign_to_nodes
from fedhubert.federation.strategies.strategy import client_job, strategy_of
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import Array, Message
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.federation.wire.messages import ANSWERS, Answer, Describe, Description, Failure, Instruction
from fedhubert.federation.wire.protocol import Reply
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert")

_TTL_MARGIN_S = 600.0
_JOIN_TIMEOUT_S = 300.0
_TRY_AGAIN_S = 60.0

AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass
class Federation:
    """The connected nodes and how to talk to them.

    Attributes:
        hosts: Node id -> partitions it can train, ordered by node number.
        partitions: Partition -> what its site said of it (utterances, seconds of audio, batches per epoch).
        fingerprints: Partition -> what its data hashed to when the run began; a site whose data is other data now may not take part.
        welcome: Prepares partitions that join after the start (they need labels); returns those that are not ready.
    """

    grid: StreamingGrid
    config: Config
    run_key: str
    layout: ParameterLayout
    hosts: dict[int, list[int]] = field(default_factory=dict)
    partitions: dict[int, Metrics] = field(default_factory=dict)
    fingerprints: dict[int, int] = field(default_factory=dict)
    welcome: Callable[[dict[int, list[int]]], list[Failure]] = lambda shares: []
    refused: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._job_json = client_job(self.config).model_dump_json()
        self._keys = NodeKeys.read(self.config.federated.node_keys)
        self._claims: dict[int, int] = {}
        self._correspondence = Correspondence.of(self.config.federated, self._keys)

    def present(self) -> set[int]:
        """Return the nodes that are connected, those without one of ``federated.node_keys`` left out."""
        if not self._keys.numbers:
            return set(self.grid.get_node_ids())
        self._claims = self._keys.claims(self.grid)
        return set(self._claims)

    def impostor(self, node: int, number: int) -> str:
        """Return why ``node`` of :meth:`present`, which says that it is number ``number``, is not; an empty string when its key says so, too."""
        if not self._keys.numbers:
            return ""
        belongs = self._claims.get(node)
        return "" if belongs == number else f"it says that it is node {number}, and has the key of node {belongs}"

    @property
    def connected(self) -> set[int]:
        """Partitions that some node can train now."""
        return {partition for hosted in self.hosts.values() for partition in hosted}

    def message(
        self,
        node_id: int,
        instruction: Instruction,
        *,
        group: str,
        timeout_s: float,
        published: Mapping[str, Array] | None = None,
    ) -> Message:
        """Build one request of this run, signed where there are keys."""
        message = protocol.request(
            node_id,
            instruction,
            job_json=self._job_json,
            run_key=self.run_key,
            group=group,
            ttl_s=timeout_s + _TTL_MARGIN_S,
            published=published,
        )
        self._correspondence.sign(message, self._claims.get(node_id, -1), timeout_s + _TTL_MARGIN_S)
        return message

    def read(self, message: Message, kind: type[AnswerT]) -> Reply[AnswerT]:
        """Parse a reply that should be an answer of ``kind``; where sites sign, one that is not signed by the site that was asked is a failure."""
        return self._correspondence.read(message, kind)

    def ask(
        self, instruction: Instruction, kind: type[AnswerT], shares: Mapping[int, Sequence[int]], *, timeout_s: float
    ) -> Iterator[Reply[AnswerT]]:
        """Have every node of ``shares`` (node id -> partitions) follow ``instruction`` with its partitions; yield replies as they arrive.

        A node that does not answer in time yields a reply whose failure is ``no_answer``; one that answers for partitions that it was not asked
        about, ``malformed``.

        Args:
            kind: What belongs to the instruction by :data:`~fedhubert.federation.wire.messages.ANSWERS`.
        """
        assert ANSWERS[type(instruction)] is kind
        published = {name: HeldArray(array) for name, array in instruction.arrays.items()}
        messages = (
            self.message(
                node,
                instruction.model_copy(update={"partitions": tuple(partitions)}),
                group=instruction.KIND,
                timeout_s=timeout_s,
                published=published,
            )
            for node, partitions in shares.items()
        )
        for message in self.grid.send_and_receive(messages, timeout=timeout_s):
            reply = self.read(message, kind)
            answers_for_others = reply.metrics.keys() - set(shares.get(reply.node_id, ()))
            yield Reply(reply.node_id, failures=(Failure(-1, "malformed"),)) if answers_for_others else reply
        for node in self.grid.unanswered:
            yield Reply(node, failures=(Failure(-1, "no_answer"),))

    def everyone(self) -> dict[int, list[int]]:
        """Return a share for each node that covers all partitions."""
        load = {partition: float(numbers["train_audio_s"]) for partition, numbers in self.partitions.items()}
        return assign_to_nodes(sorted(self.connected), self.hosts, load)


def connect(federation: Federation) -> None:
    """Wait for the nodes, ask each what it can train, and check that together they make the federation of the configuration.

    With ``federated.min_clients`` set, that many are enough when the waiting time is over; the others may join later.

    Raises:
        FederationError: too few or too many nodes, two nodes with one number, versions or models that differ, data that cannot be used or has
            changed since the run began; by name.
    """
    federated = federation.config.federated
    descriptions = _describe_all(federation)
    numbers = sorted(about.node for about in descriptions.values())
    if len(set(numbers)) < len(numbers):
        raise FederationError(
            f"two nodes have the same partition-id (ids seen: {numbers}); give each node its own", setting="partition-id"
        )
    expected = max(about.num_nodes for about in descriptions.values())
    if expected != federated.num_clients and not all(about.hosts_all for about in descriptions.values()):
        raise FederationError(
            f"{expected} sites with their own data are expected, but federated.num_clients is {federated.num_clients}; set it to {expected}",
            setting="federated.num_clients",
        )
    if strategy_of(federated).needs_every_update and expected < federated.num_clients:
        raise FederationError(
            f"strategy={federated.strategy} needs every client's own update, but {expected} nodes host {federated.num_clients} clients; "
            f"start {federated.num_clients} SuperNodes",
            setting="federated.strategy",
        )
    for node in sorted(descriptions, key=lambda node: descriptions[node].node):
        federation.hosts[node] = _hosted(federation, descriptions[node])
    check_alike({about.node: _traits(about) for about in descriptions.values()}, _expected(federation))
    failures = _describe_partitions(federation, federation.hosts)
    missing = federation.connected - set(federation.partitions)
    if failures or missing:
        raise FederationError(
            f"not every client is ready: {describe_failures(failures) or f'clients {sorted(missing)} did not answer'}",
            setting=_setting(failures),
        )


def refresh(federation: Federation) -> None:
    """Let go of nodes that have left, and take in those that have come; what is wrong with one of them is logged, and it is asked again later."""
    present = federation.present()
    for node in set(federation.hosts) - present:
        log.warning("node of clients %s has left", federation.hosts.pop(node)[:10])
    now = time.monotonic()
    for node in sorted(present - set(federation.hosts)):
        if federation.refused.get(node, 0.0) <= now:
            reason = _join(federation, node)
            if reason:
                federation.refused[node] = time.monotonic() + _TRY_AGAIN_S
                log.warning("a node may not join: %s", reason)


def _join(federation: Federation, node: int) -> str:
    """Take in ``node``; returns why not, or an empty string."""
    (reply,) = federation.ask(Describe(), Description, {node: []}, timeout_s=_JOIN_TIMEOUT_S)
    about = reply.answer
    try:
        check_versions(reply)
        if reply.failures or about is None:
            return describe_failures(reply.failures) or "malformed"
        if impostor := federation.impostor(node, about.node):
            return f"{impostor} (federated.node_keys)"
        check_alike({about.node: _traits(about)}, _expected(federation))
    except FederationError as error:
        return str(error)
    hosted = _hosted(federation, about)
    if about.hosts_all == 0 and set(hosted) & federation.connected:
        return f"client {hosted[0]} is there already"
    if not hosted or hosted[0] >= federation.config.federated.num_clients:
        return f"its partition-id {about.node} is not below federated.num_clients"
    failures = _describe_partitions(federation, {node: hosted}) or federation.welcome({node: hosted})
    if failures:
        return describe_failures(failures)
    federation.hosts[node] = hosted
    log.info("node of clients %s has joined", hosted[:10])
    return ""


def _expected(federation: Federation) -> dict[str, str | int]:
    """What every site must have as the server has it."""
    data, targets = federation.config.data, federation.config.targets
    return {
        "sample_rate_hz": data.sample_rate_hz,
        "num_clusters": targets.num_clusters,
        "label_rate_hz": targets.label_rate_hz,
        "layout": federation.layout.fingerprint,
    }


def _traits(about: Description) -> Traits:
    return about.model_dump(include={"sample_rate_hz", "label_rate_hz", "num_clusters", "centroids_hash", "layout"})


def _hosted(federation: Federation, about: Description) -> list[int]:
    """Return the partitions that a node trains: its own, or, where there are fewer nodes than clients, any."""
    num_clients = federation.config.federated.num_clients
    return [about.node] if about.num_nodes == num_clients else list(range(num_clients))


def _describe_all(federation: Federation) -> dict[int, Description]:
    """Return node id -> description, once all nodes are there or the time is over and those that are suffice."""
    federated = federation.config.federated
    timeout_s, num_clients = federated.connect_timeout_s, federated.num_clients
    deadline = time.monotonic() + timeout_s
    described: dict[int, Description] = {}
    expected = 1
    while True:
        federation.grid.check_stop()
        new = sorted(federation.present() - described.keys() - federation.refused.keys())
        for reply in federation.ask(Describe(), Description, {node: [] for node in new}, timeout_s=timeout_s):
            about = reply.answer
            if about is not None and (impostor := federation.impostor(reply.node_id, about.node)):
                log.warning("a node is left out: %s (federated.node_keys)", impostor)
                federation.refused[reply.node_id] = time.monotonic() + _TRY_AGAIN_S
                continue
            check_versions(reply)
            if reply.failures or about is None:
                raise FederationError(
                    f"{_site(reply)} is not ready: {describe_failures(reply.failures) or 'malformed'}; its site.log says more",
                    setting=_setting(reply.failures),
                )
            described[reply.node_id] = about
            expected = about.num_nodes
        if expected > num_clients:
            raise FederationError(
                f"the federation has {expected} SuperNodes (num-supernodes or num-partitions), but federated.num_clients is {num_clients}: "
                f"set federated.num_clients={expected}, or start with num-supernodes={num_clients} or fewer",
                setting="federated.num_clients",
            )
        if len(described) >= expected and described:
            return described
        if time.monotonic() > deadline:
            enough = federated.min_clients is not None and expected == num_clients and len(described) >= federated.min_clients
            if not enough:
                strangers = len(set(federation.grid.get_node_ids())) - len(described)
                others = f" ({strangers} others have no key of federated.node_keys, or another node's)" if strangers else ""
                raise FederationError(
                    f"{len(described)} of {expected} nodes connected within {timeout_s:.0f} s{others}; start the others, raise "
                    "federated.connect_timeout_s, or set federated.min_clients to begin with fewer",
                    setting="federated.connect_timeout_s",
                )
            log.warning(
                "%d of %d nodes connected within %.0f s: beginning without the others", len(described), expected, timeout_s
            )
            return described
        time.sleep(0.2 if not described else 1.0)


def _describe_partitions(federation: Federation, hosts: Mapping[int, Sequence[int]]) -> list[Failure]:
    """Ask the nodes of ``hosts`` what each partition has; returns those that cannot take part."""
    shares: dict[int, list[int]] = {}
    for partition in sorted({partition for hosted in hosts.values() for partition in hosted}):
        able = [node for node in hosts if partition in hosts[node]]
        shares.setdefault(able[partition % len(able)], []).append(partition)
    failures: list[Failure] = []
    for reply in federation.ask(Describe(), Description, shares, timeout_s=federation.config.federated.connect_timeout_s):
        failures += reply.failures
        for partition, said in reply.metrics.items():
            about = dict(said)
            if not all(value >= 0 for value in about.values()):
                failures.append(Failure(partition, "malformed"))
                continue
            fingerprint = int(about.pop("data_fingerprint"))
            if federation.fingerprints.setdefault(partition, fingerprint) != fingerprint:
                failures.append(Failure(partition, "data_has_changed_since_the_run_began", "data.manifest"))
            federation.partitions[partition] = about
    return failures


def describe_failures(failures: Sequence[Failure]) -> str:
    """Return one line that says which partitions failed and why, those that failed alike together."""
    alike: dict[str, list[int]] = {}
    for failure in failures:
        alike.setdefault(str(failure), []).append(failure.partition)
    return "; ".join(f"{_named(sorted(partitions))}: {reason}" for reason, partitions in alike.items())


def _site(reply: Reply[Answer]) -> str:
    return "a site" if reply.versions is None or reply.versions.node < 0 else f"site {reply.versions.node}"


def _named(partitions: list[int]) -> str:
    if partitions[0] < 0:
        return "node" if len(partitions) == 1 else f"{len(partitions)} nodes"
    partitions = sorted(set(partitions))  # one that is asked again may fail again
    shown = ", ".join(map(str, partitions[:10])) + (f" and {len(partitions) - 10} more" if len(partitions) > 10 else "")
    return f"client {shown}" if len(partitions) == 1 else f"clients {shown}"


def _setting(failures: Sequence[Failure]) -> str:
    return next((failure.setting for failure in failures if failure.setting), "")
