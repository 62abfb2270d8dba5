"""What a site does with each instruction: all handlers, with torch and what else they need."""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch

from fedhubert.clients.settings import NodeConfig
from fedhubert.federation.site import handlers
from fedhubert.federation.site.failures import Answered
from fedhubert.federation.site.scoring import evaluate_model
from fedhubert.federation.site.train import train_round
from fedhubert.federation.wire.messages.characters import CountCharacters
from fedhubert.federation.wire.messages.message import Instruction
from fedhubert.federation.wire.messages.nodes import (
    Describe,
    HasExtractor,
    HasTeacher,
    SendExtractor,
    SendTeacher,
)
from fedhubert.federation.wire.messages.rounds import Evaluate, Train
from fedhubert.federation.wire.messages.targets import Label, MomentsKMeans, SeedKMeans, StepKMeans
from fedhubert.federation.wire.protocol import Request

InstructionT = TypeVar("InstructionT", bound=Instruction)
Handler = Callable[[Request[Instruction], NodeConfig], Answered]


def do(request: Request[Instruction], node_config: NodeConfig) -> Answered:
    """Do what is asked for; returns the answer and which partitions failed."""
    torch.set_num_threads(request.job.client.threads)
    return HANDLERS[type(request.task)](request, node_config)


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
        _does(MomentsKMeans, handlers.kmeans_moments),
        _does(StepKMeans, handlers.kmeans_step),
        _does(Label, handlers.label),
        _does(CountCharacters, handlers.count_characters),
        _does(Train, train_round),
        _does(Evaluate, evaluate_model),
    ]
)
"""What a site does with each instruction."""
