"""What all rounds of a run share, and what one of them gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fedhubert.errors import FederationError
from fedhubert.federation.privacy.mechanism import Mechanism
from fedhubert.federation.roster.nodes import Federation, describe_failures
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.strategies.strategy import ServerStrategy, client_job
from fedhubert.federation.updates.exact_sum import ExactSum


class StepNotFinite(FederationError):
    """The server optimiser's step failed: its state is ahead of the model, and nothing may be saved
    of it."""


@dataclass(frozen=True)
class RoundResult:
    """A finished round: what came of it, the model [P] that it began with, and the one that it
    ended with."""

    outcome: RoundOutcome
    before: torch.Tensor
    model: torch.Tensor


@dataclass
class Rounds:
    """What all rounds of a run share.

    Attributes:
        federation: The connected nodes.
        optimizer: The run's strategy, with its state.
        state: What earlier rounds left; advanced as rounds are accepted.
        journal: Where the accepted clients are written before each step; rounds already in it are
            replayed as they went.
        targets_key: Names the labels on the sites.
        checkpoints: Returns the rounds that a resume may go back to, for which sites keep their
            state.
        privacy: Draws the cohorts and adds the noise; None: no differential privacy.
    """

    federation: Federation
    optimizer: ServerStrategy
    state: RoundState = field(default_factory=RoundState)
    journal: Journal | None = None
    targets_key: str = ""
    checkpoints: Callable[[], list[int]] = list
    privacy: Mechanism | None = None
    silent_rounds: int = 0
    """Rounds in a row in which clients were asked and none answered, or could be read."""

    def __post_init__(self) -> None:
        self.keeps_state = client_job(self.federation.config).keeps_state
        self.total = ExactSum(
            0 if self.optimizer.needs_every_update else self.federation.layout.numel
        )

    def check_not_silent(self, outcome: RoundOutcome, wanted: int) -> None:
        """With differential privacy a round of noise alone is one like any other; a row of them in
        which clients were ``wanted`` has broken down: raises :class:`FederationError`."""
        self.silent_rounds = self.silent_rounds + 1 if wanted and not outcome.clients else 0
        if self.silent_rounds > self.federation.config.federated.round_retries:
            raise FederationError(
                f"round {outcome.number}: no usable update in {self.silent_rounds} rounds in a row "
                "(federated.round_retries), only noise. "
                f"{describe_failures(outcome.failures)}",
                setting="federated.round_retries",
            )

    def check_not_stuck(self, error: SecureError) -> None:
        """Raise ``error`` where round after round cannot be read: nobody sees whose fault it is."""
        self.silent_rounds += 1
        if self.silent_rounds > self.federation.config.federated.round_retries:
            raise SecureError(
                "secure_garbage" if error.code == "secure_garbage" else "secure_unreadable",
                f"{self.silent_rounds} rounds in a row could not be read "
                f"(federated.round_retries), the last one because: {error}. Their "
                "sums do not say whose fault it is: the sites' logs may; leave sites out of the "
                "run one after the other to find out",
                setting="federated.round_retries",
            )
