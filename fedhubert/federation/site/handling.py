"""What every handler of a node needs: partition by partition, with what fails beside what succeeds."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fedhubert.clients import Metrics
from fedhubert.clients.data import Partition, Site, open_site
from fedhubert.clients.settings import NodeConfig
from fedhubert.errors import FedhubertError
from fedhubert.federation.updates.exact_sum import UpdateRejected
from fedhubert.federation.wire.protocol import Failure, Request

log = logging.getLogger("fedhubert.site")

Handled = dict[str, Any]
"""Keyword arguments of :func:`fedhubert.federation.wire.protocol.reply`."""


def failure_of(partition: int, error: Exception) -> Failure:
    """Return what may leave the site of ``error``; the site's log has all of it."""
    if isinstance(error, FedhubertError):
        log.error("partition %d: %s", partition, error)
        return Failure(partition, error.code, error.setting)
    if isinstance(error, UpdateRejected):
        log.error("partition %d: update rejected: %s", partition, error.reason)
        return Failure(partition, f"update_{error.reason}")
    if isinstance(error, MemoryError):
        log.error("partition %d: out of memory: %s", partition, error)
        return Failure(partition, "out_of_memory")
    log.exception("partition %d: %s", partition, type(error).__name__)
    return Failure(partition, "internal")


def each_partition(request: Request, node_config: NodeConfig, work: Callable[[Site, Partition], Metrics]) -> Handled:
    """Run ``work`` for each partition of the request; one that fails is reported beside the others.

    Within a time budget, partitions for which it would not suffice, judged by those before, are left out, so that the others arrive in time.
    """
    site = open_site(request.job, node_config)
    metrics: dict[int, Metrics] = {}
    failures: list[Failure] = []
    started, budget_s = time.monotonic(), float(request.task.get("budget_s", "inf"))
    for done, number in enumerate(request.task["partitions"]):
        elapsed_s = time.monotonic() - started
        if done and elapsed_s * (done + 1) / done > budget_s:
            failures.append(Failure(number, "no_time", "federated.round_timeout_s"))
            continue
        try:
            metrics[number] = work(site, site.partition(number))
        except Exception as error:
            failures.append(failure_of(number, error))
    return {"metrics": metrics, "failures": failures}
