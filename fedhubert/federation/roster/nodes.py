"""The nodes of a federation: which partitions each can train, how they are asked, and what becomes
of those that fail."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fedhubert import live
from fedhubert.clients import Metrics
from fedhubert.config import Config
from fedhubert.errors import FederationError
from fedhubert.federation.roster.correspondence import Correspondence
from fedhubert.federation.roster.node_keys import NodeKeys
from fedhubert.federation.roster.sampling import assign_to_nodes
from fedhubert.federation.secure.roster import read_roster
from fedhubert.federation.strategies.strategy import client_job
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.arrays import HeldArray
from fedhubert.federation.wire.flower import Array, Message, activations
from fedhubert.federation.wire.grid import StreamingGrid
from fedhubert.federation.wire.messages import ANSWERS, MASKED
from fedhubert.federation.wire.messages.message import Answer, Failure, Instruction
from fedhubert.federation.wire.protocol import Asked, Reply
from fedhubert.files import on_server
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert")

_TTL_MARGIN_S = 600.0
_TRY_AGAIN_S = 60.0
_LONGEST_PAUSE = 2**6
_STARTS_BELIEVED = 3

AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True)
class _Refusal:
    """Until when (``time.monotonic``) a node is asked nothing, when its SuperNode had come online,
    and how often it has been refused."""

    until: float
    activated: str
    times: int


@dataclass
class Federation:
    """The connected nodes and how to talk to them.

    Attributes:
        hosts: Node id -> partitions it can train, ordered by node number.
        partitions: Partition -> what its site said of it (utterances, seconds of audio, batches per
            epoch).
        fingerprints: Partition -> what its data hashed to when the run began; a site whose data is
            other data now may not take part.
        on_join: Prepares partitions that join after the start (they need labels); returns those
            that are not ready.
        left_out: Partition -> why it takes no part in the rest of the run.
        own_data: Whether the sites have data of their own, as all of them say; None before they
            have said so.
        num_nodes: How many there should be, as most of them say; 0 before.
        run_keys: Partition -> its signed run key, where sums are secure.
        roster: What ``secure.roster`` names; None: a throw-away one.
    """

    grid: StreamingGrid
    config: Config
    run_key: str
    layout: ParameterLayout
    hosts: dict[int, list[int]] = field(default_factory=dict)
    partitions: dict[int, Metrics] = field(default_factory=dict)
    fingerprints: dict[int, int] = field(default_factory=dict)
    on_join: Callable[[dict[int, list[int]]], list[Failure]] = lambda shares: []
    left_out: dict[int, str] = field(default_factory=dict)
    own_data: bool | None = None
    num_nodes: int = 0
    run_keys: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = self.config.secure.roster if self.config.secure.enabled else None
        self.roster = None if named is None else read_roster(on_server(named))
        self._job_json = client_job(self.config).model_dump_json()
        self._keys = NodeKeys.read(self.config.federated.node_keys)
        self._claims: dict[int, int] = {}
        self._correspondence = Correspondence.of(self.config.federated, self._keys)
        self._refusals: dict[int, _Refusal] = {}
        self._activated: dict[int, str] = {}

    @property
    def num_keys(self) -> int:
        """How many nodes have a key in ``federated.node_keys``."""
        return len(self._keys.numbers)

    def present(self) -> set[int]:
        """Return the nodes that are connected, those without one of ``federated.node_keys`` left
        out."""
        if not self._keys.numbers:
            return set(self.grid.get_node_ids())
        self._claims = self._keys.claims(self.grid)
        return set(self._claims)

    def key_mismatch(self, node: int, number: int) -> str:
        """Return why ``node`` of :meth:`present`, which says that it is number ``number``, is not;
        an empty string when its key says so, too."""
        if not self._keys.numbers:
            return ""
        belongs = self._claims.get(node)
        return (
            ""
            if belongs == number
            else f"it says that it is node {number}, and has the key of node {belongs}"
        )

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

    def read(self, message: Message, kind: type[AnswerT], asked: Asked) -> Reply[AnswerT]:
        """Parse a reply that should be an answer of ``kind`` to what was ``asked``.

        Where sites sign, one that is not signed by the site that was asked is a failure.
        """
        return self._correspondence.read(message, kind, asked)

    def ask(
        self,
        instruction: Instruction,
        kind: type[AnswerT],
        shares: Mapping[int, Sequence[int]],
        *,
        timeout_s: float,
        num_bytes: Mapping[str, int] | None = None,
    ) -> Iterator[Reply[AnswerT]]:
        """Have every node of ``shares`` (node id -> partitions) follow ``instruction`` with its
        partitions; yield replies as they arrive.

        A node that does not answer in time yields a reply whose failure is ``no_answer``; one that
        answers for partitions that it was not asked about, ``malformed``.

        Args:
            kind: What belongs to the instruction by
                :data:`~fedhubert.federation.wire.messages.ANSWERS`.
            num_bytes: Slot of ``kind`` -> the most bytes that one array in it takes; arrays of
                others are not taken.
        """
        assert kind in (ANSWERS[type(instruction)], MASKED.get(type(instruction)))
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
        if shares:
            unit = "clients" if any(shares.values()) else "nodes"
            live.counting(sum(len(each) or 1 for each in shares.values()), unit)
        for message in self.grid.send_and_receive(messages, timeout=timeout_s):
            live.done(len(shares.get(message.metadata.src_node_id, ())) or 1)
            yield self.read(
                message, kind, Asked(shares.get(message.metadata.src_node_id, ()), num_bytes or {})
            )
        for node in self.grid.unanswered:
            yield Reply(node, failures=(Failure(-1, "no_answer"),))

    def newcomers(self) -> list[int]:
        """Let go of nodes that have left; return those present that have no part yet and may be
        asked for one (now: :meth:`refuse`), in order."""
        present = self.present()
        for node in set(self.hosts) - present:
            log.warning("node of clients %s has left", self.hosts.pop(node)[:10])
        self._activated = activations(self.grid)
        return [node for node in sorted(present - set(self.hosts)) if self._may_be_asked(node)]

    def _may_be_asked(self, node: int) -> bool:
        refusal = self._refusals.get(node)
        if refusal is None or refusal.until <= time.monotonic():
            return True
        # one that is started again and again would let every round wait
        started_anew = self._activated.get(node, "") != refusal.activated
        return started_anew and refusal.times <= _STARTS_BELIEVED

    def refuse(self, node: int) -> None:
        """Ask ``node`` again in a minute, and every time that it is refused later and later: up to
        an hour. One whose SuperNode was started anew since it was last present is asked at once,
        a few times a run."""
        before = self._refusals.get(node)
        times = before.times if before else 0
        pause_s = _TRY_AGAIN_S * min(2**times, _LONGEST_PAUSE)
        self._refusals[node] = _Refusal(
            time.monotonic() + pause_s, self._activated.get(node, ""), min(times + 1, 16)
        )

    def set_aside(self, nodes: Collection[int]) -> None:
        """Ask ``nodes``, which were silent, nothing before they have joined again."""
        for node in sorted(nodes & self.hosts.keys()):
            log.warning(
                "node of clients %s is silent: it is asked again when it answers",
                self.hosts.pop(node)[:10],
            )
            self.refuse(node)

    def leave_out(self, failures: Sequence[Failure], what: str) -> None:
        """Go on without the partitions of ``failures`` for the rest of the run, where
        ``federated.min_clients`` allows.

        Raises:
            FederationError: it does not, or too few are left; names ``what`` failed and every
                client's reason.
        """
        lost = {failure.partition for failure in failures}
        left, least = len(self.connected - lost), self.config.federated.min_clients
        if least is None or left < least:
            few = (
                ""
                if least is None
                else f"; {left} clients would be left, and federated.min_clients is {least}"
            )
            raise FederationError(
                f"{what}: {describe_failures(failures) or 'no result'} (the site's log says "
                f"more){few}",
                setting=setting_of(failures),
            )
        log.warning("%s: the run goes on without: %s", what, describe_failures(failures))
        self.left_out.update(
            {failure.partition: str(failure) for failure in failures if failure.partition >= 0}
        )
        for partition in lost:
            self.partitions.pop(partition, None)
        self.hosts = {
            node: kept
            for node, hosted in self.hosts.items()
            if (kept := [partition for partition in hosted if partition not in lost])
        }

    def everyone(self) -> dict[int, list[int]]:
        """Return a share for each node that covers all partitions."""
        load = {
            partition: float(numbers["train_audio_s"])
            for partition, numbers in self.partitions.items()
        }
        return assign_to_nodes(sorted(self.connected), self.hosts, load)


def describe_failures(failures: Sequence[Failure]) -> str:
    """Return one line that says which partitions failed and why, those that failed alike
    together."""
    alike: dict[str, list[int]] = {}
    for failure in failures:
        alike.setdefault(str(failure), []).append(failure.partition)
    return "; ".join(
        f"{_named(sorted(partitions))}: {reason}" for reason, partitions in alike.items()
    )


def _named(partitions: list[int]) -> str:
    if partitions[0] < 0:
        return "node" if len(partitions) == 1 else f"{len(partitions)} nodes"
    partitions = sorted(set(partitions))  # one that is asked again may fail again
    shown = ", ".join(map(str, partitions[:10])) + (
        f" and {len(partitions) - 10} more" if len(partitions) > 10 else ""
    )
    return f"client {shown}" if len(partitions) == 1 else f"clients {shown}"


def setting_of(failures: Sequence[Failure]) -> str:
    """Return the first setting that one of ``failures`` names, or an empty string."""
    return next((failure.setting for failure in failures if failure.setting), "")
