"""What a run writes down: events, the history that checkpoints carry, checkpoints, and where an
interrupted run goes on."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedhubert.config import Config
from fedhubert.config.target_sets import of_set
from fedhubert.errors import CheckpointError, FedhubertError
from fedhubert.federation.privacy.secret import forget_secret
from fedhubert.federation.rounds.journal import Journal
from fedhubert.federation.server.resume import changes, check_same_run
from fedhubert.files import (
    exclusively,
    explaining_write_errors,
    sync_folder,
    temporary_path,
    write_temporary,
)
from fedhubert.formats.content import load_plain, plain, saving
from fedhubert.reporting.fairness import HIGHER_IS_BETTER
from fedhubert.runs.folder import RunFolder
from fedhubert.runs.metrics import Event, append_event, keep_events, read_events
from fedhubert.runs.starts import note_start
from fedhubert.runs.store import RoundStore
from fedhubert.runs.trackers import Trackers, require_packages

log = logging.getLogger("fedhubert")


@dataclass(frozen=True)
class Resumed:
    """Where an interrupted run goes on: after ``round``, with the checkpoint and what was saved for
    resuming."""

    round: int
    checkpoint: dict[str, Any]
    resume: dict[str, Any]


class RunRecord:
    """The run's folder and all that is in it.

    Attributes:
        history: One history_entry event per finished round; checkpoints carry it, and
        lineage: what this run began from: an imported encoder, the rounds of other runs that it was
            forked from.
        data: Counts over all clients' data, which checkpoints carry; empty where they must not.
        saved_round: The round of the newest checkpoint.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = RunFolder.of(config)
        self.folder.create()
        require_packages(config.reporting.trackers)
        self.trackers: Trackers | None = None
        self.store = RoundStore(self.folder.checkpoints)
        self.kmeans = KMeansFile(self.folder.checkpoints / "start.pt", config)
        self.history: list[Event] = []
        self.lineage: list[dict[str, object]] = []
        self.data: dict[str, int | float] = {}
        self.saved_round = 0
        self.checkpoint_seconds = 0.0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the run's folder, and log to its file; an error that ends the run is in the log.

        Raises:
            FolderInUse: another process holds it.
        """
        from fedhubert.reporting.console import FILE_ONLY, log_to_file, stop_logging_to

        handler = log_to_file(self.folder.log_file)
        try:
            with exclusively(self.folder.checkpoints, setting="out"):
                note_start(self.folder.path)
                yield
        except FedhubertError as error:
            # whoever started the run says it on the terminal
            logging.getLogger(FILE_ONLY).error("run stopped: %s", error)
            raise
        finally:
            self.close()
            stop_logging_to(handler)

    def resume(self) -> Resumed | None:
        """Return where to go on, or None for a run that begins; refuses a folder with checkpoints
        unless asked to resume."""
        found = self.store.latest()
        for path, reason in found.rejected:
            log.warning("checkpoint %s is not usable (%s); trying the one before", path, reason)
        if found.round is None:
            self._begin()
            return None
        if self.config.resume != "auto":
            raise CheckpointError(
                f"{self.folder.checkpoints} already holds checkpoints up to round {found.round}: "
                "go on with resume=auto, or choose another out=...",
                setting="resume",
            )
        checkpoint, resume = found.load()
        if "rounds" not in resume:
            raise CheckpointError(
                f"the run in {self.folder.path} is no federated one, or of an older version; "
                "choose another out=...",
                setting="out",
            )
        check_same_run(checkpoint["config"], self.config, self.folder.path)
        number = found.round
        self.history = list(checkpoint["federated_metrics"]["history"])
        self.lineage = list(checkpoint["federated_metrics"].get("lineage", []))
        self.saved_round = number
        # the interruption may have come before it
        self.store.prune(self.config.checkpoint.keep_last)
        keep_events(
            self.folder.metrics_file,
            lambda event: int(event.get("round", 0)) <= number and event.get("event") != "final",
        )
        log.info("resuming after round %d", number)
        return Resumed(number, checkpoint, resume)

    @cached_property
    def journal(self) -> Journal:
        """The journal of accepted clients: one for all who write and read it, read when the run's
        folder is locked."""
        return Journal(self.folder.checkpoints)

    def open_trackers(self) -> None:
        """Start the trackers and tell them what is in ``metrics.jsonl`` already; raises
        :class:`ConfigError`."""
        if self.config.reporting.trackers:
            self.trackers = Trackers(
                self.config,
                self.folder.path,
                self.folder.run_key(),
                read_events(self.folder.metrics_file),
            )

    def write_config(self) -> None:
        """Write the resolved configuration."""
        from fedhubert.compose import to_yaml

        self.folder.config_file.write_text(to_yaml(self.config))

    def event(self, event: Event) -> None:
        append_event(self.folder.metrics_file, event)
        if self.trackers:
            self.trackers.track(event)

    def close(self) -> None:
        if self.trackers:
            self.trackers.close()

    def checkpoints(self) -> list[int]:
        """Return the rounds that a resume may go back to: the newest two, and the start."""
        return [0, *self.store.rounds()[-2:]]

    def save(
        self, number: int, model_state: Mapping[str, torch.Tensor], resume: Mapping[str, object]
    ) -> None:
        """Write the checkpoint of round ``number`` and remove those that are too many."""
        started = time.monotonic()
        path = self.store.save(
            number,
            model_state,
            config=self._plain_config(),
            federated_metrics=self._metrics(),
            resume=resume,
        )
        self.store.prune(self.config.checkpoint.keep_last)
        self.saved_round = number
        self.checkpoint_seconds = time.monotonic() - started
        log.info("checkpoint %s", path)

    def save_best(self, number: int, model_state: Mapping[str, torch.Tensor]) -> None:
        """Keep the model of round ``number`` as the best so far."""
        metrics = {**self._metrics(), "round": number}
        self.store.save_best(
            number, model_state, config=self._plain_config(), federated_metrics=metrics
        )

    def best_round(self) -> int:
        """Return the round whose model had the best validation figure so far
        (``federated.early_stopping.monitor``); 0 without any.

        An improvement has to be larger than ``min_delta`` to count.
        """
        settings = self.config.federated.early_stopping
        sign = 1.0 if settings.monitor in HIGHER_IS_BETTER else -1.0
        best_round, best = 0, float("-inf")
        for event in self.history:
            figures = event["validation"] or {}
            figure = (figures.get("median", {}) if settings.over == "clients" else figures).get(
                settings.monitor
            )
            if (
                event["round"] > 1
                and figure is not None
                and sign * figure > best + settings.min_delta
            ):
                best_round, best = event["round"] - 1, sign * figure
        return best_round

    def is_over(self) -> bool:
        """Whether early stopping has had enough."""
        patience, best = self.config.federated.early_stopping.patience, self.best_round()
        return (
            patience is not None and best > 0 and self.history[-1]["round"] - 1 - best >= patience
        )

    def _begin(self) -> None:
        """Start from nothing, or, where a run was interrupted before its first checkpoint, from its
        clustering and its journal."""
        metrics = self.folder.metrics_file
        state = self.kmeans.load() if self.config.resume == "auto" else None
        if state is None:
            metrics.unlink(missing_ok=True)
            self.journal.clear()
            if self.config.secure.enabled:
                self.folder.renew_run_key()
            forget_secret(self.folder.checkpoints)
            self.kmeans.save({})
            return

        def known(event: Event) -> bool:
            history = state.get(of_set("history", event.get("set", 0)), ())
            return event.get("event") == "kmeans" and event["iteration"] <= len(history)

        keep_events(metrics, known)

    def _metrics(self) -> dict[str, object]:
        lineage = {"lineage": self.lineage} if self.lineage else {}
        return {**self.history[-1], "history": self.history, "data": self.data, **lineage}

    def _plain_config(self) -> dict[str, object]:
        return self.config.model_dump(mode="json")


class KMeansFile:
    """The run's settings and the state of its clustering, kept so that a run interrupted before its
    first checkpoint goes on."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config.model_dump(mode="json")

    def load(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """Return the state (empty before the clustering), or None where no run of these settings
        began here."""
        try:
            values = load_plain(self._path)
            if changes(values["config"], self._config):
                return None
            return {name: tensor.numpy() for name, tensor in values["state"].items()}
        except (CheckpointError, KeyError, TypeError):
            return None

    def save(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Write the state; raises :class:`CheckpointError` when it cannot be written."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        values = plain({"config": self._config, "state": tensors}, "kmeans", tensors=True)
        with explaining_write_errors(self._path.parent, setting="checkpoint_dir"):
            write_temporary(self._path, saving(values))
            temporary_path(self._path).replace(self._path)
            sync_folder(self._path.parent)
