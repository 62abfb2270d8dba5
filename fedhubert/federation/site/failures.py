"""What may leave a site of an error: a code and a setting's name."""

import logging

from fedhubert.errors import FedhubertError
from fedhubert.federation.updates.rejected import UpdateRejected
from fedhubert.federation.wire.messages.message import Answer, Failure

log = logging.getLogger("fedhubert.site")

Answered = tuple[Answer, list[Failure]]
"""What a handler gives: its answer, and which partitions failed."""


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
