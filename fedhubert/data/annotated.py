"""What people said of utterances, by manifest row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedhubert.data.manifest import Manifest
from fedhubert.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Annotations:
    """Labels of utterances, as numbers.

    Attributes:
        of_row: Those of each manifest row; empty where the row cannot be used.
    """

    of_row: Sequence[Sequence[int]]

    @cached_property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Which rows can be trained on [n]."""
        return np.array([bool(labels) for labels in self.of_row], np.bool_)

    def of(self, row: int) -> npt.NDArray[np.int64]:
        """Return the labels of a row."""
        return np.array(self.of_row[row], np.int64)


def annotation_column(manifest: Manifest, key: str, column: str | None) -> Sequence[str]:
    """Return the column that ``task.KEY`` names.

    Raises:
        ConfigError: none is named.
        DataError: the manifest does not have it.
    """
    if column is None:
        raise ConfigError(f"task.{key} names no column of labels", setting=f"task.{key}")
    try:
        return manifest.column(column)
    except DataError as error:
        raise DataError(f"task.{key}={column}: {error}", setting=f"task.{key}") from None
