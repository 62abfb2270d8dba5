"""What every handler of a node needs: partition by partition, with what fails beside what
succeeds."""

import math
import time
from collections.abc import Callable, Mapping

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.settings import NodeConfig
from fedhubert.clients.state import PartitionState, StateFolder
from fedhubert.errors import FederationError
from fedhubert.federation.site.failures import Answered, failure_of
from fedhubert.federation.wire.messages.message import Failure, Instruction
from fedhubert.federation.wire.messages.rounds import WithModel
from fedhubert.federation.wire.protocol import Request

__all__ = ["Answered", "each_partition", "kept_state", "said_of"]


def said_of(partition: int, named: Mapping[int, int], what: str) -> int:
    """Return what a request says of a partition; raises :class:`FederationError` where it says
    nothing."""
    if partition not in named:
        raise FederationError(
            f"the request has no {what} of partition {partition}", setting="version"
        )
    return named[partition]


def kept_state(request: Request[WithModel], folder: StateFolder, partition: int) -> PartitionState:
    """Return what a partition has kept of the round that the request names; nothing where the run
    keeps nothing.

    Raises:
        FederationError: the request names no round.
        StateMissing: nothing usable is kept of that round.
    """
    if not request.job.keeps_state:
        return PartitionState()
    version = said_of(partition, request.task.site_rounds, "site_rounds")
    return folder.load(version, personal=not request.job.task.shares_head)


def each_partition(
    request: Request[Instruction],
    node_config: NodeConfig,
    work: Callable[[Site, Partition], Metrics],
    budget_s: float | None = None,
) -> tuple[dict[int, Metrics], list[Failure]]:
    """Run ``work`` for each partition of the request; return what it gives, and the failures of the
    others.

    Within a time budget, partitions for which it would not suffice, judged by those before, are
    left out, so that the others arrive in time.
    """
    site = open_site(request.job, node_config)
    metrics: dict[int, Metrics] = {}
    failures: list[Failure] = []
    started, limit_s = time.monotonic(), math.inf if budget_s is None else budget_s
    for done, number in enumerate(request.task.partitions):
        elapsed_s = time.monotonic() - started
        if done and elapsed_s * (done + 1) / done > limit_s:
            failures.append(Failure(number, "no_time", "federated.round_timeout_s"))
            continue
        try:
            metrics[number] = work(site, site.partition(number))
        except Exception as error:
            failures.append(failure_of(number, error))
    return metrics, failures
