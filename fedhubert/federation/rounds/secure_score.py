"""The final model's score as a sum that nobody sees the parts of."""

import logging

import torch

from fedhubert import live
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.roster.sampling import assign_to_nodes
from fedhubert.federation.rounds.broadcast import Broadcast
from fedhubert.federation.rounds.journal import Attempt, Journal
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.secure_sum import SecureSum
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.figures import score_names
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.rounds import Evaluate
from fedhubert.federation.wire.messages.secure import Masked
from fedhubert.objectives.spec import spec_of

log = logging.getLogger("fedhubert")


def score_masked(
    federation: Federation,
    targets_key: str,
    state: RoundState,
    model: torch.Tensor,
    number: int,
    journal: Journal | None,
) -> RoundOutcome:
    """Have the connected clients score ``model`` [P], that of round ``number``, and open the sums
    of their figures; without figures, and with the reason in the log, where that fails."""
    outcome = RoundOutcome(number, sorted(federation.connected))
    spec, timeout_s = spec_of(federation.config.task), federation.config.federated.round_timeout_s
    total = SecureSum(federation, Evaluate.KIND, number, 0, score_names(spec))
    # a sum of this model may have been opened before: over nobody else may another be
    before = journal.attempt_of(Evaluate.KIND, number) if journal else Attempt()
    cohort = before.cohort or sorted(state.secure_cohort) or outcome.asked
    kept = before.included or sorted(state.secure_included)
    try:
        attempt = journal.begin(Evaluate.KIND, number, cohort) if journal else 0
        positions = dict.fromkeys(cohort, 0)
        personal = not federation.config.task.shares_head
        versions = state.versions(cohort) if personal else {}
        terms, keys = total.begin(cohort, attempt, positions=positions, site_rounds=versions)
        asked_now = set(kept or cohort) & federation.connected
        shares = assign_to_nodes(sorted(asked_now), federation.hosts, {})
        broadcast = Broadcast.of(federation, targets_key, model)
        messages = (
            broadcast.message(
                node,
                Evaluate,
                partitions,
                number,
                positions,
                arrays=keys,
                secure=terms,
                site_rounds={p: versions[p] for p in partitions if p in versions},
            )
            for node, partitions in shares.items()
        )
        for message in federation.grid.send_and_receive(messages, timeout=timeout_s):
            asked = shares.get(message.metadata.src_node_id, [])
            reply = federation.read(message, Masked, total.asked_for(asked))
            used = set(reply.metrics) if total.take(reply) else set()
            live.done(len(used))
            outcome.failures += reply.failures_of(p for p in asked if p not in used)
        outcome.failures += [
            Failure(partition, "no_answer")
            for node in federation.grid.unanswered
            for partition in shares.get(node, ())
        ]
        needed = len(kept) or total.least
        if len(total.answered) < needed:
            raise SecureError(
                "secure_unreadable",
                f"{len(total.answered)} masked scores, {needed} needed. "
                f"{describe_failures(outcome.failures)}",
                setting="secure.threshold",
            )
        if journal:
            journal.opens(Evaluate.KIND, number, sorted(total.answered))
        outcome.pooled = total.open(timeout_s, federation.config.federated.round_retries)
        outcome.clients = {partition: {} for partition in sorted(total.answered)}
        outcome.secure = total.said(sorted(set(cohort) - total.answered))
    except SecureError as error:
        log.warning("the final model's score could not be read: %s", error)
    return outcome
