"""Helping to open a secure sum, and the end of a run: needs no torch, and waits for nothing that
does."""

from fedhubert.clients import Metrics
from fedhubert.clients.settings import NodeConfig
from fedhubert.federation.secure.keys import RunKeyFile
from fedhubert.federation.site.failures import Answered, failure_of
from fedhubert.federation.site.secure import SecureSite, open_shares
from fedhubert.federation.wire.messages.message import Failure, NDArray
from fedhubert.federation.wire.messages.nodes import Has
from fedhubert.federation.wire.messages.secure import Close, Open, Opened
from fedhubert.federation.wire.protocol import Request


def open_sum(request: Request[Open], node_config: NodeConfig) -> Answered:
    """Send the shares of the partitions that open a secure sum."""
    arrays: dict[str, NDArray] = {}
    failures: list[Failure] = []
    for number in request.task.partitions:
        try:
            arrays[f"shares_{number}"] = open_shares(request, node_config, number)
        except Exception as error:
            failures.append(failure_of(number, error))
    opened: dict[int, Metrics] = {
        number: {} for number in request.task.partitions if f"shares_{number}" in arrays
    }
    return Opened(metrics=opened, arrays=arrays), failures


def close_run(request: Request[Close], node_config: NodeConfig) -> Answered:
    """Delete the run keys of a run that is over."""
    site = SecureSite.of(request, node_config)
    for folder in site.folder.glob(f"partition_*/{request.run_key}"):
        RunKeyFile(folder).delete()
    return Has(has=0), []
