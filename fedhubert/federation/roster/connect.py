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
from collections.abc import Mapping, Sequence

from fedhubert import live
from fedhubert.errors import FederationError
from fedhubert.federation.roster.agreement import agreed, check_joins, hosted_by, ready
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.roster.partitions import describe_partitions
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.federation.wire.messages.nodes import Describe, Description

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
    live.doing("waiting for the clients")
    descriptions = _describe_all(federation)
    expected, _ = agreed(federation, descriptions)
    own_data = not any(about.hosts_all for about in descriptions.values())
    if expected != federated.num_clients and own_data:
        raise FederationError(
            f"{expected} sites with their own data are expected, but federated.num_clients is "
            f"{federated.num_clients}; set it to {expected}",
            setting="federated.num_clients",
        )
    if strategy_of(federated).needs_every_update and expected < federated.num_clients:
        raise FederationError(
            f"strategy={federated.strategy} needs every client's own update, but {expected} nodes "
            f"host {federated.num_clients} clients; "
            f"start {federated.num_clients} SuperNodes",
            setting="federated.strategy",
        )
    federation.own_data, federation.num_nodes = own_data, expected
    for node in sorted(descriptions, key=lambda node: descriptions[node].node):
        federation.hosts[node] = hosted_by(federation, descriptions[node])
    live.doing("clients describe their audio")
    failures = describe_partitions(federation, federation.hosts, federated.connect_timeout_s)
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
            about = ready(federation, reply)
            check_joins(federation, about)
        except FederationError as error:
            reasons[reply.node_id] = str(error)
        else:
            admitted[reply.node_id] = about
    _, odd = agreed(federation, admitted)
    reasons |= {node: str(error) for node, error in odd.items()}
    in_order = sorted(admitted.keys() - odd.keys(), key=lambda node: admitted[node].node)
    shares = {node: hosted_by(federation, admitted[node]) for node in in_order}
    for prepare in (
        lambda shares: describe_partitions(federation, shares, JOIN_TIMEOUT_S),
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
                described[reply.node_id] = ready(federation, reply)
            except FederationError as error:
                wrong[reply.node_id] = error
                log.warning("a node is left out: %s", error)
            if len(described) == federated.num_clients and _complete(federation, described):
                break  # whoever else is there and silent is not needed
        expected, odd = agreed(federation, described)
        good = {node: about for node, about in described.items() if node not in odd}
        over = time.monotonic() > deadline
        if _complete(federation, described):
            return _without(federation, good, {**wrong, **odd})
        if expected > federated.num_clients and (over or len(good) > federated.num_clients // 2):
            raise FederationError(
                f"the federation has {expected} SuperNodes (num-supernodes or num-partitions), but "
                "federated.num_clients is "
                f"{federated.num_clients}: set federated.num_clients={expected}, or start with "
                f"num-supernodes={federated.num_clients} or fewer",
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
    expected, odd = agreed(federation, described)
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
        f"{found} of {expected} nodes connected within "
        f"{federation.config.federated.connect_timeout_s:.0f} s{strangers}{why}; start the others, "
        "raise federated.connect_timeout_s, or set federated.min_clients to begin with fewer",
        setting="federated.connect_timeout_s",
    )
