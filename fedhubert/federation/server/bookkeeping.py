"""The books of a run: a finished round's event, its evaluation, its checkpoint, and whether it was
the last."""

import logging
import time
from collections.abc import Mapping

from fedhubert.federation.phases.evaluation import ServerEvaluation
from fedhubert.federation.rounds.metrics import (
    final_event,
    history_entry,
    round_event,
    round_line,
    said,
)
from fedhubert.federation.rounds.outcome import RoundOutcome
from fedhubert.federation.rounds.shared import RoundResult
from fedhubert.federation.server.record import RunRecord
from fedhubert.federation.server.run_state import RunState
from fedhubert.objectives.spec import spec_of
from fedhubert.reporting.learning import Levels, verdict
from fedhubert.runs.metrics import Event

log = logging.getLogger("fedhubert")

_WORTH_A_LINE_S = 20.0


class Bookkeeper:
    """Books rounds in a run's record, and saves its state where that is due.

    Attributes:
        evaluation: Scores models on the server, if anything does.
        validation: The last figures on the clients' validation splits.
        levels: What a model that ignores its input would reach; None without pseudo-labels.
    """

    def __init__(self, record: RunRecord, state: RunState) -> None:
        self.evaluation: ServerEvaluation | None = None
        self.validation: Mapping[str, object] = {}
        self.levels: Levels | None = None
        self._record, self._state = record, state
        self._config, self._objective = record.config, spec_of(record.config.task)

    def is_over(self) -> bool:
        """Whether there is no round left to train."""
        state, record = self._state, self._record
        spent = (
            state.privacy is not None
            and state.first_round > 1
            and not state.privacy.allows(state.first_round)
        )
        return (
            state.first_round > self._config.federated.num_rounds
            or (bool(record.history) and record.is_over())
            or spent
        )

    def book(self, result: RoundResult, round_started: float) -> str:
        """Book a finished round, save what is due, and return why the run ends here, or an empty
        string."""
        number = result.outcome.number
        self._state.layout.load_vector(self._state.model, result.model)
        event = self._round_event(result, round_started)
        self.validation = event["validation"] or self.validation
        self._record.history.append(
            history_entry(event, clients_figures=not self._config.privacy.hides_figures)
        )
        self._record.event(event)
        self._log_round(event)
        if self._config.checkpoint.keep_best and self._record.best_round() == number - 1 > 0:
            self._save_best(result)
        if (
            number == self._config.federated.num_rounds
            or number % self._config.checkpoint.every == 0
        ):
            self._save(number)
        return self._end_after(number)

    def book_final(self, outcome: RoundOutcome) -> None:
        """Book how the final model does on every client's validation split."""
        event = final_event(
            outcome,
            self._objective,
            num_rounds=self._config.federated.num_rounds,
            best_round=self._record.best_round(),
        )
        self.validation = event["validation"]
        self._record.event(event)
        if self.validation:
            log.info(
                "final model: validation %s%s over %d clients%s",
                said(self.validation, self._objective),
                f" ({self.levels})" if self.levels else "",
                len(outcome.clients),
                f": {learned}" if (learned := self._verdict(self.validation)) else "",
            )

    def save_unsaved(self) -> None:
        """Save the last finished round of a run that stops before its checkpoint was due."""
        number = self._record.history[-1]["round"] if self._record.history else 0
        if number > self._record.saved_round:
            self._save(number)

    def _round_event(self, result: RoundResult, round_started: float) -> Event:
        event = round_event(result.outcome, self._objective)
        if self.evaluation is not None:
            started = time.monotonic()
            event["server_validation"] = self.evaluation.score(
                self._state.model, result.outcome.number
            )
            event["seconds"]["server_validation"] = time.monotonic() - started
        # of the last one: this event is written before its own
        event["seconds"]["checkpoint"] = self._record.checkpoint_seconds
        event["seconds"]["round"] = time.monotonic() - round_started
        return event

    def _log_round(self, event: Event) -> None:
        num_rounds = self._config.federated.num_rounds
        learned = self._verdict()
        # short rounds between two that are scored have nothing to say
        quiet = (
            not self._config.client.scores_in(event["round"])
            and not event["failed"]
            and event["seconds"]["round"] < _WORTH_A_LINE_S
        )
        line = round_line(event, num_rounds, self._objective, self.levels, learned)
        log.log(logging.DEBUG if quiet else logging.INFO, "%s", line)
        for failure in event["failed"]:
            log.warning(
                "round %d: client %d failed: %s %s",
                event["round"],
                failure["partition"],
                failure["code"],
                failure["setting"],
            )

    def _verdict(self, *further: Mapping[str, object]) -> str:
        """Say whether the run learns: by the rounds booked, and by figures that are not yet."""
        booked = [entry["validation"] for entry in self._record.history]
        return verdict([*booked, *further], self.levels, self._config.federated.num_rounds)

    def _end_after(self, number: int) -> str:
        if self._record.is_over():
            patience = self._config.federated.early_stopping.patience
            return (
                f"early stopping: round {self._record.best_round()} has had the best model for "
                f"{patience} rounds"
            )
        privacy, last = self._state.privacy, number == self._config.federated.num_rounds
        if privacy and not last and not privacy.allows(number + 1):
            budget = self._config.privacy.max_epsilon
            return (
                f"privacy budget: one more round would exceed privacy.max_epsilon={budget}; the "
                "run ends here"
            )
        return ""

    def _save_best(self, result: RoundResult) -> None:
        """Keep the model that this round began with: only now has it been scored."""
        model, layout = self._state.model, self._state.layout
        layout.load_vector(model, result.before)
        self._record.save_best(self._record.best_round(), self._state.saved_model())
        layout.load_vector(model, result.model)

    def _save(self, number: int) -> None:
        self._record.save(number, self._state.saved_model(), self._state.to_plain())
