"""A federation from its first message to its last figure: every part of a run, on one page."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedhubert.config import Config
from fedhubert.data.corpora import resolve_manifest
from fedhubert.data.manifest import Manifest
from fedhubert.deployment.expiry import expiring
from fedhubert.errors import CheckpointError, DataError, FedhubertError
from fedhubert.federation.phases.evaluation import ServerEvaluation
from fedhubert.federation.phases.layer_choice import with_layer
from fedhubert.federation.phases.secure_run import close_run, say_how_secure
from fedhubert.federation.phases.targets import Targets, no_targets, prepare_targets
from fedhubert.federation.phases.teacher import (
    ServerTeacher,
    prepare_student,
    server_objective,
    with_teacher,
)
from fedhubert.federation.privacy.opening import announce
from fedhubert.federation.roster.connect import connect
from fedhubert.federation.roster.node_keys import key_folders
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.loop import run_rounds, score_everywhere
from fedhubert.federation.rounds.metrics import data_summary
from fedhubert.federation.rounds.shared import Rounds, StepNotFinite
from fedhubert.federation.server.bookkeeping import Bookkeeper
from fedhubert.federation.server.newcomers import Equipment
from fedhubert.federation.server.record import RunRecord
from fedhubert.federation.server.run_state import RunState
from fedhubert.federation.server.space import check_checkpoint_space
from fedhubert.federation.strategies.strategy import check_strategy
from fedhubert.federation.wire.flower import Grid
from fedhubert.federation.wire.grid import SITES_IN_FLIGHT, StreamingGrid
from fedhubert.models.trainable import FrozenPart, with_frozen_part
from fedhubert.reporting.learning import Levels
from fedhubert.runs.folder import RunFolder
from fedhubert.targets.extractor import Extractor
from fedhubert.targets.sets import mfcc_source

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its folder, the last checkpoint, and the last validation figures."""

    folder: RunFolder
    checkpoint: Path
    validation: Mapping[str, object]


def run_federation(
    grid: Grid,
    config: Config,
    *,
    window: int = SITES_IN_FLIGHT,
    stop: threading.Event | None = None,
) -> RunResult:
    """Run a whole federation over ``grid``, with up to ``window`` messages in flight.

    Raises:
        RunInterrupted: ``stop`` was set; the last finished round is in the checkpoint folder.
        FedhubertError: with the reason; checkpoints of finished rounds stay as they are.
    """
    with open_run(config) as run:
        return run.over(StreamingGrid(grid, window=window, stop=stop))


@contextmanager
def open_run(config: Config) -> Iterator["Run"]:
    """Open the folder of a run and read what its start depends on: all that can be wrong without
    its sites is found here, before any of them is waited for.

    Raises:
        FedhubertError: settings that do not fit; a teacher, encoder or extractor that cannot be
            used; a folder that is in use, belongs to a run of other settings, or is too small.
    """
    check_strategy(config)
    config, teacher = with_teacher(with_layer(config))
    extractor = Extractor.of(config.targets) if config.task.needs_labels else None
    record = RunRecord(config)
    with record.opened():
        state = RunState.initial(config)
        log.info("run folder: %s", record.folder.path)
        _check_evaluation(config)
        if teacher is not None:
            prepare_student(state.model, config, teacher)
        state.restore(record, teacher)
        check_checkpoint_space(config, record.folder.checkpoints, state.layout, state.model)
        width = extractor.config.embed_dim if extractor else mfcc_source(config.targets).dimension
        kept = [extractor, teacher.teacher if teacher else None, FrozenPart.of(state.model)]
        kept_bytes = sum(model.num_bytes for model in kept if model is not None)
        yield Run(record, state, teacher, width, kept_bytes)


def _check_evaluation(config: Config) -> None:
    named, root = config.evaluation.manifest, config.evaluation.root
    try:
        if named:
            Manifest.read(resolve_manifest(named), root)
    except DataError as error:
        raise DataError(
            f"evaluation.manifest={named}: {error}", setting="evaluation.manifest"
        ) from None


@dataclass(frozen=True)
class Run:
    """A run whose folder is open and whose start has been read.

    Attributes:
        feature_width: Of what k-means sees.
        kept_bytes: Of the models that every site keeps.
    """

    record: RunRecord
    state: RunState
    teacher: ServerTeacher | None
    feature_width: int
    kept_bytes: int

    def over(self, grid: StreamingGrid) -> RunResult:
        """Play the run's phases over ``grid``; raises what :func:`run_federation` raises."""
        return _phases(grid, self.record, self.state, self.teacher)


