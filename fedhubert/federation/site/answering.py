"""A site's answer to a message: read it, admit it, do what it asks for, and write down what is sent before it leaves.

Nothing raised on the way leaves the site: a failure becomes a code and a setting's name in the reply, and the full story goes to the site's log.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch

from fedhubert.clients.effective import effective_job
from fedhubert.clients.settings import NodeConfig, log_on_site, number_of, state_dir_of
from fedhubert.federation.site import faults, handlers
from fedhubert.federation.site.audit import write_down
from fedhubert.federation.site.handling import Answered, failure_of
from fedhubert.federation.site.train import evaluate_model, train_round
from fedhubert.federation.wire import protocol
from fedhubert.federation.wire.flower import ClientApp, Context, Message
from fedhubert.federation.wire.messages import (
    Describe,
    Evaluate,
    HasExtractor,
    HasTeacher,
    Instruction,
    Label,
    SeedKMeans,
    SendExtractor,
    SendTeacher,
    StepKMeans,
    Train,
)
from fedhubert.federation.wire.protocol import Request

log = logging.getLogger("fedhubert.site")

InstructionT = TypeVar("InstructionT", bound=Instruction)
Handler = Callable[[Request[Instruction], NodeConfig], Answered]

Admission = Callable[[Message, Request[Instruction]], Request[Instruction]]
"""Says whether a site does what a message asks for: returns the request as the site takes it, or raises a ``FedhubertError`` with the code and
the setting that the server is told."""

Seal = Callable[[Message, Message], Message]
"""Takes a message and the reply to it, and returns the reply as it leaves (signed, for example)."""


@dataclass(frozen=True)
class SiteContext:
    """Who answers.

    Attributes:
        node_config: The node's own configuration.
        admissions: Asked in order before anything is done.
        seal: What a reply goes through last.
    """

    node_config: NodeConfig
    admissions: tuple[Admission, ...] = ()
    seal: Seal = lambda message, reply: reply


def answer(message: Message, site: SiteContext) -> Message:
    """Return the reply to ``message``; there always is one. Only an injected crash is raised."""
    node_config, request = site.node_config, None
    try:
        request = protocol.read_request(message)
        torch.set_num_threads(request.job.client.threads)
        log_on_site(state_dir_of(node_config, request.job))
        for admit in site.admissions:
            request = admit(message, request)
        request = replace(request, job=effective_job(request.job, node_config))
        reply = protocol.reply(message, *HANDLERS[type(request.task)](request, node_config))
    except faults.InjectedCrash:
        raise
    except Exception as error:
        reply = protocol.reply(message, None, [failure_of(-1, error)], node=number_of(node_config))
    try:
        write_down(node_config, message.metadata.message_type, request, reply.content)
        return site.seal(message, reply)
    except Exception as error:
        # all that leaves unwritten: the word `audit`, or why it could not be sealed
        return protocol.reply(message, None, [failure_of(-1, error)])


def register(app: ClientApp) -> None:
    """Have a Flower ``ClientApp`` answer every instruction."""
    verbs = {"query": app.query, "train": app.train, "evaluate": app.evaluate}

    def respond(message: Message, context: Context) -> Message:
        return answer(message, SiteContext(context.node_config))

    for kind in HANDLERS:
        verb, _, action = kind.KIND.partition(".")
        verbs[verb](action)(respond)


def _does(
    kind: type[InstructionT], handler: Callable[[Request[InstructionT], NodeConfig], Answered]
) -> tuple[type[Instruction], Handler]:
    return kind, cast(Handler, handler)


HANDLERS: Mapping[type[Instruction], Handler] = dict(
    [
        _does(Describe, handlers.describe),
        _does(HasExtractor, handlers.has_extractor),
        _does(SendExtractor, handlers.receive_extractor),
        _does(HasTeacher, handlers.has_teacher),
        _does(SendTeacher, handlers.receive_teacher),
        _does(SeedKMeans, handlers.kmeans_seed),
        _does(StepKMeans, handlers.kmeans_step),
        _does(Label, handlers.label),
        _does(Train, train_round),
        _does(Evaluate, evaluate_model),
    ]
)
"""What a site does with each instruction."""
