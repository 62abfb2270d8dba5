"""fairseq's label files: ``.km`` (a line of space-separated cluster ids per utterance) and
``dict.km.txt``."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedhubert.errors import DataError


def read_km(path: Path, rows: Collection[int] | None = None) -> list[npt.NDArray[np.int64]]:
    """Return each line's ids; lines other than ``rows`` (counted from 0) are counted, not parsed,
    and come back empty.

    Raises:
        DataError: naming file and line of what is not a whole number of at least 0.
    """
    nothing = np.zeros(0, np.int64)
    try:
        with path.open(encoding="utf-8") as file:
            return [
                parse_ids(line, f"{path}, line {number + 1}")
                if rows is None or number in rows
                else nothing
                for number, line in enumerate(file)
            ]
    except OSError as error:
        raise DataError(
            f"cannot read labels {path}: {error.strerror}", setting="targets.labels"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text", setting="targets.labels") from None


def parse_ids(text: str, where: str) -> npt.NDArray[np.int64]:
    """Parse space-separated cluster ids; raises :class:`DataError` saying ``where``."""
    try:
        ids = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise DataError(
            f"{where}: labels must be whole numbers separated by spaces", setting="targets.labels"
        ) from None
    if len(ids) and int(ids.min()) < 0:
        raise DataError(f"{where}: a label is negative", setting="targets.labels")
    return ids
