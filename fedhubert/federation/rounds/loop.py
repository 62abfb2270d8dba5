"""The rounds of a run, one after the other; and the score of a model on every client's validation
split."""

import logging
import time
from collections.abc import Callable

import torch

from fedhubert import live
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.broadcast import Broadcast
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.limits import RoundLimits, usable_scores
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.round import Round
from fedhubert.federation.rounds.secure import SecureRound
from fedhubert.federation.rounds.secure_score import score_masked
from fedhubert.federation.rounds.shared import RoundResult, Rounds
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Evaluate, Scored
from fedhubert.federation.wire.protocol import Asked

log = logging.getLogger("fedhubert")

AfterRound = Callable[[RoundResult, float], str]
"""Told of every finished round and when it began (``time.monotonic``): books it; returns why the
run ends here, or an empty string."""


def open_round(rounds: Rounds, number: int, model: torch.Tensor) -> Round:
    """Return round ``number`` from ``model`` [P] on, ready to be played: a plain one, or one of
    secure sums."""
    kind = SecureRound if rounds.federation.config.secure.enabled else Round
    return kind(rounds, number, model)


def run_rounds(
    rounds: Rounds, model: torch.Tensor, first: int, last: int, after_round: AfterRound
) -> torch.Tensor:
    """Play rounds ``first`` to ``last`` from ``model`` [P] on; return the last model.

    Each round chooses whom to ask, asks them, aggregates their replies, writes the journal, and
    steps; ``after_round`` evaluates and saves.

    Raises:
        RunInterrupted: asked to stop; rounds that ``after_round`` was told of are finished.
        StepNotFinite, FederationError, CheckpointError: as
            :meth:`~fedhubert.federation.rounds.round.Round.finish`.
    """
    for number in range(first, last + 1):
        started = time.monotonic()
        opened = open_round(rounds, number, model)
        # a message is made when the window has room for it, while replies are aggregated
        result = opened.finish(
            rounds.federation.grid.send_and_receive(
                opened.messages(), timeout=rounds.federation.config.federated.round_timeout_s
            )
        )
        model = result.model
        reason = after_round(result, started)
        if reason:
            log.info("%s", reason)
            break
    return model


def score_everywhere(
    federation: Federation,
    targets_key: str,
    state: RoundState,
    model: torch.Tensor,
    number: int,
    journal: Journal | None = None,
) -> RoundOutcome:
    """Have every connected client score ``model`` [P], that of round ``number``, on its whole
    validation split; ``journal`` has the attempts of secure sums."""
    live.doing("scoring the last model on every client's held-out audio")
    live.counting(len(federation.connected), "clients")
    if federation.config.secure.enabled:
        return score_masked(federation, targets_key, state, model, number, journal)
    outcome = RoundOutcome(number, sorted(federation.connected))
    personal = not federation.config.task.shares_head
    broadcast = Broadcast.of(federation, targets_key, model)
    shares, limits = federation.everyone(), RoundLimits(federation.config, federation.partitions)
    messages = (
        broadcast.message(
            node,
            Evaluate,
            partitions,
            number,
            state.positions,
            site_rounds=state.versions(partitions) if personal else {},
        )
        for node, partitions in shares.items()
    )
    for message in federation.grid.send_and_receive(
        messages, timeout=federation.config.federated.round_timeout_s
    ):
        asked = shares.get(message.metadata.src_node_id, [])
        reply = federation.read(message, Scored, Asked(asked))
        scores, failures = usable_scores(reply, asked, limits)
        outcome.clients.update(scores)
        outcome.failures += failures
        live.reached(len(outcome.clients))
    for node in federation.grid.unanswered:
        outcome.failures += [Failure(partition, "no_answer") for partition in shares.get(node, ())]
    return outcome
