"""A site's answer to a message: read it, admit it, do what it asks for, and write down what is sent
before it leaves.

Nothing raised on the way leaves the site: a failure becomes a code and a setting's name in the
reply, and the full story goes to the site's log.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from fedhubert.clients.effective import effective_job
from fedhubert.clients.settings import NodeConfig, log_on_site, number_of, state_dir_of
from fedhubert.errors import FedhubertError
from fedhubert.federation.site import faults, opening
from fedhubert.federation.site.admission import Guard, policy_of
from fedhubert.federation.site.audit import write_down
from fedhubert.federation.site.failures import Answered, failure_of
from fedhubert.federation.site.identity import admission_from, seal_from
from fedhubert.federation.site.rules import Refused
from fedhubert.federation.site.unmasked import pinned_from
from fedhubert.federation.wire import protocol, reading
from fedhubert.federation.wire.flower import ClientApp, Context, Message
from fedhubert.federation.wire.messages import INSTRUCTIONS
from fedhubert.federation.wire.messages.message import Answer, Failure, Instruction
from fedhubert.federation.wire.messages.secure import Close, Open
from fedhubert.federation.wire.packing import is_packed, pack
from fedhubert.federation.wire.protocol import Request

log = logging.getLogger("fedhubert.site")

Handler = Callable[[Request[Instruction], NodeConfig], Answered]

Admission = Callable[[Message, Request[Instruction]], Request[Instruction]]
"""Says whether a site does what a message asks for: returns the request as the site takes it, or
raises a ``FedhubertError`` with the code and the setting that the server is told."""

Departure = Callable[[Request[Instruction], Answer | None], Answer | None]
"""Takes a request and what it is answered with (None where that failed), and returns the answer as
it leaves; or raises a ``FedhubertError``."""

Seal = Callable[[Message, Message], Message]
"""Takes a message and the reply to it, and returns the reply as it leaves (signed, for example)."""


@dataclass(frozen=True)
class SiteContext:
    """Who answers.

    Attributes:
        node_config: The node's own configuration.
        admissions: Asked in order before anything is done.
        departures: Asked in order before an answer is made a message.
        seal: What a reply goes through last.
    """

    node_config: NodeConfig
    admissions: tuple[Admission, ...] = ()
    departures: tuple[Departure, ...] = ()
    seal: Seal = lambda message, reply: reply


def site_context(node_config: NodeConfig) -> SiteContext:
    """Return who answers for a node, by its configuration: whom it obeys, whether it sends anything
    unmasked, within which policy, and how its replies are sealed.

    Raises:
        FedhubertError: a key, the roster or the policy cannot be used; then nothing is to be
            answered.
    """
    admission, seal, policy = (
        admission_from(node_config),
        seal_from(node_config),
        policy_of(node_config),
    )
    pinned = pinned_from(node_config)
    guard = None if policy is None else Guard.of(policy, node_config)
    # what is refused for its signature, or for want of masks, counts nothing in the policy's ledger
    asked = (admission, pinned, guard.admit if guard else None)
    site = SiteContext(
        node_config if guard is None else guard.node_config,
        tuple(admit for admit in asked if admit is not None),
        (guard.leave,) if guard else (),
    )
    return replace(site, seal=seal) if seal else site


def answer(message: Message, site: SiteContext) -> Message:
    """Return the reply to ``message``; there always is one. Only an injected crash is raised."""
    node_config, request = site.node_config, None
    # a site that admits requests lets none of them name a folder
    own_folder = state_dir_of(node_config, None) if site.admissions else None
    try:
        request = reading.read_request(message)
        log_on_site(own_folder or state_dir_of(node_config, request.job))
        asked = request
        for admit in site.admissions:
            asked = admit(message, asked)
        reply = protocol.reply(
            message, *_done(replace(asked, job=effective_job(asked.job, node_config)), site)
        )
    except faults.InjectedCrash:
        raise
    except Exception as error:
        partition = error.partition if isinstance(error, Refused) else -1
        reply = protocol.reply(
            message, None, [failure_of(partition, error)], node=number_of(node_config)
        )
    try:
        folder = own_folder or state_dir_of(node_config, None if request is None else request.job)
        write_down(node_config, folder, message, request, reply.content)
    except Exception as error:
        # all that leaves unwritten: the word `audit`
        reply = protocol.reply(message, None, [failure_of(-1, error)])
    try:
        return site.seal(message, reply)
    except Exception as error:
        # all that leaves unsealed: why
        return protocol.reply(message, None, [failure_of(-1, error)])


def _done(request: Request[Instruction], site: SiteContext) -> tuple[Answer | None, list[Failure]]:
    """Do what is asked; the departures see the answer, or that there is none."""
    answer: Answer | None = None
    failures: list[Failure] = []
    try:
        answer, failures = _handler(type(request.task))(request, site.node_config)
    finally:
        for leave in site.departures:
            answer = leave(request, answer)
    return answer, failures


def _handler(kind: type[Instruction]) -> Handler:
    """Return what an instruction is done by; torch is loaded where that needs it, and not to open a
    sum, for which others wait."""
    if kind in _LIGHT:
        return _LIGHT[kind]
    from fedhubert.federation.site.table import do

    return do


def respond(message: Message, node_config: NodeConfig) -> Message:
    """Return what the node of ``node_config`` replies; where its keys or its policy cannot be used,
    why."""
    packed = is_packed(message)  # answered as it was asked
    try:
        reply = answer(message, site_context(node_config))
    except FedhubertError as error:
        reply = protocol.reply(message, None, [failure_of(-1, error)], node=number_of(node_config))
    return pack(reply) if packed else reply


def register(app: ClientApp) -> None:
    """Have a Flower ``ClientApp`` answer every instruction."""
    verbs = {"query": app.query, "train": app.train, "evaluate": app.evaluate}

    def reply(message: Message, context: Context) -> Message:
        return respond(message, context.node_config)

    for kind in INSTRUCTIONS.values():
        verb, _, action = kind.KIND.partition(".")
        verbs[verb](action)(reply)


_LIGHT: Mapping[type[Instruction], Handler] = {
    Open: cast(Handler, opening.open_sum),
    Close: cast(Handler, opening.close_run),
}
