"""``fedhubert central``: the same audio trained on without federation, in one model (central) or one per client (local only)."""

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fedhubert.baselines.pool import ClientScore, Pool, figures
from fedhubert.checkpoints.files import exclusively
from fedhubert.checkpoints.importing import start_from
from fedhubert.checkpoints.store import RoundStore
from fedhubert.compose import to_yaml
from fedhubert.config import Config, TaskConfig
from fedhubert.data.corpora import with_absolute_data
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.federation.resume import check_same_run
from fedhubert.models.hubert import HubertModel, build_hubert
from fedhubert.reporting.console import log_to_file, stop_logging_to
from fedhubert.reporting.metrics import Event, append_event, read_events
from fedhubert.reporting.run_folder import RunFolder
from fedhubert.reporting.summary import final_event
from fedhubert.training.central import CentralTrainer, RoundPlan, RoundResult, plan_rounds
from fedhubert.training.parameters import ParameterLayout

log = logging.getLogger("fedhubert")

CENTRAL, LOCAL_ONLY = "central", "local_only"


@dataclass(frozen=True)
class BaselineOptions:
    """``local_only``: each client alone, for the steps that it would take. ``reset_each_round``: see :class:`CentralTrainer`."""

    local_only: bool = False
    reset_each_round: bool = False

    @property
    def kind(self) -> str:
        return LOCAL_ONLY if self.local_only else CENTRAL


def train_baseline(config: Config, options: BaselineOptions) -> RunFolder:
    """Train the baseline of a federated run and return its folder; with ``resume=auto`` one that is finished is left as it is.

    Events, configuration and checkpoints have the form of a federated run's. Local only: a run's folder per client below it.

    Raises:
        CheckpointError: the folder holds another run, or one that is not to be replaced (``resume=never``).
        FedhubertError: as the federated run's clients.
    """
    config = with_absolute_data(config)
    folder = RunFolder.of(config)
    if config.resume == "auto" and is_finished(folder, config, options):
        log.info("%s is done", folder.path)
        return folder
    if config.reporting.trackers:
        log.warning("reporting.trackers is for federated runs: this one has metrics.jsonl, and `fedhubert report` shows both")
    with exclusively(folder.checkpoints, setting="out"):
        _begin(folder, config, options)
        if config.privacy.enabled:
            log.warning("privacy.mechanism=central protects the clients of federated rounds, which this run has none of")
        torch.set_num_threads(config.client.threads)
        handler = log_to_file(folder.log_file)
        try:
            with _terminated_as_interrupted():
                (_train_local if options.local_only else _train_central)(config, options, folder)
        finally:
            stop_logging_to(handler)
    return folder


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM (a scheduler, ``timeout``) like Ctrl-C, so that the last finished round is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def is_finished(folder: RunFolder, config: Config, options: BaselineOptions) -> bool:
    """Whether the folder holds this baseline with its last round saved and scored; raises :class:`CheckpointError` if it holds another run."""
    first = next(read_events(folder.metrics_file), {})
    if first.get("event") != "baseline":
        return False
    if first["kind"] != options.kind or first["reset_each_round"] != options.reset_each_round:
        raise CheckpointError(
            f"{folder.path} holds a baseline of another kind ({first['kind']}); choose another out=...", setting="out"
        )
    check_same_run(first["config"], config, folder.path)
    return bool(final_event(folder.metrics_file))


def _begin(folder: RunFolder, config: Config, options: BaselineOptions) -> None:
    """Start from nothing: an interrupted baseline is trained again, anything else in the folder is left alone."""
    first = next(read_events(folder.metrics_file), {})
    used = bool(first) or bool(RoundStore(folder.checkpoints).rounds())
    if used and (first.get("event") != "baseline" or config.resume != "auto"):
        raise CheckpointError(
            f"{folder.path} already holds a run; choose another out=..., or give resume=auto to replace an unfinished baseline",
            setting="out",
        )
    folder.create()
    for file in folder.checkpoints.glob("round_*"):
        file.unlink()
    folder.metrics_file.unlink(missing_ok=True)
    folder.config_file.write_text(to_yaml(config))
    plain = config.model_dump(mode="json")
    about = {"kind": options.kind, "reset_each_round": options.reset_each_round, "config": plain}
    append_event(folder.metrics_file, {"event": "baseline", **about})