def _phases(
    grid: StreamingGrid,
    record: RunRecord,
    state: RunState,
    teacher: ServerTeacher | None,
) -> RunResult:
    """Connect, prepare the sites, train what is left, score."""
    frozen = FrozenPart.of(state.model)
    config = with_frozen_part(record.config, frozen)
    federation = Federation(grid, config, record.folder.run_key(), state.layout)
    federation.fingerprints = state.fingerprints
    record.write_config()
    record.open_trackers()
    books = Bookkeeper(record, state)
    if state.privacy and not books.is_over():
        announce(state.privacy, config, state.first_round)
    for line in [*expiring(key_folders(config.federated)), *state.strategy.warnings(config)]:
        log.warning("%s", line)
    also = "" if state.shares_head else ", and a head of each client's own, which stays at its site"
    momenta = state.layout.num_momenta
    if momenta:
        also += f", and {momenta / 1e6:.2f} M of the clients' momentum"
    parameters = state.layout.numel - momenta
    log.info("model %s: %.2f M parameters%s", config.model.name, parameters / 1e6, also)

    connect(federation)
    _book_data(federation, record)
    say_how_secure(federation)
    equipment = Equipment(federation, record, teacher, frozen)
    equipment.bring_models()
    targets = _targets(federation, record, state)
    books.levels = Levels.of(targets.event()) if config.task.needs_labels else None
    # only now: who joins before is prepared with all the others
    federation.on_join = lambda shares: equipment.on_join(targets, shares)

    if books.is_over():
        log.info("all rounds are done")
    else:
        if config.evaluation.manifest:
            objective = server_objective(config, teacher)
            books.evaluation = ServerEvaluation(config, targets, objective)
        _train(federation, record, state, books)

    # not num_rounds: a run may end early
    number = int(record.history[-1]["round"])
    model = state.layout.to_vector(state.model)
    scores = score_everywhere(federation, targets.key, state.rounds, model, number, record.journal)
    books.book_final(scores)
    close_run(federation)
    return RunResult(record.folder, record.store.path(number), books.validation)


def _book_data(federation: Federation, record: RunRecord) -> None:
    """Say who is there, and keep it for checkpoints where they may tell."""
    data = data_summary(federation.partitions)
    if not federation.config.privacy.hides_figures:
        record.data = data
    log.info(
        "%d clients on %d nodes: %d utterances, %.2f h to train on, %.2f h held out",
        data["clients"],
        len(federation.hosts),
        data["utterances"],
        data["train_audio_s"] / 3600,
        data["validation_audio_s"] / 3600,
    )


def _targets(federation: Federation, record: RunRecord, state: RunState) -> Targets:
    """Have the sites label their audio, if the task needs labels.

    Raises:
        CheckpointError: other labels than those that a resumed run began with.
    """
    config = federation.config
    needs_labels = config.task.needs_labels
    targets = (
        prepare_targets(federation, state.centroids, record.kmeans, record.event)
        if needs_labels
        else no_targets(config.targets.num_clusters)
    )
    if state.centroids and state.targets_key not in ("", targets.key):
        raise CheckpointError(
            f"targets.checkpoint={config.targets.checkpoint} is not the model that the run in "
            f"{record.folder.path} began with: "
            "name that one, or choose another out=...",
            setting="targets.checkpoint",
        )
    state.centroids, state.targets_key = targets.centroids, targets.key
    # a resumed run has both from its beginning
    if state.first_round == 1 and needs_labels:
        record.event(targets.event())
        record.lineage.append({"targets": targets.lineage()})
    return targets


def _train(
    federation: Federation,
    record: RunRecord,
    state: RunState,
    books: Bookkeeper,
) -> None:
    """Play the rounds that are left; the last finished one is saved, however they end."""
    rounds = Rounds(
        federation,
        state.strategy,
        state=state.rounds,
        journal=record.journal,
        targets_key=state.targets_key,
        checkpoints=record.checkpoints,
        privacy=state.privacy,
    )
    model, last = state.layout.to_vector(state.model), federation.config.federated.num_rounds
    try:
        run_rounds(rounds, model, state.first_round, last, books.book)
    except StepNotFinite:  # the optimiser's state is ahead of the model: nothing may be saved
        raise
    except FedhubertError:
        books.save_unsaved()
        raise
    books.save_unsaved()
