"""The pseudo-labels of one client's utterances: assigned to centroids and cached on the site, or
precomputed."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.data.fairseq_files import parse_ids, read_km
from fedhubert.data.manifest import Manifest
from fedhubert.data.partition import Rows
from fedhubert.data.unreadable import LeftOut
from fedhubert.errors import TargetsError
from fedhubert.files import open_here, private_folder, scratch_path
from fedhubert.models.frames import num_frames
from fedhubert.targets.features import FeatureSource, parts_of
from fedhubert.targets.kmeans import Centroids, assign
from fedhubert.targets.mfcc import DROPPED, MFCC, SAMPLE_RATE_HZ, num_feature_frames

log = logging.getLogger("fedhubert.site")

Ids = npt.NDArray[np.signedinteger[Any]]  # int16, or int32 beyond 32 768 clusters

TOLERANCE_FRAMES = 2
"""How far a label count may be from the audio's frame count: tools disagree on the last window."""

_LOGGED = 1000  # utterances named in the site's log


@dataclass(frozen=True)
class LabelStore:
    """Cluster ids of many utterances, one after the other.

    Attributes:
        ids: All ids [F], of several sets [F, S]; memory-mapped when they come from a cache.
        offsets: Manifest row -> (begin, end) in ``ids``.
        rate_hz: Labels per second: 100 (MFCC) or 50.
        num_clusters: K; every id (of the first set) is below it.
    """

    ids: Ids
    offsets: Mapping[int, tuple[int, int]]
    rate_hz: int
    num_clusters: int

    @property
    def num_frames(self) -> int:
        return len(self.ids)

    def labels(self, row: int) -> Ids:
        """Return the ids of manifest row ``row`` [frames at ``rate_hz``], or [frames, S]."""
        begin, end = self.offsets[row]
        return self.ids[begin:end]

    def first(self, row: int) -> Ids:
        """Return the ids of the first set [frames], which figures are of."""
        ids = self.labels(row)
        return ids if ids.ndim == 1 else ids[:, 0]

    def counts(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return how often each cluster of the first set occurs in ``rows`` [K]."""
        counts = np.zeros(self.num_clusters, np.int64)
        for row in rows.tolist():
            counts += np.bincount(self.first(row), minlength=self.num_clusters)
        return counts


def assigned_labels(
    manifest: Manifest,
    rows: Rows,
    centroids: Centroids,
    num_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    source: FeatureSource = MFCC,
    left_out: LeftOut | None = None,
) -> LabelStore:
    """Label ``rows`` with the nearest centroid of each frame; audio is streamed, only ids are kept.

    Args:
        centroids: Of each set, of the columns that the source has for it.
        progress: Counts frames.
        left_out: These utterances have no labels.
    """
    frames = source.num_frames(manifest.lengths(SAMPLE_RATE_HZ)[rows])
    several = len(centroids) > 1
    shape = (int(frames.sum()), *([len(centroids)] if several else []))
    ids = np.empty(shape, _id_type(max(map(len, centroids))))
    done, counts = 0, dict.fromkeys(rows.tolist(), 0)
    for row, first, features in source.stream(manifest, rows.tolist(), num_workers, left_out):
        if first == DROPPED:
            done, counts[row] = done - counts[row], 0
            continue
        parts = zip(parts_of(features, source.widths), centroids, strict=True)
        found = [assign(part, centroids_KD)[0] for part, centroids_KD in parts]
        ids[done : done + len(features)] = np.stack(found, axis=1) if several else found[0]
        done += len(features)
        counts[row] += len(features)
        progress(done, len(ids))
    ends = np.cumsum([counts[row] for row in rows.tolist()]).tolist()
    return LabelStore(ids[:done], _offsets(rows, ends), source.rate_hz, len(centroids[0]))


def cached_labels(
    folder: Path, manifest: Manifest, rows: Rows, key: str, build: Callable[[], LabelStore] | None
) -> LabelStore:
    """Return labels from the cache ``folder``, or build and keep them there.

    The cache is keyed by ``key`` (the centroids' hash) and the utterances' fingerprint. Ids and
    header are under one checksum, looked at before anything is parsed: whatever is damaged is built
    again. Several processes may build and read the same labels at once.

    Raises:
        TargetsError: not in the cache and ``build`` is None, or the cache cannot be written.
    """
    path = folder / f"labels-{key}-{manifest.fingerprint(rows)}.npy"
    found = _read_cache(path, rows)
    if found is not None:
        return found
    if build is None:
        raise TargetsError(
            f"no labels for this run in {folder}: its files were removed, or the state folder is "
            "another",
            setting="client.state_dir",
        )
    store = build()
    header = {
        "rate_hz": store.rate_hz,
        "num_clusters": store.num_clusters,
        "ends": [store.offsets[row][1] for row in rows.tolist()],
    }
    try:
        private_folder(folder)
        scratch = scratch_path(path, ".tmp.npy")
        with open_here(scratch, "xb", private=True) as file:
            np.save(file, store.ids)
        digest = _digest(scratch, header)
        os.replace(scratch, path)
        with open_here(scratch, "xb", private=True) as file:
            file.write(json.dumps({**header, "sha256": digest}).encode())
        os.replace(scratch, path.with_suffix(".json"))
    except OSError as error:
        raise TargetsError(
            f"cannot keep labels in {folder}: {error.strerror}", setting="client.state_dir"
        ) from None
    return store


def precomputed_labels(
    manifest: Manifest, rows: Rows, labels: str, rate_hz: int, num_clusters: int
) -> LabelStore:
    """Read labels from a ``.km`` file (one line per manifest row), or from a manifest column
    (``column:NAME``), and check them.

    Raises:
        TargetsError: another number of lines than utterances, or rows whose ids do not fit their
            audio: names the first, counts the others; all are named in the site's log.
    """
    if labels.startswith("column:"):
        texts = manifest.column(labels.removeprefix("column:"))
        ids = [parse_ids(texts[row], manifest.paths[row]) for row in rows.tolist()]
    else:
        lines = read_km(Path(labels).expanduser(), set(rows.tolist()))
        if len(lines) != len(manifest):
            raise TargetsError(
                f"{labels} has {len(lines)} lines, the manifest {len(manifest)} utterances; line i "
                "labels row i",
                setting="targets.labels",
            )
        ids = [lines[row] for row in rows.tolist()]
    lengths = manifest.lengths(SAMPLE_RATE_HZ)[rows]
    checked = zip(rows.tolist(), lengths.tolist(), ids, strict=True)
    problems = [
        found
        for row, length, line in checked
        if (found := _problem(manifest.paths[row], line, length, rate_hz, num_clusters))
    ]
    if problems:
        raise _refused(problems)
    ends = np.cumsum([len(line) for line in ids]).tolist()
    return LabelStore(
        np.concatenate(ids).astype(_id_type(num_clusters)),
        _offsets(rows, ends),
        rate_hz,
        num_clusters,
    )


def stated_clusters(labels: str | None) -> int | None:
    """Return the number of clusters that a ``dict.km.txt`` beside a ``.km`` file names, or None
    where there is none."""
    if not labels or labels.startswith("column:"):
        return None
    try:
        return sum(
            1
            for line in Path(labels).expanduser().with_name("dict.km.txt").read_text().splitlines()
            if line.strip()
        )
    except (OSError, UnicodeDecodeError):
        return None


def unigram_entropy_nats(counts_K: npt.NDArray[np.int64]) -> float:
    """Return the entropy of the labels' frequencies: the masked loss of a model that ignores its
    input."""
    shares = counts_K[counts_K > 0] / max(1, counts_K.sum())
    return float(-(shares * np.log(shares)).sum())


def most_frequent_share(counts_K: npt.NDArray[np.int64]) -> float:
    """Return the share of the most frequent label: the masked accuracy of a model that ignores its
    input."""
    return float(counts_K.max() / max(1, counts_K.sum()))


def _problem(
    name: str, ids: npt.NDArray[np.int64], num_samples: int, rate_hz: int, num_clusters: int
) -> tuple[str, str] | None:
    """Return what is wrong with an utterance's labels and the setting to look at, or None."""
    mfcc_frames = int(num_feature_frames(np.array([num_samples]))[0])
    frames = {100: mfcc_frames, 50: num_frames(num_samples)}
    if abs(len(ids) - frames[rate_hz]) > TOLERANCE_FRAMES:
        other = 150 - rate_hz
        hint = (
            f"; they look like {other} Hz: set targets.label_rate_hz={other}"
            if abs(len(ids) - frames[other]) <= TOLERANCE_FRAMES
            else ""
        )
        return (
            f"{name}: {len(ids)} labels for {frames[rate_hz]} frames at {rate_hz} Hz{hint}",
            "targets.label_rate_hz",
        )
    if len(ids) and int(ids.max()) >= num_clusters:
        return (
            f"{name}: label {int(ids.max())}, but targets.num_clusters is {num_clusters}",
            "targets.num_clusters",
        )
    return None


def _refused(problems: list[tuple[str, str]]) -> TargetsError:
    """Name the utterances in the site's log, and count them in the code: that alone leaves the
    site."""
    for text, _ in problems[:_LOGGED]:
        log.error("%s", text)
    text, setting = problems[0]
    others = f"; and {len(problems) - 1} more utterances" if len(problems) > 1 else ""
    error = TargetsError(text + others, setting=setting)
    error.code = f"labels_do_not_fit_{len(problems)}_utterances"
    return error


def _id_type(num_clusters: int) -> type[np.signedinteger[Any]]:
    return np.int16 if num_clusters <= 2**15 else np.int32


def _offsets(rows: Rows, ends: list[int]) -> dict[int, tuple[int, int]]:
    return {
        row: (begin, end) for row, begin, end in zip(rows.tolist(), [0, *ends], ends, strict=False)
    }


def _read_cache(path: Path, rows: Rows) -> LabelStore | None:
    try:
        header: dict[str, Any] = dict(json.loads(path.with_suffix(".json").read_bytes()))
        if header.pop("sha256", None) != _digest(path, header):
            return None
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
        return LabelStore(
            ids, _offsets(rows, header["ends"]), header["rate_hz"], header["num_clusters"]
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RecursionError,
    ):  # TypeError: JSON, but not an object
        return None


def _digest(path: Path, header: Mapping[str, object]) -> str:
    """Checksum over a file and what its header says."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(header, sort_keys=True).encode())
    return digest.hexdigest()
