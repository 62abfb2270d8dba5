"""The phases of a run on the server: connect and check, targets, rounds, final evaluation,
summary."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedhubert.config import Config
from fedhubert.deployment.expiry import expiring
from fedhubert.errors import CheckpointError, FedhubertError
from fedhubert.federation.phases.delivery import failures_of, go_on_without
from fedhubert.federation.phases.evaluation import ServerEvaluation
from fedhubert.federation.phases.targets import (
    Targets,
    label_newcomers,
    no_targets,
    prepare_targets,
)
from fedhubert.federation.phases.teacher import (
    prepare_student,
    send_teacher,
    server_objective,
    with_teacher,
)
from fedhubert.federation.privacy.opening import announce, open_privacy
from fedhubert.federation.roster.connect import WELCOME_TIMEOUT_S, connect
from fedhubert.federation.roster.node_keys import key_folders
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.figures import (
    brief,
    data_summary,
    final_event,
    round_event,
    round_line,
    said,
)
from fedhubert.federation.rounds.loop import run_rounds, score_everywhere
from fedhubert.federation.rounds.round import ClientsDone, RoundResult, Rounds, StepNotFinite
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.server.record import RunRecord
from fedhubert.federation.strategies.strategy import ServerStrategy, check_strategy, strategy_of
from fedhubert.federation.wire.flower import Grid
from fedhubert.federation.wire.grid import SITES_IN_FLIGHT, StreamingGrid
from fedhubert.federation.wire.messages import Failure
from fedhubert.files import exclusively
from fedhubert.formats.importing import start_from
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.spec import build_model, spec_of
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import Event
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its folder, the last checkpoint, and the last validation figures."""

    folder: RunFolder
    checkpoint: Path
    validation: Mapping[str, Any]


def run_federation(
    grid: Grid,
    config: Config,
    *,
    window: int = SITES_IN_FLIGHT,
    stop: threading.Event | None = None,
    on_client: ClientsDone | None = None,
) -> RunResult:
    """Run a whole federation over ``grid``, with up to ``window`` messages in flight.

    Raises:
        RunInterrupted: ``stop`` was set; the last finished round is in the checkpoint folder.
        FedhubertError: with the reason; checkpoints of finished rounds stay as they are.
    """
    return _Run(StreamingGrid(grid, window=window, stop=stop), config, on_client).run()


