"""What k-means can see: a source of features, and the bounded sample of them that a client fits
on."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import TargetsError
from fedhubert.files import open_here, private_folder, scratch_path
from fedhubert.seeding import generator
from fedhubert.targets.mfcc import DROPPED, MFCC, SAMPLE_RATE_HZ, Features, Piece

Allocate = Callable[[tuple[int, int]], Features]


class FeatureSource(Protocol):
    """Features of utterances, in pieces.

    Attributes:
        key: Names the features among all others ('' for MFCC): part of the names of what is cached.
        site_key: Names what of the site they depend on beside the audio ('' for nothing): part of
            the names of files that stay there.
        rate_hz: Frames per second.
        widths: Columns of each set that is clustered by itself, one set after the other.
        grouped_by: Columns by which frames are grouped where none is to be shown by itself
            (:mod:`fedhubert.targets.grouping`).
    """

    @property
    def key(self) -> str: ...
    @property
    def site_key(self) -> str: ...
    @property
    def rate_hz(self) -> int: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def grouped_by(self) -> slice: ...
    @property
    def dimension(self) -> int: ...

    def num_frames(self, num_samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Frames that so many samples at 16 kHz give (elementwise)."""

    def stream(
        self,
        manifest: Manifest,
        rows: Iterable[int],
        num_workers: int = 0,
        left_out: LeftOut | None = None,
    ) -> Iterator[Piece]:
        """Yield (row, first frame, features [frames, dimension]): rows in the order given, the
        pieces of each from its first frame to its last.

        A row that cannot be read is an error, or, with ``left_out``, noted there and a piece whose
        first frame is :data:`~fedhubert.targets.mfcc.DROPPED`: what came of it before does not
        count."""


def parts_of(features_FD: Features, widths: Sequence[int]) -> list[Features]:
    """Return each set's columns (views) of features that have those of all."""
    ends = np.cumsum(widths).tolist()
    return [features_FD[:, end - width : end] for end, width in zip(ends, widths, strict=True)]


def fitting_features(
    manifest: Manifest,
    rows: Rows,
    max_frames: int,
    seed: int,
    partition: int,
    num_workers: int = 0,
    purpose: str = "kmeans/utterances",
    source: FeatureSource = MFCC,
    allocate: Allocate = lambda shape: np.empty(shape, np.float32),
    left_out: LeftOut | None = None,
) -> Features:
    """Return features [at most max_frames, D] of whole utterances, drawn without replacement among
    ``rows`` and in the order drawn.

    Utterances are added while they fit; if the first alone is too long, its beginning is used. What
    is drawn depends only on the rows' lengths, ``max_frames``, ``seed`` and ``partition``. Memory:
    what ``allocate`` takes (a file, for example), and a piece per worker. Frames of utterances that
    are ``left_out`` are missing.
    """
    if not len(rows):
        raise TargetsError("no utterance to compute features of", setting="data.manifest")
    drawn = np.asarray(rows, dtype=np.int64)[
        generator(seed, purpose, partition).permutation(len(rows))
    ]
    ends = np.cumsum(source.num_frames(manifest.lengths(SAMPLE_RATE_HZ)[drawn]))
    count = max(1, int(np.searchsorted(ends, max_frames, side="right")))
    total = min(int(ends[count - 1]), max_frames)
    features = allocate((total, source.dimension))
    filled, begin, current = 0, 0, -1
    for row, first, part in source.stream(manifest, drawn[:count].tolist(), num_workers, left_out):
        if first == 0:
            begin, current = filled, row
        if first == DROPPED:
            filled = begin if row == current else filled
            continue
        part = part[: total - filled]
        features[filled : filled + len(part)] = part
        filled += len(part)
        if filled == total:
            break
    return features[:filled]


def kept_features(path: Path, compute: Callable[[Allocate], Features]) -> Features:
    """Return what ``compute`` puts into the array that it allocates, from the file ``path``:
    written once, whole or not at all, then mapped.

    Raises:
        TargetsError: the file cannot be written; its size is set aside before anything is computed.
    """
    try:
        found: Features = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray) and found.ndim == 2 and found.dtype == np.float32:
            return found
    except (OSError, ValueError, EOFError):
        pass
    scratch = scratch_path(path)

    def allocate(shape: tuple[int, int]) -> Features:
        open_here(scratch, "xb", private=True).close()
        mapped = np.lib.format.open_memmap(scratch, "w+", np.dtype(np.float32), shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with scratch.open("r+b") as file:
                os.posix_fallocate(
                    file.fileno(), 0, mapped.nbytes + mapped.offset
                )  # a full disk is an error here, a bus error later
        return mapped

    try:
        private_folder(path.parent)
        features = compute(allocate)
        if isinstance(features, np.memmap) and features.base is not None:
            _shorten(scratch, features)
        os.replace(scratch, path)
        kept: Features = np.load(path, mmap_mode="r", allow_pickle=False)
        return kept
    except OSError as error:
        raise TargetsError(
            f"cannot keep features in {path.parent}: {error.strerror}", setting="client.state_dir"
        ) from None
    finally:
        scratch.unlink(missing_ok=True)


def _shorten(path: Path, features: Features) -> None:
    """Rewrite a file of which only the first rows, ``features``, came to be filled."""
    kept = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(kept) == len(features):
        return
    shorter = scratch_path(path)
    with open_here(shorter, "xb", private=True) as file:
        np.save(file, features)
    os.replace(shorter, path)