def _train_central(config: Config, options: BaselineOptions, folder: RunFolder) -> None:
    pool = Pool(config)
    log.info("run folder: %s", folder.path)
    pool.label(lambda event: append_event(folder.metrics_file, event))
    plans = plan_rounds(pool.rounds(), config.client.accumulate)
    run = _Run(pool, folder, options, asked=pool.rounds())
    everyone = range(len(pool.clients))
    scores = pool.score(run.model, everyone)
    append_event(
        folder.metrics_file, {"event": "initial", "round": 0, "validation": figures(scores, 0), "clients": _rows(scores)}
    )
    run.train(plans)
    run.finish(pool.score(run.model, everyone))


def _train_local(config: Config, options: BaselineOptions, folder: RunFolder) -> None:
    """One model per client, all from the same initial weights and under the same clusters."""
    pool = Pool(config)
    pool.label(lambda event: append_event(folder.metrics_file, event))
    rounds = pool.rounds()
    own: dict[int, ClientScore] = {}
    elsewhere: dict[int, dict[str, Any]] = {}
    for part in pool.clients:
        taken = {number: {part.number: steps[part.number]} for number, steps in rounds.items() if part.number in steps}
        below = client_folder(folder, part.number)
        _begin(below, config.model_copy(update={"resume": "auto"}), options)
        run = _Run(pool, below, options, asked=taken, alone=part.number)
        log.info("client %d alone: %d of %d rounds", part.number, len(taken), len(rounds))
        if taken:
            run.train(plan_rounds(taken, config.client.accumulate))
        scores = pool.score(run.model, range(len(pool.clients)))
        run.finish({part.number: scores[part.number]})
        own[part.number], elsewhere[part.number] = scores[part.number], figures(scores, config.federated.num_rounds)
    _say_final(
        "each client's own model", _final(config, folder, own, {"elsewhere": [elsewhere[number] for number in sorted(elsewhere)]})
    )


def client_folder(folder: RunFolder, number: int) -> RunFolder:
    """Return the folder of a client that is trained alone."""
    path = folder.path / f"client_{number:03d}"
    return RunFolder(path, path / "checkpoints")


