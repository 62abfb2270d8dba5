"""Which of a site's utterances are whose, and which of them are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedhubert.clients.settings import SiteSettings
from fedhubert.config import ClientJob
from fedhubert.data.annotated import Annotations
from fedhubert.data.batching import BatchPlan
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows, partition_rows, split_rows
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import DataError
from fedhubert.objectives.spec import spec_of


@dataclass(frozen=True)
class Partition:
    """One client's data: manifest rows and batch plans of its training and validation split, and
    what of them turned out to be unreadable."""

    number: int
    train_rows: Rows
    validation_rows: Rows
    train_plan: BatchPlan
    validation_plan: BatchPlan
    left_out: LeftOut

    @property
    def rows(self) -> Rows:
        return np.concatenate([self.train_rows, self.validation_rows])


class Partitions:
    """A site's manifest, cut into the clients that it can train."""

    def __init__(self, job: ClientJob, settings: SiteSettings, manifest: Manifest) -> None:
        self._job, self._settings, self._manifest = job, settings, manifest
        self._partitions: dict[int, Partition] = {}
        self._rows: Sequence[Rows] | None = None
        self._spec = spec_of(job.task)

    @cached_property
    def annotations(self) -> Annotations | None:
        """What was said of each utterance, for a task that learns from it; raises what
        :meth:`~fedhubert.objectives.spec.ObjectiveSpec.annotations` does."""
        return self._spec.annotations(self._manifest, self._job.data)

    @property
    def hosts_all(self) -> bool:
        """Whether any partition can be trained here (the manifest is everyone's), or only this
        site's own."""
        return not self._settings.own_data

    def partition(self, number: int) -> Partition:
        """Return the data of client ``number``; raises :class:`DataError` when it is not here or
        has nothing to train on."""
        if number not in self._partitions:
            self._partitions[number] = self._build(number)
        return self._partitions[number]

    def _build(self, number: int) -> Partition:
        job, data = self._job, self._job.data
        if not 0 <= number < job.num_clients or not (
            self.hosts_all or number == self._settings.node
        ):
            raise DataError(
                f"partition {number} is not on this site (node {self._settings.node})",
                setting="partition-id",
            )
        lengths, rows = self._manifest.lengths(data.sample_rate_hz), self._rows_of(number)
        train, validation = split_rows(
            rows,
            data.partition.validation_fraction,
            job.seed,
            number,
            files=self._manifest.file_names(rows),
        )
        fixed, whole = self._spec.fixed_crops, self._spec.whole_utterances
        few = job.client.compile  # every length is compiled
        train_plan = BatchPlan(
            lengths, train, data, job.seed, number, "train", fixed, few_lengths=few, whole=whole
        )
        validation_plan = BatchPlan(
            lengths, validation, data, job.seed, number, "validation", fixed, whole=whole
        )
        left_out = LeftOut(self._manifest, rows, data.max_unreadable)
        return Partition(number, train, validation, train_plan, validation_plan, left_out)

    def _rows_of(self, number: int) -> Rows:
        if self._settings.own_data:
            return self._usable_rows()
        if self._rows is None:
            self._rows = partition_rows(
                self._manifest,
                self._job.data.partition,
                self._job.num_clients,
                self._job.seed,
                rows=self._usable_rows(),
            )
        return self._rows[number]

    def _usable_rows(self) -> Rows:
        """Rows long enough to train on: left out before splitting, so that no split consists of
        them alone."""
        shortest = self._job.data.min_seconds * self._job.data.sample_rate_hz
        usable = self._manifest.lengths(self._job.data.sample_rate_hz) >= shortest
        if self.annotations is not None:
            usable &= self._said(self.annotations)
        rows = np.flatnonzero(usable).astype(np.int64)
        if not len(rows):
            raise DataError(
                f"{self._settings.manifest}: none of {len(self._manifest)} utterances is at least "
                f"{self._job.data.min_seconds} s long",
                setting="data.min_seconds",
            )
        return rows

    def _said(self, annotations: Annotations) -> npt.NDArray[np.bool_]:
        """Return which rows have a label that can be learned; raises :class:`DataError` where none
        has."""
        annotation = self._job.task.annotation
        key, column = annotation or ("", None)
        if not annotations.usable.any():
            raise DataError(
                f"{self._settings.manifest}: none of {len(self._manifest)} utterances has anything "
                f"in the column {column} that "
                f"task={self._job.task.name} can learn",
                setting=f"task.{key}",
            )
        return annotations.usable
