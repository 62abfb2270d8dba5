"""Finds what may not leave a site in the messages that did: by content, whatever it is called and however it is packed.

Canaries are made to be recognised: audio is noise, so that a few dozen samples of it occur nowhere else, and every name holds a marker.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchaudio.functional
from flwr.app import Message
from scipy.spatial import cKDTree

from tests.flower import message_bytes

Array = np.ndarray[Any, Any]

MARKERS = {"path": "Qzfile", "text": "Qztext", "speaker": "Qzspeaker", "id": "Qzident"}
"""What every file name, transcript, speaker and utterance id of the canaries holds."""

_SIGNS, _LABELS = 48, 20
_CEPSTRA, _NEAR = 13, 0.03  # of a column's standard deviation

_COUNTS = {"weights", "counts", "train", "validation", "contingency"}
_RANDOM_BYTES = {"run_keys", "sealed", "commitments", "shares"}
"""Bytes in which any few numbers below 256 are found in some order."""
_SECURE = {"masked", "tail", *_RANDOM_BYTES}
KNOWN_ARRAYS = {
    *("update", "scales", "sum", "sketches", "centroids", "sums", "inertia", "products"),
    *_COUNTS,
    *_SECURE,
}


@dataclass(frozen=True)
class Site:
    """What a site has, that nobody else may see: one entry an utterance.

    Attributes:
        waveforms: As stored, float32 in [-1, 1].
        rates_hz: Their rates.
        features: Rows of each source of features [F, D].
        labels: Cluster ids of each utterance, once they are known.
        num_train: Utterances of the training split.
    """

    waveforms: list[Array]
    rates_hz: list[int]
    features: list[Array]
    labels: list[Array]
    num_train: int


class LeakScanner:
    """Looks into messages for anything of ``sites``; ``min_frames`` is the fewest frames that a statistic may be over."""

    def __init__(self, sites: list[Site], min_frames: int) -> None:
        self._min_frames = min_frames
        waveforms = [wave for site in sites for wave in _at_other_rates(site)]
        self._signatures = np.unique(np.concatenate([_signatures(wave) for wave in waveforms]))
        self._words = {
            dtype: np.unique(
                np.concatenate(
                    [_words(np.ascontiguousarray(_as(wave, dtype))) for wave in waveforms]
                )
            )
            for dtype in ("<i2", "<f4", "<f8")
        }
        self._features = [
            _Rows(np.concatenate(parts))
            for parts in zip(*(site.features for site in sites), strict=True)
        ]
        sequences = [ids[::step] for site in sites for ids in site.labels for step in (1, 2)]
        self._label_keys = (
            np.unique(np.concatenate([_label_keys(ids) for ids in sequences]))
            if sequences
            else np.zeros(0, np.uint64)
        )
        self._vectors = [vector for site in sites for vector in _per_utterance(site)]
        self._single = np.unique(
            np.concatenate(
                [vector for name, vector in self._vectors if name in ("samples", "seconds")]
            )
        )
        self._lengths = {len(site.waveforms) for site in sites} | {site.num_train for site in sites}
        self._lengths.add(sum(len(site.waveforms) for site in sites))

    def scan(self, message: Message) -> set[str]:
        """Return the kinds of what leaks: those of ``MARKERS``, ``audio``, ``features``, ``labels``, ``utterances``, ``few``, ``unknown``."""
        found = self.scan_bytes(message_bytes(message))
        for name, values in _values(message):
            found |= self._scan_array(name, values)
        if message.has_content():
            for record in message.content.metric_records.values():
                scalars = [
                    value
                    for column in record.values()
                    for value in (column if isinstance(column, list) else [column])
                ]
                found |= {"utterances"} if np.isin(scalars, self._single).any() else set()
        return found

    def scan_bytes(self, blob: bytes) -> set[str]:
        """Look for names in several encodings, and for samples as they lie in memory."""
        lower = blob.lower()
        found = {
            kind
            for kind, marker in MARKERS.items()
            if any(form in lower for form in _encodings(marker))
        }
        for dtype, words in self._words.items():
            for offset in range(np.dtype(dtype).itemsize):
                there = np.frombuffer(blob, "<u8", (len(blob) - offset) // 8, offset)
                hit = _among(there, words)
                if (
                    hit[:-2] & hit[1:-1] & hit[2:]
                ).any():  # one after the other: single words can be anything
                    found.add("audio")
        return found

    def _scan_array(self, name: str, values: Array) -> set[str]:
        name = re.sub(r"(_\d+)+$", "", name)  # of a partition, of a set of labels
        found = set() if name in KNOWN_ARRAYS else {"unknown"}
        if not np.issubdtype(values.dtype, np.number):
            return found
        if name in _COUNTS and ((values > 0) & (values < self._min_frames)).any():
            found.add("few")
        # a tail is as long as its objective has figures
        if values.ndim == 1 and len(values) in self._lengths and name != "tail":
            found.add("utterances")
        for flat in _flattened(values):
            if _count(_signatures(flat), self._signatures) >= 3:
                found.add("audio")
            if any(rows.in_(scaled) for scaled in _on_grids(flat) for rows in self._features):
                found.add("features")
            if _count(_label_keys(flat), self._label_keys):
                found.add("labels")
            if name not in _RANDOM_BYTES and any(_holds(flat, v) for _, v in self._vectors):
                found.add("utterances")
        return found


def _holds(flat: Array, vector: Array) -> bool:
    """Whether all of ``vector`` is in a short array in any order, or in a long one as it stands."""
    if len(flat) <= 50 * len(vector):
        return _count(vector, np.sort(flat)) == len(vector)
    starts = np.flatnonzero(flat[: len(flat) - len(vector) + 1] == vector[0])
    return any(np.array_equal(flat[start : start + len(vector)], vector) for start in starts)


def _count(values: Array, known: Array) -> int:
    """How many of ``values`` are among ``known``, which are sorted."""
    return int(_among(values, known).sum())


def _among(values: Array, known: Array) -> Array:
    if not known.size:
        return np.zeros(len(values), np.bool_)
    found: Array = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


def _values(message: Message) -> Iterator[tuple[str, Array]]:
    """Yield all arrays, and all lists and byte strings of other records as arrays."""
    if not message.has_content():
        return
    for arrays in message.content.array_records.values():
        for name, held in arrays.items():
            yield name, held.numpy()
    records = [*message.content.metric_records.values(), *message.content.config_records.values()]
    for value in (value for record in records for value in record.values()):
        if isinstance(value, list) and value and not isinstance(value[0], str | bytes):
            yield "update", np.array(value)  # of a name that is allowed
        elif isinstance(value, bytes) and len(value) >= 256:
            yield "update", np.frombuffer(value, np.uint8)


def _flattened(values: Array) -> Iterator[Array]:
    forms = [values.reshape(-1)]
    if values.ndim == 2:
        forms.append(values.T.reshape(-1))
    if values.dtype == np.int16:
        forms.append(
            torch.from_numpy(values.reshape(-1).copy()).view(torch.bfloat16).double().numpy()
        )
    yield from (np.nan_to_num(form.astype(np.float64)) for form in forms)


def _on_grids(flat: Array) -> Iterator[Array]:
    """Integers may be features in units of a power of two."""
    yield flat
    if flat.size and np.abs(flat).max() > 2**16 and np.array_equal(flat, np.rint(flat)):
        yield from (np.ldexp(flat, -bits) for bits in range(10, 32))


def _as(wave: Array, dtype: str) -> Array:
    return (
        np.rint(wave * 32768).clip(-32768, 32767).astype(dtype)
        if dtype == "<i2"
        else wave.astype(dtype)
    )


def _at_other_rates(site: Site) -> Iterator[Array]:
    for wave, stored_hz in zip(site.waveforms, site.rates_hz, strict=True):
        yield wave
        for rate_hz in {8000, 16000} - {stored_hz}:
            yield torchaudio.functional.resample(torch.from_numpy(wave), stored_hz, rate_hz).numpy()


def _signatures(values: Array) -> Array:
    """Which way the signal goes, over all windows of 48 samples: as 47 bits, the same for any gain and offset, and for either polarity."""
    keys, bits = (np.diff(values) > 0).astype(np.uint64), 1
    for more in (1, 2, 4, 8, 16, 15):  # a window of 2 n bits is two of n bits
        keys = keys[: max(0, len(keys) - more)] | (keys[more:] << np.uint64(more))
        bits += more
    assert bits == _SIGNS - 1
    keys = np.minimum(keys, np.uint64(2**bits - 1) - keys)
    return keys[np.bitwise_count(keys) >= 8]  # no long slope, nothing that stands still


def _words(values: Array) -> Array:
    """All runs of samples that fill eight bytes."""
    per_word = 8 // values.itemsize
    windows = np.lib.stride_tricks.sliding_window_view(values, per_word)[
        : len(values) - per_word + 1
    ]
    windows = windows[
        (np.abs(windows) > (8 if values.itemsize == 2 else 0)).all(axis=1)
    ]  # not what any small integer is
    return np.ascontiguousarray(windows).view("<u8").reshape(-1)


class _Rows:
    """Rows of features, known by their first 13 numbers."""

    def __init__(self, rows_FD: Array) -> None:
        rows = rows_FD[:, :_CEPSTRA].astype(np.float64)
        self._near = _NEAR * rows.std(axis=0)
        self._tree = cKDTree(rows / self._near)

    def in_(self, flat: Array) -> bool:
        """Whether a row stands somewhere in ``flat``, nearly."""
        if len(flat) < _CEPSTRA:
            return False
        windows = np.lib.stride_tricks.sliding_window_view(flat, _CEPSTRA) / self._near
        distances, _ = self._tree.query(windows, p=np.inf, distance_upper_bound=1.0)
        return bool(np.isfinite(distances).any())


def _label_keys(values: Array) -> Array:
    """All windows of 20 labels below 8, with four different ones at least, as numbers."""
    if len(values) < _LABELS:
        return np.zeros(0, np.uint64)
    possible = (values >= 0) & (values < 8) & (values == np.rint(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, _LABELS)
    windows = windows[
        np.lib.stride_tricks.sliding_window_view(possible, _LABELS).all(axis=1)
    ].astype(np.uint64)
    varied = (np.diff(np.sort(windows, axis=1), axis=1) > 0).sum(axis=1) >= 3
    return windows[varied] @ (np.uint64(1) << (3 * np.arange(_LABELS, dtype=np.uint64)))


def _per_utterance(site: Site) -> Iterator[tuple[str, Array]]:
    """Yield vectors over the utterances of the site."""
    samples = np.array([len(wave) for wave in site.waveforms], np.float64)
    rates = np.array(site.rates_hz)
    at_16k = -(-samples * 16000 // rates)
    yield "samples", samples
    yield "samples", at_16k
    yield "seconds", samples / rates
    yield "frames", 1 + (at_16k - 400) // 160
    yield "frames", 1 + (at_16k - 400) // 320


def _encodings(marker: str) -> Iterable[bytes]:
    """The marker as text of several kinds, lower case."""
    lower = marker.lower()
    yield lower.encode()
    yield lower.encode("utf-16-le")
    for text in (marker, lower):
        yield text.encode().hex().encode()
        for before in range(3):  # base64 of it, at each of the three places in a group
            coded = base64.b64encode(b"\0" * before + text.encode())
            yield coded[-(-before * 8 // 6) : (before + len(text)) * 8 // 6].lower()
