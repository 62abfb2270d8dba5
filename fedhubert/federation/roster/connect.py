"""Who takes part: the nodes that are there at the start, and those that come and go between rounds.

A node describes itself by its number among ``num-partitions`` nodes. With as many nodes as clients,
node i trains partition i. With fewer (a simulation on few workers), every node can train any
partition and a round's partitions are dealt out among them.

What nodes say is held against what the others say: where one has data of its own, none may train
all clients; how many there are is what most say; a number that two claim belongs to neither (with
``federated.node_keys``: to the one that has its key). Who is silent, not ready, of another version
or at odds with the others is left out by name where ``federated.min_clients`` allows, and may join
later.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from fedhubert.errors import FederationError
from fedhubert.federation.roster.bounds import contradiction
from fedhubert.federation.roster.nodes import Federation, describe_failures, setting_of
from fedhubert.federation.roster.preflight import Traits, check_alike, check_versions
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import ROW_BYTES, check_row
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.federation.wire.protocol import Reply

log = logging.getLogger("fedhubert")

JOIN_TIMEOUT_S = 30.0
"""A node that wants to join and does not answer within it waits for another round."""
PREPARE_TIMEOUT_S = 120.0
"""A node that joins and takes longer to take a model or to label its audio has it the next time
that it is asked."""


def connect(federation: Federation) -> None:
    """Wait for the nodes, ask each what it can train, and check that together they make the
    federation of the configuration.

    With ``federated.min_clients`` set, that many are enough when the waiting time is over; the
    others may join later.

    Raises:
        FederationError: too few or too many nodes, two nodes with one number, versions or models
            that differ, data that cannot be used or has changed since the run began; by name.
    """
    federated = federation.config.federated
    descriptions = _describe_all(federation)
    expected, _ = _agreed(federation, descriptions)
    own_data = not any(about.hosts_all for about in descriptions.values())
    if expected != federated.num_clients and own_data:
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
    federation.own_data, federation.num_nodes = own_data, expected
    for node in sorted(descriptions, key=lambda node: descriptions[node].node):
        federation.hosts[node] = _hosted(federation, descriptions[node])
    failures = _describe_partitions(federation, federation.hosts, federated.connect_timeout_s)
    if failures:
        federation.leave_out(failures, "not every client is ready")


def refresh(federation: Federation) -> None:
    """Let go of nodes that have left, and take in those that have come; what is wrong with one of
    them is logged, and it is asked again later."""
    for node, reason in _join(federation, federation.newcomers()).items():
        federation.refuse(node)
        log.warning("a node may not join: %s", reason)


def _join(federation: Federation, nodes: Sequence[int]) -> dict[int, str]:
    """Take in ``nodes``, all asked at once; returns why not, by node."""
    if not nodes:
        return {}
    reasons: dict[int, str] = {}
    admitted: dict[int, Description] = {}
    for reply in federation.ask(
        Describe(), Description, {node: [] for node in nodes}, timeout_s=JOIN_TIMEOUT_S
    ):
        try:
            about = _ready(federation, reply)
            _check_joins(federation, about)
        except FederationError as error:
            reasons[reply.node_id] = str(error)
        else:
            admitted[reply.node_id] = about
    _, odd = _agreed(federation, admitted)
    reasons |= {node: str(error) for node, error in odd.items()}
    in_order = sorted(admitted.keys() - odd.keys(), key=lambda node: admitted[node].node)
    shares = {node: _hosted(federation, admitted[node]) for node in in_order}
    for prepare in (
        lambda shares: _describe_partitions(federation, shares, JOIN_TIMEOUT_S),
        federation.on_join,
    ):
        failures = prepare(shares) if shares else []
        for node in list(shares):
            own = [failure for failure in failures if failure.partition in (-1, *shares[node])]
            if own:
                reasons[node] = describe_failures(own)
                del shares[node]
    for node, hosted in shares.items():
        federation.hosts[node] = hosted
        log.info("node of clients %s has joined", hosted[:10])
    return reasons


def _check_joins(federation: Federation, about: Description) -> None:
    """Raise :class:`FederationError` where a node that comes later does not fit those that are
    there."""
    hosted = _hosted(federation, about)
    if federation.own_data is not None and federation.own_data == bool(about.hosts_all):
        raise _other_data(about, federation.own_data)
    if federation.num_nodes and about.num_nodes != federation.num_nodes:
        raise _other_number(about, federation.num_nodes)
    if about.hosts_all == 0 and set(hosted) & federation.connected:
        raise FederationError(f"client {hosted[0]} is there already", setting="partition-id")
    if not hosted or hosted[0] >= federation.config.federated.num_clients:
        raise FederationError(
            f"its partition-id {about.node} is not below federated.num_clients",
            setting="partition-id",
        )


def _ready(federation: Federation, reply: Reply[Description]) -> Description:
    """Return what a node says of itself; raises :class:`FederationError` for one that cannot take
    part, whatever the others say."""
    check_versions(reply)
    about = reply.answer
    if reply.failures or about is None:
        failures = reply.failures or (Failure(-1, "malformed"),)
        silent = any(failure.code == "no_answer" for failure in failures)
        named = (
            "a node"
            if reply.versions is None or reply.versions.node < 0
            else f"site {reply.versions.node}"
        )
        raise FederationError(
            f"{named} is {'silent' if silent else 'not ready'}: {describe_failures(failures)}; its site.log says more",
            setting=setting_of(failures),
        )
    if key_mismatch := federation.key_mismatch(reply.node_id, about.node):
        raise FederationError(
            f"{key_mismatch} (federated.node_keys)", setting="federated.node_keys"
        )
    if about.node in federation.left_out:
        raise FederationError(
            f"client {about.node} is left out of the run: {federation.left_out[about.node]}"
        )
    check_alike({about.node: _traits(about)}, _expected(federation))
    return about


def _agreed(
    federation: Federation, descriptions: Mapping[int, Description]
) -> tuple[int, dict[int, FederationError]]:
    """Return how many nodes there should be, and which of ``descriptions`` (by node id) contradict
    the others, and how."""
    odd: dict[int, FederationError] = {}
    if any(about.hosts_all == 0 for about in descriptions.values()):
        odd |= {
            node: _other_data(about, True)
            for node, about in descriptions.items()
            if about.hosts_all
        }
    rest = {node: about for node, about in descriptions.items() if node not in odd}
    num_clients, stated = (
        federation.config.federated.num_clients,
        Counter(about.num_nodes for about in rest.values()),
    )
    expected = max(
        stated, key=lambda count: (stated[count], count == num_clients, -count), default=1
    )
    if federation.config.federated.node_keys is not None and rest:
        # a key belongs to one client, or, where there are fewer keys (a cluster), to a node of many
        expected = min(num_clients, federation.num_keys)
    odd |= {
        node: _other_number(about, expected)
        for node, about in rest.items()
        if about.num_nodes != expected
    }
    hashes = Counter(about.centroids_hash for about in rest.values() if about.centroids_hash)
    usual = max(sorted(hashes), key=hashes.__getitem__, default="")
    claimed = Counter(about.node for node, about in rest.items() if node not in odd)
    for node, about in rest.items():
        if node not in odd and claimed[about.node] > 1:
            odd[node] = FederationError(
                f"{claimed[about.node]} nodes have the same partition-id {about.node}; give each node its own, and name their keys by "
                "federated.node_keys",
                setting="partition-id",
            )
        elif node not in odd and about.centroids_hash not in ("", usual):
            odd[node] = FederationError(
                f"hash of the centroids: site {about.node} has {about.centroids_hash}, another site {usual}: label every site's audio with one set "
                "of centroids",
                setting="targets.labels",
            )
    return expected, odd


def _other_data(about: Description, own_data: bool) -> FederationError:
    others, this = ("their own data", "none") if own_data else ("no data of their own", "some")
    return FederationError(
        f"the other sites have {others}, and site {about.node} says that it has {this}: name a manifest in every node's configuration, or in none",
        setting="data.manifest",
    )


def _other_number(about: Description, expected: int) -> FederationError:
    return FederationError(
        f"site {about.node} says that there are {about.num_nodes} nodes, the others that there are {expected}: give all the same num-partitions",
        setting="num-partitions",
    )


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
    return about.model_dump(include={"sample_rate_hz", "label_rate_hz", "num_clusters", "layout"})


def _hosted(federation: Federation, about: Description) -> list[int]:
    """Return the partitions that a node trains: its own, or, where there are fewer nodes than
    clients, any."""
    num_clients = federation.config.federated.num_clients
    own = [about.node] if about.num_nodes == num_clients else list(range(num_clients))
    return [partition for partition in own if partition not in federation.left_out]


def _describe_all(federation: Federation) -> dict[int, Description]:
    """Return node id -> description, once all nodes are there or the time is over and those that
    are suffice."""
    federated = federation.config.federated
    deadline = time.monotonic() + federated.connect_timeout_s
    described: dict[int, Description] = {}
    wrong: dict[int, FederationError] = {}
    while True:
        federation.grid.check_stop()
        new = sorted(federation.present() - described.keys() - wrong.keys())
        limit_s = max(deadline - time.monotonic(), min(JOIN_TIMEOUT_S, federated.connect_timeout_s))
        for reply in federation.ask(
            Describe(), Description, {node: [] for node in new}, timeout_s=limit_s
        ):
            try:
                described[reply.node_id] = _ready(federation, reply)
            except FederationError as error:
                wrong[reply.node_id] = error
                log.warning("a node is left out: %s", error)
            if len(described) == federated.num_clients and _complete(federation, described):
                break  # whoever else is there and silent is not needed
        expected, odd = _agreed(federation, described)
        good = {node: about for node, about in described.items() if node not in odd}
        over = time.monotonic() > deadline
        if _complete(federation, described):
            return _without(federation, good, {**wrong, **odd})
        if expected > federated.num_clients and (over or len(good) > federated.num_clients // 2):
            raise FederationError(
                f"the federation has {expected} SuperNodes (num-supernodes or num-partitions), but federated.num_clients is "
                f"{federated.num_clients}: set federated.num_clients={expected}, or start with num-supernodes={federated.num_clients} or fewer",
                setting="federated.num_clients",
            )
        reasons = [
            error
            for node, error in {**wrong, **odd}.items()
            # strangers may be many, and come before the others
            if error.setting != "federated.node_keys"
        ]
        if reasons and federated.min_clients is None and len(good) + len(reasons) >= expected:
            raise FederationError(
                "; ".join(dict.fromkeys(map(str, reasons))), setting=reasons[0].setting
            )
        if over:
            least = federated.min_clients
            if least is None or expected != federated.num_clients or len(good) < least:
                raise _too_few(
                    federation, len(good), expected, len(wrong) + len(odd) - len(reasons), reasons
                )
            log.warning(
                "%d of %d nodes connected within %.0f s: beginning without the others",
                len(good),
                expected,
                federated.connect_timeout_s,
            )
            return _without(federation, good, {**wrong, **odd})
        time.sleep(0.2 if not described else 1.0)


def _complete(federation: Federation, described: Mapping[int, Description]) -> bool:
    """Whether all nodes that there should be are described."""
    expected, odd = _agreed(federation, described)
    return len(described) - len(
        odd
    ) >= expected <= federation.config.federated.num_clients and bool(described)


def _without(
    federation: Federation, good: dict[int, Description], others: Mapping[int, FederationError]
) -> dict[int, Description]:
    for error in dict.fromkeys(str(error) for error in others.values()):
        log.warning("the run begins without a node: %s", error)
    for node in others:
        federation.refuse(node)
    return good


def _too_few(
    federation: Federation,
    found: int,
    expected: int,
    impostors: int,
    reasons: Sequence[FederationError],
) -> FederationError:
    unknown = len(set(federation.grid.get_node_ids()) - federation.present()) + impostors
    strangers = (
        f" ({unknown} others have no key of federated.node_keys, or another node's)"
        if unknown
        else ""
    )
    why = f"; left out: {'; '.join(dict.fromkeys(map(str, reasons)))}" if reasons else ""
    return FederationError(
        f"{found} of {expected} nodes connected within {federation.config.federated.connect_timeout_s:.0f} s{strangers}{why}; start the others, "
        "raise federated.connect_timeout_s, or set federated.min_clients to begin with fewer",
        setting="federated.connect_timeout_s",
    )


def _describe_partitions(
    federation: Federation, hosts: Mapping[int, Sequence[int]], timeout_s: float
) -> list[Failure]:
    """Ask the nodes of ``hosts`` what each partition has; returns those that cannot take part."""
    shares: dict[int, list[int]] = {}
    for partition in sorted({partition for hosted in hosts.values() for partition in hosted}):
        able = [node for node in hosts if partition in hosts[node]]
        shares.setdefault(able[partition % len(able)], []).append(partition)
    failures: list[Failure] = []
    heard: set[int] = set()
    most = max(map(len, shares.values()), default=0)
    sizes = {"run_keys": ROW_BYTES * most} if federation.config.secure.enabled else {}
    for reply in federation.ask(
        Describe(), Description, shares, timeout_s=timeout_s, num_bytes=sizes
    ):
        rows = _run_keys(federation, reply)
        for partition in shares.get(reply.node_id, ()):
            said = reply.metrics.get(partition)
            if said is None:
                failures += reply.failures_of([partition])
                continue
            about = dict(said)
            if contradiction(federation.config, about):
                failures.append(Failure(partition, "malformed"))
                continue
            fingerprint = int(about.pop("data_fingerprint"))
            if federation.fingerprints.setdefault(partition, fingerprint) != fingerprint:
                failures.append(
                    Failure(partition, "data_has_changed_since_the_run_began", "data.manifest")
                )
                continue
            if federation.config.secure.enabled and partition not in rows:
                failures.append(Failure(partition, "secure_keys", "secure.roster"))
                continue
            federation.run_keys.update({partition: rows[partition]} if rows else {})
            federation.partitions[partition] = about
            heard.add(partition)
    failed = {failure.partition for failure in failures}
    lost = sorted({partition for asked in shares.values() for partition in asked} - heard - failed)
    return failures + [Failure(partition, "no_answer") for partition in lost]


def _run_keys(federation: Federation, reply: Reply[Description]) -> dict[int, bytes]:
    """Return the signed run keys of a reply's partitions; one that is not signed by its site for
    this run is left out, and said."""
    shown = None if reply.answer is None else reply.answer.arrays.get("run_keys")
    if shown is None or len(shown) != len(reply.metrics):
        return {}
    rows: dict[int, bytes] = {}
    roster = federation.roster
    for number, row in zip(reply.metrics, shown, strict=True):
        try:
            expected = roster.sites.get(number, b"") if roster else None
            check_row(
                row.tobytes(),
                federation.run_key,
                roster.fingerprint if roster else "",
                number,
                expected,
            )
        except SecureError as error:
            log.warning("%s", error)
        else:
            rows[number] = row.tobytes()
    return rows
