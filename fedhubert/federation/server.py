"""The phases of a run on the server: connect and check, targets, rounds, final evaluation, summary."""

import logging
import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid

from fedhubert.checkpoints.store import RoundStore
from fedhubert.config import Config
from fedhubert.errors import CheckpointError, FedhubertError
from fedhubert.federation import protocol
from fedhubert.federation.dry_run import describe_federation
from fedhubert.federation.figures import brief, failed, per_client, round_event, round_line, validation_figures
from fedhubert.federation.grid import StreamingGrid
from fedhubert.federation.nodes import Federation, connect
from fedhubert.federation.resume import check_same_run
from fedhubert.federation.server_evaluation import ServerEvaluation
from fedhubert.federation.server_optimizers import ServerOptimizer, build_server_optimizer
from fedhubert.federation.strategy import ClientsDone, FederatedStrategy, RoundOutcome
from fedhubert.federation.targets_phase import Targets, prepare_targets
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.reporting.metrics import Event, append_event, forget_after
from fedhubert.reporting.run_folder import RunFolder
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its folder, the last checkpoint, and the last validation figures."""

    folder: RunFolder
    checkpoint: Path
    validation: Mapping[str, Any]


def run_app(grid: Grid, context: Context) -> None:
    """Run the federation that ``flwr run`` asks for; raises what :func:`run_federation` raises, so that Flower reports a failed run."""
    from fedhubert.compose import compose
    from fedhubert.reporting.console import log_to_terminal
    from fedhubert.reporting.summary import plot_curves

    console = log_to_terminal()
    try:
        config = compose(shlex.split(str(context.run_config.get("overrides", ""))))
        if config.dry_run:
            console.print(describe_federation(grid, config))
            return
        result = run_federation(grid, config)
    except FedhubertError as error:
        log.error("error: %s", error)
        raise
    plot_curves(result.folder.metrics_file, result.folder.plot_file)
    log.info("curves: %s", result.folder.plot_file)
    log.info("last checkpoint: %s", result.checkpoint)


def run_federation(
    grid: Grid, config: Config, *, stop: threading.Event | None = None, on_client: ClientsDone | None = None
) -> RunResult:
    """Run a whole federation over ``grid``.

    Raises:
        RunInterrupted: ``stop`` was set; the last finished round is in the checkpoint folder.
        FedhubertError: with the reason; checkpoints of finished rounds stay as they are.
    """
    return _Run(StreamingGrid(grid, stop=stop), config, on_client).run()


class _Run:
    """State that the phases of one run share."""

    def __init__(self, grid: StreamingGrid, config: Config, on_client: ClientsDone | None) -> None:
        self.config = config
        self.on_client = on_client
        self.folder = RunFolder.of(config)
        self.folder.create()
        self.store = RoundStore(self.folder.checkpoints)
        self.model: HubertModel = build_hubert(config.model, config.seed)
        self.layout = ParameterLayout.of(self.model)
        self.optimizer: ServerOptimizer = build_server_optimizer(config.federated, self.layout.numel)
        self.federation = Federation(grid, config, self.folder.run_key(), layout=self.layout.fingerprint)
        self.first_round = 1
        self.positions: dict[int, int] = {}
        self.centroids: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self.targets_key = ""
        self.history: list[Event] = []
        self.saved_round = 0
        self.validation: dict[str, Any] = {}

    def run(self) -> RunResult:
        from fedhubert.reporting.console import log_to_file, stop_logging_to

        handler = log_to_file(self.folder.log_file)
        try:
            return self._phases()
        except FedhubertError as error:
            log.error("run stopped: %s", error)
            raise
        finally:
            stop_logging_to(handler)

    def _phases(self) -> RunResult:
        log.info("run folder: %s", self.folder.path)
        self._resume()
        self._write_config()
        log.info("model %s: %.2f M parameters", self.config.model.name, self.layout.numel / 1e6)
        connect(self.federation)
        self._say_who_is_there()
        targets = prepare_targets(self.federation, self.centroids, self._event)
        self.centroids = targets.centroids
        if self.targets_key not in ("", targets.key):
            raise CheckpointError(
                f"targets.checkpoint={self.config.targets.checkpoint} is not the model that the run in {self.folder.path} began with: "
                "name that one, or choose another out=...",
                setting="targets.checkpoint",
            )
        self.targets_key = targets.key
        if self.first_round == 1:
            self._event(targets.event())
        model = Array(self.layout.to_vector(self.model).numpy())
        if self.first_round <= self.config.federated.num_rounds:
            model = self._rounds(model, targets)
        else:
            log.info("all %d rounds are done", self.config.federated.num_rounds)
        self._final_evaluation(model, targets)
        return RunResult(self.folder, self.store.path(self.config.federated.num_rounds), self.validation)

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, or refuse a folder that has one unless asked to resume."""
        found = self.store.latest()
        for path, reason in found.rejected:
            log.warning("checkpoint %s is not usable (%s); trying the one before", path, reason)
        if found.round is None:
            self.folder.metrics_file.unlink(missing_ok=True)
            return
        if self.config.resume != "auto":
            raise CheckpointError(
                f"{self.folder.checkpoints} already holds checkpoints up to round {found.round}: go on with resume=auto, or choose another out=...",
                setting="resume",
            )
        checkpoint, resume = found.load()
        check_same_run(checkpoint["config"], self.config, self.folder.path)
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state(resume["server_optimizer"])
        self.positions = {int(partition): int(count) for partition, count in resume["positions"].items()}
        self.centroids = None if resume["centroids"] is None else resume["centroids"].numpy()
        self.targets_key = str(resume.get("targets_key", ""))
        self.history = list(checkpoint["federated_metrics"]["history"])
        self.first_round = found.round + 1
        self.saved_round = found.round
        forget_after(self.folder.metrics_file, found.round)
        log.info("resuming after round %d", found.round)

    def _write_config(self) -> None:
        from fedhubert.compose import to_yaml

        self.folder.config_file.write_text(to_yaml(self.config))

    def _say_who_is_there(self) -> None:
        about = self.federation.partitions.values()
        train_h = sum(float(numbers["train_audio_s"]) for numbers in about) / 3600
        validation_h = sum(float(numbers["validation_audio_s"]) for numbers in about) / 3600
        utterances = sum(int(numbers["train_utterances"]) + int(numbers["validation_utterances"]) for numbers in about)
        log.info(
            "%d clients on %d nodes: %d utterances, %.2f h to train on, %.2f h held out",
            len(about),
            len(self.federation.hosts),
            utterances,
            train_h,
            validation_h,
        )

    def _rounds(self, model: Array, targets: Targets) -> Array:
        """Drive the strategy with Flower's ``start()`` and return the last model."""
        federated = self.config.federated
        strategy = FederatedStrategy(
            self.federation,
            self.optimizer,
            first_round=self.first_round,
            positions=self.positions,
            targets_key=targets.key,
            on_client=self.on_client,
        )
        evaluation = ServerEvaluation(self.config, targets) if self.config.evaluation.manifest else None
        self._round_started = time.monotonic()

        def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if server_round > 0:
                self._finish_round(strategy, arrays["model"].numpy(), evaluation)
            self._round_started = time.monotonic()
            return None

        try:
            result = strategy.start(
                self.federation.grid,
                ArrayRecord({"model": model}),
                num_rounds=federated.num_rounds - self.first_round + 1,
                timeout=federated.round_timeout_s,
                train_config=ConfigRecord(),
                evaluate_fn=after_round,
            )
        except FedhubertError:
            if strategy.between_steps:
                self._save_unsaved()
            raise
        return result.arrays["model"]

    def _finish_round(
        self, strategy: FederatedStrategy, vector: np.ndarray[Any, Any], evaluation: "ServerEvaluation | None"
    ) -> None:
        outcome = strategy.outcome
        self.layout.load_vector(self.model, torch.from_numpy(np.array(vector)))
        self.positions = strategy.positions
        event = round_event(outcome)
        if evaluation is not None:
            started = time.monotonic()
            event["server_validation"] = evaluation.score(self.model, outcome.number)
            event["seconds"]["server_validation"] = time.monotonic() - started
        self.validation = event["validation"] or self.validation
        self.history.append(brief(event))
        last = outcome.number == self.config.federated.num_rounds
        if last or outcome.number % self.config.checkpoint.every == 0:
            started = time.monotonic()
            self._save(outcome.number)
            event["seconds"]["checkpoint"] = time.monotonic() - started
        event["seconds"]["round"] = time.monotonic() - self._round_started
        self._event(event)
        self._say_round(event)

    def _save_unsaved(self) -> None:
        """Keep the last finished round of a run that stops early."""
        number = self.history[-1]["round"] if self.history else 0
        if number > self.saved_round:
            self._save(number)

    def _save(self, number: int) -> None:
        resume = {
            "server_optimizer": self.optimizer.state,
            "positions": {str(partition): count for partition, count in self.positions.items()},
            "targets_key": self.targets_key,
            "centroids": None if self.centroids is None else torch.from_numpy(self.centroids.copy()),
        }
        metrics = {"round": number, **self.history[-1], "history": self.history}
        path = self.store.save(
            number, self.model.state_dict(), config=self.config.model_dump(mode="json"), federated_metrics=metrics, resume=resume
        )
        self.store.prune(self.config.checkpoint.keep_last)
        self.saved_round = number
        log.info("checkpoint %s", path)

    def _say_round(self, event: Event) -> None:
        log.info("%s", round_line(event, self.config.federated.num_rounds))
        for failure in event["failed"]:
            log.warning(
                "round %d: client %d failed: %s %s", event["round"], failure["partition"], failure["code"], failure["setting"]
            )

    def _final_evaluation(self, model: Array, targets: Targets) -> None:
        """Score the final model on every client's validation split, once, without training."""
        number = self.config.federated.num_rounds
        strategy = FederatedStrategy(self.federation, self.optimizer, targets_key=targets.key)
        outcome = RoundOutcome(number, list(range(self.config.federated.num_clients)))
        messages = strategy.evaluation_messages(model, number)
        for message in self.federation.grid.send_and_receive(messages, timeout=self.config.federated.round_timeout_s):
            reply = protocol.read_reply(message)
            outcome.clients.update(reply.metrics)
            outcome.failures += reply.failures
        self.validation = validation_figures(outcome, model_round=number)
        self._event(
            {
                "event": "final",
                "round": number,
                "validation": self.validation,
                "clients": per_client(outcome),
                "failed": failed(outcome),
            }
        )
        if self.validation:
            log.info(
                "final model: validation loss %.4f, masked accuracy %.4f over %d clients",
                self.validation["loss"],
                self.validation["masked_accuracy"],
                len(outcome.clients),
            )

    def _event(self, event: Event) -> None:
        append_event(self.folder.metrics_file, event)
