"""What each partition has, as the nodes that train it describe it."""

import logging
from collections.abc import Mapping, Sequence

from fedhubert.federation.roster.bounds import contradiction
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.keys import ROW_BYTES, check_row
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.nodes import Describe, Description
from fedhubert.federation.wire.protocol import Reply

log = logging.getLogger("fedhubert")


def describe_partitions(
    federation: Federation, hosts: Mapping[int, Sequence[int]], timeout_s: float
) -> list[Failure]:
    """Ask the nodes of ``hosts`` what each partition has; returns those that cannot take part."""
    able: dict[int, list[int]] = {}
    for node, hosted in hosts.items():
        for partition in hosted:
            able.setdefault(partition, []).append(node)
    shares: dict[int, list[int]] = {}
    for partition, nodes in sorted(able.items()):
        shares.setdefault(nodes[partition % len(nodes)], []).append(partition)
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
