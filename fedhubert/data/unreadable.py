"""Utterances that were there when a run began and cannot be read any more: left out by name, up to
a share."""

import logging
import threading
from collections.abc import Iterator, Sized

import numpy as np
import numpy.typing as npt

from fedhubert.data.audio import check_there
from fedhubert.data.cells import first_middle_last
from fedhubert.data.manifest import Manifest
from fedhubert.errors import DataError, FedhubertError

log = logging.getLogger("fedhubert.site")

MOST_LOOKED_AT = 1000
"""Files of a manifest that are looked for before a run."""


class LeftOut:
    """Which utterances of a client are left out; shared by the threads that read for it.

    Args:
        rows: The client's, of which ``share`` may be left out, and one in any case if any may be.
        share: ``data.max_unreadable``.
    """

    def __init__(self, manifest: Manifest, rows: Sized, share: float) -> None:
        self._manifest, self._share, self._total = manifest, share, len(rows)
        self.most = max(1, int(share * len(rows))) if share > 0 else 0
        self._rows: set[int] = set()
        self._lock = threading.Lock()

    def __contains__(self, row: object) -> bool:
        return row in self._rows

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def note(self, row: int, error: FedhubertError) -> None:
        """Leave ``row`` out because of ``error``, and say so in the site's log.

        Raises:
            DataError: there are more than may be left out. Its code has their number, which is all
                that leaves the site.
        """
        with self._lock:
            known = row in self._rows
            self._rows.add(row)
            count = len(self._rows)
        if count > self.most:
            most = f"more than {self.most} of {self._total} utterances cannot be read"
            refused = DataError(
                f"{most} (data.max_unreadable={self._share:g}); the last: {error}; "
                "`fedhubert prepare` says which, and writes a manifest without them",
                setting="data.max_unreadable" if self.most else error.setting,
            )
            if self.most:
                refused.code = f"unreadable_{count}_utterances"
            raise refused from None
        if not known:
            log.warning("left out: %s: %s", self._manifest.paths[row], error)


def check_files(manifest: Manifest, rows: npt.NDArray[np.int64], share: float) -> None:
    """Look for the files of ``rows``, or of 1000 spread over them, before hours go into the others.

    Args:
        share: ``data.max_unreadable``: as many may be missing, which is said in the log.

    Raises:
        DataError: more are missing, or lie outside the root.
    """
    looked = rows[:: -(-len(rows) // MOST_LOOKED_AT)].tolist() if len(rows) else []
    missing: list[DataError] = []
    for row in looked:
        try:
            check_there(manifest.recording(row))
        except DataError as error:
            missing.append(error)
    if not missing:
        _check_read(manifest, [looked[place] for place in first_middle_last(len(looked))])
        return
    said = f"{len(missing)} of {len(looked)} files that the manifest names are not there"
    first = f"{said}; the first: {missing[0]}"
    if len(missing) > share * len(looked):
        raise DataError(
            f"{first}. Paths start from data.root ({manifest.root})", setting="data.root"
        )
    log.warning("%s", first)


def _check_read(manifest: Manifest, rows: list[int]) -> None:
    """Raise where none of ``rows`` is what the manifest says: its rates, lengths or parts are of
    other files."""
    errors = []
    for row in rows:
        try:
            manifest.waveform(row, num_samples=1)
        except DataError as error:
            errors.append(error)
    if errors and len(errors) == len(rows):
        raise DataError(
            f"none of {len(rows)} files that were looked into can be used; the first: {errors[0]}",
            setting="data.manifest",
        )
