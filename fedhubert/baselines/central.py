"""``fedhubert central``: the same audio trained on without federation, in one model (central) or
one per client (local only)."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedhubert.baselines.pool import ClientScore, Pool, figures
from fedhubert.baselines.runs import BaselineRun, record_final, rows_of, say_final
from fedhubert.compose import to_yaml
from fedhubert.config import Config
from fedhubert.data.corpora import with_absolute_data
from fedhubert.errors import CheckpointError
from fedhubert.federation.phases.layer_choice import with_layer
from fedhubert.federation.phases.teacher import ServerTeacher, with_teacher
from fedhubert.federation.server.resume import check_same_run
from fedhubert.files import exclusively
from fedhubert.reporting.console import log_to_file, stop_logging_to
from fedhubert.reporting.summary import final_event
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import append_event, read_events
from fedhubert.runs.starts import note_start
from fedhubert.runs.store import RoundStore
from fedhubert.training.central import plan_rounds
from fedhubert.training.device import resolve_device

log = logging.getLogger("fedhubert")

CENTRAL, LOCAL_ONLY = "central", "local_only"


@dataclass(frozen=True)
class BaselineOptions:
    """``local_only``: each client alone, for the steps that it would take. ``reset_each_round``:
    see :class:`CentralTrainer`."""

    local_only: bool = False
    reset_each_round: bool = False

    @property
    def kind(self) -> str:
        return LOCAL_ONLY if self.local_only else CENTRAL


def train_baseline(config: Config, options: BaselineOptions) -> RunFolder:
    """Train the baseline of a federated run and return its folder; with ``resume=auto`` one that is
    finished is left as it is.

    Events, configuration and checkpoints have the form of a federated run's. Local only: a run's
    folder per client below it. A model's head is its own, whatever ``task.head`` says: central
    training has one for all, local training one for each client.

    Raises:
        CheckpointError: the folder holds another run, or one that is not to be replaced
            (``resume=never``).
        FedhubertError: as the federated run's clients.
    """
    config, teacher = with_teacher(with_layer(with_absolute_data(config)))
    config = config.model_copy(
        update={"client": config.baseline.of(config.client), "task": config.task.pooled()}
    )
    resolve_device(config.client.device)
    folder = RunFolder.of(config)
    if config.resume == "auto" and is_finished(folder, config, options):
        log.info("%s is done", folder.path)
        return folder
    if config.reporting.trackers:
        log.warning(
            "reporting.trackers is for federated runs: this one has metrics.jsonl, and `fedhubert "
            "report` shows both"
        )
    with exclusively(folder.checkpoints, setting="out"):
        _begin(folder, config, options)
        if config.privacy.enabled:
            log.warning(
                "privacy.mechanism=%s protects the clients of federated rounds, which this run has "
                "none of",
                config.privacy.mechanism,
            )
        torch.set_num_threads(config.client.threads)
        handler = log_to_file(folder.log_file)
        try:
            with _terminated_as_interrupted():
                (_train_local if options.local_only else _train_central)(
                    config, teacher, options, folder
                )
        finally:
            stop_logging_to(handler)
    return folder


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM (a scheduler, ``timeout``) like Ctrl-C, so that the last finished round is
    kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def is_finished(folder: RunFolder, config: Config, options: BaselineOptions) -> bool:
    """Whether the folder holds this baseline with its last round saved and scored; raises
    :class:`CheckpointError` if it holds another run."""
    first = next(read_events(folder.metrics_file), {})
    if first.get("event") != "baseline":
        return False
    if first["kind"] != options.kind or first["reset_each_round"] != options.reset_each_round:
        raise CheckpointError(
            f"{folder.path} holds a baseline of another kind ({first['kind']}); choose another "
            "out=...",
            setting="out",
        )
    check_same_run(first["config"], config, folder.path)
    return bool(final_event(folder.metrics_file))


def _begin(folder: RunFolder, config: Config, options: BaselineOptions) -> None:
    """Start from nothing: an interrupted baseline is trained again, anything else in the folder is
    left alone."""
    first = next(read_events(folder.metrics_file), {})
    used = bool(first) or bool(RoundStore(folder.checkpoints).rounds())
    if used and (first.get("event") != "baseline" or config.resume != "auto"):
        raise CheckpointError(
            f"{folder.path} already holds a run; choose another out=..., or give resume=auto to "
            "replace an unfinished baseline",
            setting="out",
        )
    folder.create()
    for file in folder.checkpoints.glob("round_*"):
        file.unlink()
    folder.metrics_file.unlink(missing_ok=True)
    folder.config_file.write_text(to_yaml(config))
    note_start(folder.path)
    plain = config.model_dump(mode="json")
    about = {"kind": options.kind, "reset_each_round": options.reset_each_round, "config": plain}
    append_event(folder.metrics_file, {"event": "baseline", **about})


def _train_central(
    config: Config, teacher: ServerTeacher | None, options: BaselineOptions, folder: RunFolder
) -> None:
    pool = Pool(config, teacher)
    log.info("run folder: %s", folder.path)
    pool.label(lambda event: append_event(folder.metrics_file, event))
    plans = plan_rounds(pool.rounds(), config.client.accumulate)
    run = BaselineRun(
        pool, folder, options.kind, asked=pool.rounds(), reset_each_round=options.reset_each_round
    )
    everyone = range(len(pool.clients))
    scores = pool.score(run.model, everyone)
    append_event(
        folder.metrics_file,
        {
            "event": "initial",
            "round": 0,
            "validation": figures(pool.spec, scores, 0),
            "clients": rows_of(scores),
        },
    )
    run.train(plans)
    run.finish(pool.score(run.model, everyone))


def _train_local(
    config: Config, teacher: ServerTeacher | None, options: BaselineOptions, folder: RunFolder
) -> None:
    """One model per client, all from the same initial weights and under the same clusters."""
    pool = Pool(config, teacher)
    pool.label(lambda event: append_event(folder.metrics_file, event))
    rounds = pool.rounds()
    own: dict[int, ClientScore] = {}
    elsewhere: dict[int, dict[str, object]] = {}
    for part in pool.clients:
        taken = {
            number: {part.number: steps[part.number]}
            for number, steps in rounds.items()
            if part.number in steps
        }
        below = client_folder(folder, part.number)
        _begin(below, config.model_copy(update={"resume": "auto"}), options)
        run = BaselineRun(
            pool,
            below,
            options.kind,
            asked=taken,
            reset_each_round=options.reset_each_round,
            alone=part.number,
        )
        log.info("client %d alone: %d of %d rounds", part.number, len(taken), len(rounds))
        if taken:
            run.train(plan_rounds(taken, config.client.accumulate))
        scores = pool.score(run.model, range(len(pool.clients)))
        run.finish({part.number: scores[part.number]})
        own[part.number], elsewhere[part.number] = (
            scores[part.number],
            figures(pool.spec, scores, config.federated.num_rounds),
        )
    say_final(
        "each client's own model",
        record_final(
            config, folder, own, {"elsewhere": [elsewhere[number] for number in sorted(elsewhere)]}
        ),
        pool.spec,
    )


def client_folder(folder: RunFolder, number: int) -> RunFolder:
    """Return the folder of a client that is trained alone."""
    path = folder.path / f"client_{number:03d}"
    return RunFolder(path, path / "checkpoints")
