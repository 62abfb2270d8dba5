"""How every client is asked for counts.

A reply that breaks a bound, or cannot be read, is no reply: its clients are asked again, and left
out by name when that does not help and ``federated.min_clients`` allows. The sums are of integers,
so what comes of the others is the same as if those had never been there.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from fedhubert.errors import FedhubertError
from fedhubert.federation.phases.counts import sizes_of
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.wire.messages.message import Answer, Failure, Instruction
from fedhubert.federation.wire.protocol import Reply

log = logging.getLogger("fedhubert")


AnswerT = TypeVar("AnswerT", bound=Answer)
PartT = TypeVar("PartT")


def ask_all(
    federation: Federation,
    instruction: Instruction,
    kind: type[AnswerT],
    read: Callable[[Reply[AnswerT]], PartT],
    widths: Sequence[int] = (),
) -> list[PartT]:
    """Have every connected client follow ``instruction`` and return what ``read`` makes of the
    replies.

    Those that fail, or whose reply ``read`` refuses, are asked again (:func:`ask_again`), those
    that are silent never: they have been waited for.

    Raises:
        FederationError: clients that failed all the same, and ``federated.min_clients`` does not
            allow to go on without them.
    """
    parts: list[PartT] = []

    def take(reply: Reply[AnswerT]) -> list[Failure]:
        if not reply.metrics:
            return []
        try:
            parts.append(read(reply))
        except (FedhubertError, KeyError, TypeError, ValueError) as error:
            log.warning(
                "%s: the reply of clients %s is not used: %s",
                instruction.KIND,
                list(reply.metrics)[:10],
                str(error)[:300],
            )
            setting = error.setting if isinstance(error, FedhubertError) else ""
            return [Failure(partition, "malformed", setting) for partition in reply.metrics]
        return []

    sizes = sizes_of(federation, kind, widths)
    if lost := ask_again(federation, instruction, kind, take, sizes, silent=False):
        federation.leave_out(lost, f"{instruction.KIND} failed")
    return parts


def ask_again(
    federation: Federation,
    instruction: Instruction,
    kind: type[AnswerT],
    take: Callable[[Reply[AnswerT]], list[Failure]],
    num_bytes: Mapping[str, int],
    *,
    silent: bool,
) -> list[Failure]:
    """Have every connected client follow ``instruction``, and those that fail again up to
    ``federated.round_retries`` times; return who failed all the same.

    Args:
        take: Takes in a reply, and returns whose numbers in it cannot be used.
        num_bytes: The most bytes of each array of a reply.
        silent: Ask those again, too, that have let the time run out.
    """
    federated, shares = federation.config.federated, federation.everyone()
    lost: list[Failure] = []
    failures: list[Failure] = []
    for attempt in range(federated.round_retries + 1):
        failures = []
        for reply in federation.ask(
            instruction, kind, shares, timeout_s=federated.round_timeout_s, num_bytes=num_bytes
        ):
            failures += failed_of(reply, shares[reply.node_id]) + take(reply)
        said = describe_failures(failures)
        if not silent:
            lost += [failure for failure in failures if failure.code == "no_answer"]
            failures = [failure for failure in failures if failure.code != "no_answer"]
        again = {failure.partition for failure in failures}
        shares = only(again - {failure.partition for failure in lost}, shares)
        if not shares:
            break
        if attempt < federated.round_retries:
            log.warning("%s failed: %s; asking again", instruction.KIND, said)
    return lost + failures


def only(wanted: Collection[int], shares: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Return of the ``shares`` (node id -> partitions) those partitions that are ``wanted``."""
    return {
        node: left
        for node, asked in shares.items()
        if (left := [number for number in asked if number in wanted])
    }


def failed_of(reply: Reply[Answer], asked: Sequence[int]) -> list[Failure]:
    """Return why those of ``asked`` have no numbers in a reply, one failure each."""
    return reply.failures_of(partition for partition in asked if partition not in reply.metrics)
