"""What nodes say of themselves, held against the configuration and against what the others say."""

from collections import Counter
from collections.abc import Mapping

from fedhubert.errors import FederationError
from fedhubert.federation.roster.nodes import Federation, describe_failures, setting_of
from fedhubert.federation.roster.preflight import Traits, check_alike, check_versions
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.nodes import Description
from fedhubert.federation.wire.protocol import Reply


def check_joins(federation: Federation, about: Description) -> None:
    """Raise :class:`FederationError` where a node that comes later does not fit those that are
    there."""
    hosted = hosted_by(federation, about)
    if federation.own_data is not None and federation.own_data == bool(about.hosts_all):
        raise other_data(about, federation.own_data)
    if federation.num_nodes and about.num_nodes != federation.num_nodes:
        raise other_number(about, federation.num_nodes)
    if about.hosts_all == 0 and set(hosted) & federation.connected:
        raise FederationError(f"client {hosted[0]} is there already", setting="partition-id")
    if not hosted or hosted[0] >= federation.config.federated.num_clients:
        raise FederationError(
            f"its partition-id {about.node} is not below federated.num_clients",
            setting="partition-id",
        )


def ready(federation: Federation, reply: Reply[Description]) -> Description:
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
            f"{named} is {'silent' if silent else 'not ready'}: {describe_failures(failures)}; its "
            "site.log says more",
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


def agreed(
    federation: Federation, descriptions: Mapping[int, Description]
) -> tuple[int, dict[int, FederationError]]:
    """Return how many nodes there should be, and which of ``descriptions`` (by node id) contradict
    the others, and how."""
    odd: dict[int, FederationError] = {}
    if any(about.hosts_all == 0 for about in descriptions.values()):
        odd |= {
            node: other_data(about, True) for node, about in descriptions.items() if about.hosts_all
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
        node: other_number(about, expected)
        for node, about in rest.items()
        if about.num_nodes != expected
    }
    hashes = Counter(about.centroids_hash for about in rest.values() if about.centroids_hash)
    usual = max(sorted(hashes), key=hashes.__getitem__, default="")
    claimed = Counter(about.node for node, about in rest.items() if node not in odd)
    for node, about in rest.items():
        if node not in odd and claimed[about.node] > 1:
            odd[node] = FederationError(
                f"{claimed[about.node]} nodes have the same partition-id {about.node}; give each "
                "node its own, and name their keys by "
                "federated.node_keys",
                setting="partition-id",
            )
        elif node not in odd and about.centroids_hash not in ("", usual):
            odd[node] = FederationError(
                f"hash of the centroids: site {about.node} has {about.centroids_hash}, another "
                f"site {usual}: label every site's audio with one set "
                "of centroids",
                setting="targets.labels",
            )
    return expected, odd


def other_data(about: Description, own_data: bool) -> FederationError:
    """Return what is wrong with a site that has data of its own, or none, unlike the others."""
    others, this = ("their own data", "none") if own_data else ("no data of their own", "some")
    return FederationError(
        f"the other sites have {others}, and site {about.node} says that it has {this}: name a "
        "manifest in every node's configuration, or in none",
        setting="data.manifest",
    )


def other_number(about: Description, expected: int) -> FederationError:
    """Return what is wrong with a site that counts other nodes than are ``expected``."""
    return FederationError(
        f"site {about.node} says that there are {about.num_nodes} nodes, the others that there are "
        f"{expected}: give all the same num-partitions",
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


def hosted_by(federation: Federation, about: Description) -> list[int]:
    """Return the partitions that a node trains: its own, or, where there are fewer nodes than
    clients, any."""
    num_clients = federation.config.federated.num_clients
    own = [about.node] if about.num_nodes == num_clients else list(range(num_clients))
    return [partition for partition in own if partition not in federation.left_out]
