"""ABX discriminability (Schatz et al. 2013): how often a segment X is nearer to a segment B of
another phone than to a segment A of its own.

Within speakers A, B and X are of one speaker; across speakers X is of another. Where contexts
count, all three have the same neighbours. A cell has the triples of one phone of A and X, one of B,
one context, one speaker of A and B, and one of X. Errors are averaged as ZeroSpeech and fastabx do:
over contexts and speakers of X, then over speakers, then over ordered pairs of phones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedhubert.data.partition import Rows
from fedhubert.evaluation.distances import Distance
from fedhubert.evaluation.resampling import interval, speaker_draws
from fedhubert.seeding import generator

_AT_ONCE = 4_000_000
"""Distances held, and triples compared: 16 MB each."""


@dataclass(frozen=True)
class Kinds:
    """What N segments are, each by number: their phone, context and speaker."""

    phones_N: Rows
    contexts_N: Rows
    speakers_N: Rows

    def drawn(self, most: int, seed: int) -> Rows:
        """Return, in order, the numbers of at most ``most`` segments of each phone, context and
        speaker, drawn at random; of all where ``most`` is 0."""
        count = len(self.phones_N)
        if not most:
            return np.arange(count)
        shuffled = generator(seed, "evaluation/abx").permutation(count)
        keys = np.stack([self.phones_N, self.contexts_N, self.speakers_N])[:, shuffled]
        order = np.lexsort(keys)
        changes = np.any(np.diff(keys[:, order], axis=1), axis=0)
        firsts = np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)
        sizes = np.diff(np.append(firsts, count))
        place = np.arange(count) - np.repeat(firsts, sizes)
        return np.sort(shuffled[order[place < most]])


@dataclass(frozen=True)
class Cells:
    """Errors of C cells: phones of A and B, speakers of A and of X."""

    phones_a_C: Rows
    phones_b_C: Rows
    speakers_C: Rows
    speakers_x_C: Rows
    errors_C: npt.NDArray[np.float64]


@dataclass(frozen=True)
class AbxScore:
    """An error rate, the middle 95 % of it over resampled speakers (None for a single one), and how
    many cells and ordered pairs of phones it is of."""

    error: float
    interval: list[float] | None
    cells: int
    pairs: int


def score(kinds: Kinds, distance: Distance) -> tuple[Cells, Cells]:
    """Return the cells within and across speakers."""
    within: list[_Found] = []
    across: list[_Found] = []
    for context in np.unique(kinds.contexts_N).tolist():
        (there,) = np.nonzero(kinds.contexts_N == context)
        there = there[np.lexsort((kinds.phones_N[there], kinds.speakers_N[there]))]
        speakers, firsts = np.unique(kinds.speakers_N[there], return_index=True)
        groups = dict(zip(speakers.tolist(), np.split(there, firsts[1:]), strict=True))
        for speaker, ab in groups.items():
            for other, xs in groups.items():
                cells = _block(distance, kinds, xs, ab, is_same=other == speaker)
                (within if other == speaker else across).extend(cells)
    return _cells(within), _cells(across)


def summarise(cells: Cells, seed: int) -> AbxScore | None:
    """Return the mean error and its interval; None without a cell."""
    if not len(cells.errors_C):
        return None
    speakers, numbers = np.unique(
        np.stack([cells.speakers_C, cells.speakers_x_C]), return_inverse=True
    )
    number_of = numbers.reshape(2, -1)
    table = _Table(cells, number_of[0], number_of[1])
    error = table.mean(np.ones(len(speakers)))
    resampled = None
    if len(speakers) > 1:
        resampled = interval([table.mean(draws) for draws in speaker_draws(len(speakers), seed)])
    return AbxScore(error, resampled, len(cells.errors_C), table.num_pairs)


_Found = tuple[int, Rows, int, int, npt.NDArray[np.float64]]
"""A phone of A and X, the phones of B, the speakers of A and X, the errors."""


def _block(
    distance: Distance, kinds: Kinds, xs: Rows, ab: Rows, *, is_same: bool
) -> Iterator[_Found]:
    """Yield the cells of one speaker's X and another's A and B, both sorted by phone; or of the
    same segments (``is_same``), of which none is its own A."""
    phones, firsts, sizes = np.unique(kinds.phones_N[ab], return_index=True, return_counts=True)
    whole = distance(xs, ab) if len(phones) > 1 and len(xs) * len(ab) <= _AT_ONCE else None
    speakers = int(kinds.speakers_N[ab[0]]), int(kinds.speakers_N[xs[0]])
    for number, (phone, first, size) in enumerate(
        zip(phones.tolist(), firsts.tolist(), sizes.tolist(), strict=True)
    ):
        (of_phone,) = np.nonzero(kinds.phones_N[xs] == phone)
        choices = size - is_same
        if not len(of_phone) or not choices or len(phones) == 1:
            continue
        to_all = distance(xs[of_phone], ab) if whole is None else whole[of_phone]
        to_a = to_all[:, first : first + size].copy()
        if is_same:
            np.fill_diagonal(to_a, np.inf)
        nearer = np.zeros(len(ab))
        some = max(1, _AT_ONCE // (size * len(ab)))
        for start in range(0, len(of_phone), some):
            a, b = to_a[start : start + some, :, None], to_all[start : start + some, None, :]
            nearer += np.count_nonzero(a < b, axis=(0, 1))
            nearer += 0.5 * np.count_nonzero(a == b, axis=(0, 1))
        errors = 1.0 - np.add.reduceat(nearer, firsts) / (sizes * (len(of_phone) * choices))
        others = np.arange(len(phones)) != number
        yield phone, phones[others], *speakers, errors[others]


def _cells(found: list[_Found]) -> Cells:
    sizes = [len(errors) for *_, errors in found]

    def spread(column: int) -> Rows:
        return np.repeat(np.array([cell[column] for cell in found], np.int64), sizes)

    empty = [np.zeros(0)]
    return Cells(
        spread(0),
        np.concatenate([phones_b for _, phones_b, *_ in found] or empty).astype(np.int64),
        spread(2),
        spread(3),
        np.concatenate([errors for *_, errors in found] or empty),
    )


class _Table:
    """Errors summed over contexts, ready to be averaged with any weights of the speakers."""

    def __init__(self, cells: Cells, speakers_C: Rows, speakers_x_C: Rows) -> None:
        keys = np.stack([cells.phones_a_C, cells.phones_b_C, speakers_C, speakers_x_C])
        unique, rows = np.unique(keys, axis=1, return_inverse=True)
        rows = rows.reshape(-1)
        self._sums = np.bincount(rows, cells.errors_C)
        self._counts = np.bincount(rows)
        self._x = unique[3]
        self._is_across = bool(np.any(speakers_C != speakers_x_C))
        by_speaker, self._speaker_rows = np.unique(unique[:3], axis=1, return_inverse=True)
        self._speaker_rows = self._speaker_rows.reshape(-1)
        self._speakers = by_speaker[2]
        pairs, self._pair_rows = np.unique(by_speaker[:2], axis=1, return_inverse=True)
        self._pair_rows = self._pair_rows.reshape(-1)
        self.num_pairs = pairs.shape[1]

    def mean(self, weights_S: npt.NDArray[np.float64]) -> float:
        """Return the error with weighted speakers; not a number where no pair is left."""
        of_x = weights_S[self._x] if self._is_across else np.ones(len(self._x))
        with np.errstate(invalid="ignore"):
            errors = np.bincount(self._speaker_rows, of_x * self._sums) / np.bincount(
                self._speaker_rows, of_x * self._counts
            )
            weights = weights_S[self._speakers] * np.isfinite(errors)
            pairs = np.bincount(self._pair_rows, weights * np.nan_to_num(errors)) / np.bincount(
                self._pair_rows, weights
            )
        pairs = pairs[np.isfinite(pairs)]
        return float(pairs.mean()) if len(pairs) else float("nan")