class _Run:
    """State that the phases of one run share."""

    def __init__(self, grid: StreamingGrid, config: Config, on_client: ClientsDone | None) -> None:
        check_strategy(config)
        config, self.teacher = with_teacher(config)
        self.config = config
        self.on_client = on_client
        self.record = RunRecord(config)
        self.objective = spec_of(config.task)
        self.model: HubertModel = build_model(config.model, config.task, config.seed)
        self.layout = ParameterLayout.of(self.model)
        self.optimizer: ServerStrategy = strategy_of(config.federated, self.layout)
        self.federation = Federation(grid, config, self.record.folder.run_key(), self.layout)
        self.first_round = 1
        self.state = RoundState()
        self.centroids: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self.targets_key = ""
        self.validation: dict[str, Any] = {}

    def run(self) -> RunResult:
        from fedhubert.reporting.console import log_to_file, stop_logging_to

        handler = log_to_file(self.record.folder.log_file)
        try:
            with exclusively(self.record.folder.checkpoints, setting="out"):
                return self._phases()
        except FedhubertError as error:
            log.error("run stopped: %s", error)
            raise
        finally:
            self.record.close()
            stop_logging_to(handler)

    def _phases(self) -> RunResult:
        log.info("run folder: %s", self.record.folder.path)
        if self.teacher is not None:
            prepare_student(self.model, self.config, self.teacher)
        self._resume()
        self.record.write_config()
        self.record.open_trackers()
        if self.privacy and not self._is_over():
            announce(self.privacy, self.config, self.first_round)
        for line in expiring(key_folders(self.config.federated)):
            log.warning("%s", line)
        for line in self.optimizer.warnings(self.config):
            log.warning("%s", line)
        log.info("model %s: %.2f M parameters", self.config.model.name, self.layout.numel / 1e6)
        connect(self.federation)
        self._say_who_is_there()
        if self.teacher is not None:
            timeout_s = self.config.federated.round_timeout_s
            delivery = send_teacher(
                self.federation,
                self.teacher.teacher,
                self.federation.hosts,
                self.record.event,
                timeout_s,
            )
            go_on_without(self.federation, delivery, "the teacher's delivery")
        needs_labels = self.config.task.needs_labels
        targets = (
            prepare_targets(self.federation, self.centroids, self.record.kmeans, self.record.event)
            if needs_labels
            else no_targets(self.config.targets.num_clusters)
        )
        self.federation.welcome = lambda shares: self._welcome(targets, shares)
        if self.centroids is not None and self.targets_key not in ("", targets.key):
            raise CheckpointError(
                f"targets.checkpoint={self.config.targets.checkpoint} is not the model that the run in {self.record.folder.path} began with: "
                "name that one, or choose another out=...",
                setting="targets.checkpoint",
            )
        self.centroids, self.targets_key = targets.centroids, targets.key
        if self.first_round == 1 and needs_labels:
            self.record.event(targets.event())
            self.record.lineage.append({"targets": targets.lineage()})
        if self._is_over():
            log.info("all rounds are done")
        else:
            self._rounds(targets)
        number = self.record.history[-1]["round"]
        self._final_evaluation(number, targets)
        return RunResult(self.record.folder, self.record.store.path(number), self.validation)

    def _is_over(self) -> bool:
        """Whether there is no round left to train."""
        spent = (
            self.privacy is not None
            and self.first_round > 1
            and not self.privacy.allows(self.first_round)
        )
        return (
            self.first_round > self.config.federated.num_rounds
            or (bool(self.record.history) and self.record.is_over())
            or spent
        )

    def _welcome(self, targets: Targets, shares: dict[int, list[int]]) -> list[Failure]:
        """Prepare nodes that join later; returns what went wrong."""
        timeout_s, failures = (
            min(WELCOME_TIMEOUT_S, self.config.federated.round_timeout_s),
            list[Failure](),
        )
        if self.teacher is not None:
            delivery = send_teacher(
                self.federation, self.teacher.teacher, shares, self.record.event, timeout_s
            )
            failures = failures_of(delivery, shares)
            shares = {
                node: hosted for node, hosted in shares.items() if node not in delivery.failed
            }
        if self.config.task.needs_labels:
            failures += label_newcomers(
                self.federation, targets, shares, self.record.event, timeout_s
            )
        return failures

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        resumed = self.record.resume()
        privacy = resumed.resume.get("privacy") if resumed else None
        self.privacy = open_privacy(
            self.config, self.record.folder.checkpoints, privacy, self.record.journal.releases
        )
        if resumed is None:
            if self.config.init_from is not None:
                self.record.lineage.append(
                    {"init_from": start_from(self.model, self.config.init_from)}
                )
            if self.teacher is not None:
                self.record.lineage.append({"teacher": dict(self.teacher.lineage)})
            return
        self.model.load_state_dict(resumed.checkpoint["model"])
        # a forked run with another strategy begins with a fresh one
        if resumed.resume["server_optimizer"] is not None:
            self.optimizer.load_state(resumed.resume["server_optimizer"])
        self.state = RoundState.from_plain(resumed.resume["rounds"])
        self.federation.fingerprints = {
            int(key): int(value) for key, value in resumed.resume["fingerprints"].items()
        }
        self.centroids = (
            None if resumed.resume["centroids"] is None else resumed.resume["centroids"].numpy()
        )
        self.targets_key = str(resumed.resume.get("targets_key", ""))
        self.first_round = resumed.round + 1

    def _say_who_is_there(self) -> None:
        data = data_summary(self.federation.partitions)
        if not self.config.privacy.hides_figures:
            self.record.data = data
        log.info(
            "%d clients on %d nodes: %d utterances, %.2f h to train on, %.2f h held out",
            data["clients"],
            len(self.federation.hosts),
            data["utterances"],
            data["train_audio_s"] / 3600,
            data["validation_audio_s"] / 3600,
        )

    def _rounds(self, targets: Targets) -> None:
        """Play the rounds that are left; the last model is in ``self.model``."""
        objective = (
            server_objective(self.config, self.teacher) if self.config.evaluation.manifest else None
        )
        evaluation = (
            ServerEvaluation(self.config, targets, objective)
            if self.config.evaluation.manifest
            else None
        )
        rounds = Rounds(
            self.federation,
            self.optimizer,
            state=self.state,
            journal=self.record.journal,
            targets_key=targets.key,
            checkpoints=self.record.checkpoints,
            privacy=self.privacy,
            on_client=self.on_client or (lambda number, done, asked: None),
        )
        model, last = self.layout.to_vector(self.model), self.config.federated.num_rounds
        try:
            run_rounds(
                rounds,
                model,
                self.first_round,
                last,
                lambda result, started: self._finish_round(result, started, evaluation),
            )
        except StepNotFinite:
            raise
        except FedhubertError:
            self._save_unsaved()
            raise
        self._save_unsaved()

    def _finish_round(
        self, result: RoundResult, round_started: float, evaluation: ServerEvaluation | None
    ) -> str:
        """Book a round, save what is due, and return why the run ends here, or an empty string."""
        outcome = result.outcome
        self.layout.load_vector(self.model, result.model)
        event = round_event(outcome, self.objective)
        if evaluation is not None:
            started = time.monotonic()
            event["server_validation"] = evaluation.score(self.model, outcome.number)
            event["seconds"]["server_validation"] = time.monotonic() - started
        self.validation = event["validation"] or self.validation
        # of the last one: this event is written before its own
        event["seconds"]["checkpoint"] = self.record.checkpoint_seconds
        event["seconds"]["round"] = time.monotonic() - round_started
        self.record.history.append(
            brief(event, clients_figures=not self.config.privacy.hides_figures)
        )
        self.record.event(event)
        self._say_round(event)
        if self.config.checkpoint.keep_best and self.record.best_round() == outcome.number - 1 > 0:
            self._save_best(result)
        last = outcome.number == self.config.federated.num_rounds
        if last or outcome.number % self.config.checkpoint.every == 0:
            self._save(outcome.number)
        if self.record.is_over():
            patience = self.config.federated.early_stopping.patience
            return f"early stopping: round {self.record.best_round()} has had the best model for {patience} rounds"
        if self.privacy and not last and not self.privacy.allows(outcome.number + 1):
            budget = self.config.privacy.max_epsilon
            return f"privacy budget: one more round would exceed privacy.max_epsilon={budget}; the run ends here"
        return ""

    def _save_best(self, result: RoundResult) -> None:
        """Keep the model that this round began with: only now has it been scored."""
        self.layout.load_vector(self.model, result.before)
        self.record.save_best(self.record.best_round(), self.model.state_dict())
        self.layout.load_vector(self.model, result.model)

    def _save_unsaved(self) -> None:
        """Keep the last finished round of a run that stops early."""
        number = self.record.history[-1]["round"] if self.record.history else 0
        if number > self.record.saved_round:
            self._save(number)

    def _save(self, number: int) -> None:
        resume = {
            "server_optimizer": self.optimizer.state,
            "targets_key": self.targets_key,
            "rounds": self.state.to_plain(),
            "fingerprints": {
                str(partition): value for partition, value in self.federation.fingerprints.items()
            },
            "privacy": self.privacy.to_plain() if self.privacy else None,
            "centroids": None
            if self.centroids is None
            else torch.from_numpy(self.centroids.copy()),
        }
        self.record.save(number, self.model.state_dict(), resume)

    def _say_round(self, event: Event) -> None:
        log.info("%s", round_line(event, self.config.federated.num_rounds, self.objective))
        for failure in event["failed"]:
            log.warning(
                "round %d: client %d failed: %s %s",
                event["round"],
                failure["partition"],
                failure["code"],
                failure["setting"],
            )

    def _final_evaluation(self, number: int, targets: Targets) -> None:
        """Score the final model on every client's validation split, once, without training."""
        model = self.layout.to_vector(self.model)
        outcome = score_everywhere(self.federation, targets.key, self.state, model, number)
        event = final_event(
            outcome,
            self.objective,
            num_rounds=self.config.federated.num_rounds,
            best_round=self.record.best_round(),
        )
        self.validation = event["validation"]
        self.record.event(event)
        if self.validation:
            log.info(
                "final model: validation %s over %d clients",
                said(self.validation, self.objective),
                len(outcome.clients),
            )