class _Run:
    """One model, trained round by round, with the files of a federated run."""

    def __init__(
        self,
        pool: Pool,
        folder: RunFolder,
        options: BaselineOptions,
        *,
        asked: dict[int, dict[int, int]],
        alone: int | None = None,
    ) -> None:
        config = pool.config
        self._pool, self._folder, self._config, self._asked, self._alone = pool, folder, config, asked, alone
        self._kind = options.kind
        self._store = RoundStore(folder.checkpoints)
        if not isinstance(config.task, TaskConfig):
            raise ConfigError("there is no central baseline of task=distill yet; give task=pretrain", setting="task")
        self.model: HubertModel = build_hubert(config.model, config.seed)
        if config.init_from is not None:
            start_from(self.model, config.init_from)
        self.model.to(pool.device)
        self.model.set_activation_checkpointing(config.client.activation_checkpointing)
        self._trainer = CentralTrainer(
            self.model,
            config.client,
            config.task,
            config.seed,
            pool.device,
            reset_each_round=options.reset_each_round,
            partition=alone or 0,
        )
        self._layout = ParameterLayout.of(self.model)
        self._history: list[Event] = []
        self._saved = 0
        self._finished = self._layout.to_vector(self.model)

    def train(self, plans: Sequence[RoundPlan]) -> None:
        """Train all rounds; interrupted, the last finished one is saved."""
        order = [micro_batch for plan in plans for step in plan.steps for micro_batch in step]
        batches = self._pool.batches(order, alone=self._alone is not None)
        try:
            for plan in plans:
                self._round(plan, batches)
            self._save()
        except KeyboardInterrupt:
            self._layout.load_vector(self.model, self._finished)
            self._save()
            log.warning("interrupted: round %d is saved", self._saved)
            raise
        finally:
            getattr(batches, "close", lambda: None)()

    def _round(self, plan: RoundPlan, batches: Any) -> None:
        started = time.monotonic()
        asked = sorted(self._asked[plan.number])
        scores = self._pool.score(self.model, asked)
        validated = time.monotonic()
        result = self._trainer.train_round(plan, batches, self._config.federated.num_rounds)
        ended = time.monotonic()
        event: Event = {
            "event": "round",
            "round": plan.number,
            "train": _training(plan, result),
            "validation": figures(scores, plan.number - 1),
            "asked": asked,
            "clients": _rows(scores),
            "failed": [],
            "bytes_down": 0,
            "bytes_up": 0,
            "seconds": {"validation": validated - started, "train": ended - validated, "round": ended - started},
        }
        append_event(self._folder.metrics_file, event)
        self._history.append({key: event[key] for key in ("round", "train", "validation")})
        self._finished = self._layout.to_vector(self.model)
        log.info(
            "round %d/%d: train loss %.4f accuracy %.4f | validation (round %d) loss %.4f accuracy %.4f | %d steps | %.1f s",
            plan.number,
            self._config.federated.num_rounds,
            event["train"]["loss"],
            event["train"]["masked_accuracy"],
            plan.number - 1,
            event["validation"]["loss"],
            event["validation"]["masked_accuracy"],
            result.steps,
            ended - started,
        )
        if plan.number % self._config.checkpoint.every == 0:
            self._save()

    def _save(self) -> None:
        """Write the last finished round, unless it is written."""
        number = self._history[-1]["round"] if self._history else 0
        if number <= self._saved:
            return
        centroids = self._pool.centroids
        resume = {
            "baseline": self._kind,
            "targets_key": self._pool.key,
            "centroids": None if centroids is None else torch.from_numpy(centroids.copy()),
        }
        metrics = {**self._history[-1], "baseline": self._kind, "history": self._history}
        path = self._store.save(
            number, self.model.state_dict(), config=self._config.model_dump(mode="json"), federated_metrics=metrics, resume=resume
        )
        self._store.prune(self._config.checkpoint.keep_last)
        self._saved = number
        log.info("checkpoint %s", path)

    def finish(self, scores: dict[int, ClientScore]) -> None:
        _say_final(self._kind, _final(self._config, self._folder, scores, {}))


def _final(config: Config, folder: RunFolder, scores: dict[int, ClientScore], more: dict[str, Any]) -> dict[str, Any]:
    number = config.federated.num_rounds
    validation = figures(scores, number)
    event = {
        "event": "final",
        "round": number,
        "num_rounds": number,
        "validation": validation,
        "clients": _rows(scores),
        "failed": [],
    }
    append_event(folder.metrics_file, {**event, **more})
    return validation


def _say_final(name: str, validation: dict[str, Any]) -> None:
    log.info(
        "%s, final: validation loss %.4f, masked accuracy %.4f over %d clients",
        name,
        validation["loss"],
        validation["masked_accuracy"],
        validation["clients"],
    )


def _training(plan: RoundPlan, result: RoundResult) -> dict[str, Any]:
    frames = max(1, result.sums.masked_frames)
    return {
        "model_round": plan.number - 1,
        "loss": result.sums.cross_entropy_sum / frames,
        "masked_accuracy": result.sums.correct / frames,
        "masked_frames": result.sums.masked_frames,
        "audio_s": result.sums.audio_s,
        "steps": result.steps,
        "grad_norm": result.grad_norm,
    }


def _rows(scores: dict[int, ClientScore]) -> list[dict[str, Any]]:
    return [{"partition": number, **scores[number]} for number in sorted(scores)]
