"""What k-means can see: a source of features, and the bounded sample of them that a client fits
on."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedhubert.data.manifest import Manifest
from fedhubert.errors import TargetsError
from fedhubert.files import open_here, private_folder, scratch_path
from fedhubert.seeding import generator
from fedhubert.targets.mfcc import MFCC, SAMPLE_RATE_HZ, Features, Piece, Rows

Allocate = Callable[[tuple[int, int]], Features]


class FeatureSource(Protocol):
    """Features of utterances, in pieces.

    Attributes:
        key: Names the features among all others ('' for MFCC): part of the names of what is cached.
        rate_hz: Frames per second.
    """

    @property
    def key(self) -> str: ...
    @property
    def rate_hz(self) -> int: ...
    @property
    def dimension(self) -> int: ...

    def num_frames(self, num_samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Frames that so many samples at 16 kHz give (elementwise)."""

    def stream(
        self, manifest: Manifest, rows: Iterable[int], num_workers: int = 0
    ) -> Iterator[Piece]:
        """Yield (row, first frame, features [frames, dimension]): rows in the order given, the
        pieces of each from its first frame to its last."""


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
) -> Features:
    """Return features [at most max_frames, D] of whole utterances, drawn without replacement among
    ``rows`` and in the order drawn.

    Utterances are added while they fit; if the first alone is too long, its beginning is used. What
    is drawn depends only on the rows' lengths, ``max_frames``, ``seed`` and ``partition``. Memory:
    what ``allocate`` takes (a file, for example), and a piece per worker.
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
    filled = 0
    for _, _, part in source.stream(manifest, drawn[:count].tolist(), num_workers):
        part = part[: total - filled]
        features[filled : filled + len(part)] = part
        filled += len(part)
        if filled == total:
            break
    return features


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
        compute(allocate)
        os.replace(scratch, path)
        kept: Features = np.load(path, mmap_mode="r", allow_pickle=False)
        return kept
    except OSError as error:
        raise TargetsError(
            f"cannot keep features in {path.parent}: {error.strerror}", setting="client.state_dir"
        ) from None
    finally:
        scratch.unlink(missing_ok=True)
