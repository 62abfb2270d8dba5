"""What a site's worker does with a message: pull it from the SuperNode, answer it with the
installed handlers, push the reply.

The place of Flower's ``flwr-clientapp``, which would unpack and run the code that came with the
run.
"""

import contextlib
import json
from dataclasses import dataclass

from fedhubert.clients.settings import log_on_site
from fedhubert.federation.site.context import SiteOptions, site_context
from fedhubert.federation.site.worker import Event, Job, Say
from fedhubert.federation.wire.arrays import put_together_once, size_on_wire
from fedhubert.federation.wire.flower import Message, RecordDict
from fedhubert.federation.wire.flower.supernode import SuperNodeApi, Task, error_reply
from fedhubert.federation.wire.flower.waits import shorten_waits
from fedhubert.federation.wire.packing import is_packed, pack, unpack
from fedhubert.memory import keep_freed

LOST = "the site could not answer"
"""All that the coordinator is told of a worker that died or hung."""


@dataclass(frozen=True)
class Pulled(Event):
    """What a message asks for.

    Attributes:
        kind, group: Of the message; the group is the round's number, where there is one.
        num_bytes: Of its arrays, as they travel.
        limit_s: After so long nobody waits for the reply.
        fallback: A reply that says that there is none, should none come.
    """

    kind: str
    group: str
    num_bytes: int
    limit_s: float
    fallback: Task


@dataclass(frozen=True)
class Pushing(Event):
    """The reply is made and written down, and begins to leave.

    Attributes:
        num_bytes: Of its arrays, as they travel.
        refused: The codes and settings of what failed or was refused.
    """

    num_bytes: int
    refused: tuple[str, ...]


@dataclass(frozen=True)
class SiteWork:
    """The work of one site."""

    options: SiteOptions

    def prepare(self) -> None:
        """Load torch and the handlers, so that the first message finds them there."""
        import fedhubert.federation.site.table  # noqa: F401

        log_on_site(self.options.state_dir)
        site_context(self.options)
        shorten_waits("site")
        keep_freed()
        put_together_once()

    def __call__(self, job: Job, say: Say) -> None:
        """Answer the message of ``job``; that its task is over is for who beats for it to say, or a
        last beat would find it gone.

        Raises:
            Unreachable: the SuperNode is gone or wants no reply any more.
            InjectedCrash: a rehearsed one.
        """
        from fedhubert.federation.site.answering import answer

        node = SuperNodeApi(job.address, b"")
        task = node.pull(job.token)
        message = task.message
        packed = is_packed(message)
        with contextlib.suppress(ValueError):  # who reads the request unpacks it again, and refuses
            unpack(message)
        about = message.metadata
        fallback = Task(error_reply(message, LOST), task.run_id, task.node_id)
        say(
            Pulled(
                printable(about.message_type),
                printable(about.group_id),
                array_bytes(message),
                limit_s(message),
                fallback,
            )
        )
        reply = answer(message, site_context(self.options))
        pushing = Pushing(array_bytes(reply), refusals(reply))
        reply = pack(reply) if packed else reply
        say(pushing)
        node.push(job.token, reply, task)


def printable(text: str) -> str:
    """Return words from outside as a terminal may show them."""
    return "".join(
        letter if letter.isascii() and letter.isprintable() else "?" for letter in text[:64]
    )


def array_bytes(message: Message) -> int:
    """Return the bytes of a message's arrays, as they travel."""
    if not message.has_content():
        return 0
    arrays = [
        array for record in message.content.array_records.values() for array in record.values()
    ]
    return sum(map(size_on_wire, arrays))


def limit_s(message: Message) -> float:
    """Return for how long the coordinator waits for a reply: the budget that it names, or the
    message's time to live."""
    content = message.content if message.has_content() else RecordDict()
    try:
        budget_s = float(json.loads(str(content.config_records["request"]["task"]))["budget_s"])
        # also where it is no number
        return budget_s if budget_s < message.metadata.ttl else message.metadata.ttl
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return message.metadata.ttl


def refusals(reply: Message) -> tuple[str, ...]:
    """Return what a reply says has failed: a code each, and the setting to look at."""
    record = reply.content.config_records.get("failures") if reply.has_content() else None
    if record is None:
        return ()
    codes, settings = (
        map(str, column if isinstance(column, list) else [])
        for column in (record["code"], record["setting"])
    )
    return tuple(
        f"{code} ({setting})" if setting else code
        for code, setting in zip(codes, settings, strict=False)
    )
