"""Intervals by bootstrap over speakers: utterances of one speaker are not independent of each
other."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedhubert.seeding import generator

Floats = npt.NDArray[np.float64]

_RESAMPLES = 500
_LOW, _HIGH = 2.5, 97.5


def speaker_draws(count: int, seed: int) -> Floats:
    """Return how often each of ``count`` speakers is drawn in each resample [R, S], with
    replacement; the same for whatever is resampled under this seed."""
    rng = generator(seed, "evaluation/bootstrap")
    draws = rng.integers(count, size=(_RESAMPLES, count))
    return np.stack([np.bincount(drawn, minlength=count) for drawn in draws]).astype(np.float64)


def interval(figures: Sequence[float] | Floats) -> list[float] | None:
    """Return the middle 95 % of resampled figures, those that are not numbers left out; None
    without one."""
    known = np.asarray(figures, np.float64)
    known = known[np.isfinite(known)]
    return np.percentile(known, [_LOW, _HIGH]).tolist() if len(known) else None


def ratio_interval(
    parts_N: npt.ArrayLike, wholes_N: npt.ArrayLike, speakers_N: npt.ArrayLike, seed: int
) -> list[float] | None:
    """Return the interval of ``sum(parts) / sum(wholes)``, summed over each speaker's items; None
    for a single speaker."""
    names, numbers = np.unique(np.asarray(speakers_N), return_inverse=True)
    if len(names) < 2:
        return None
    draws_RS = speaker_draws(len(names), seed)
    parts_S, wholes_S = (
        np.bincount(numbers, np.asarray(values, np.float64), len(names))
        for values in (parts_N, wholes_N)
    )
    with np.errstate(invalid="ignore"):
        return interval((draws_RS @ parts_S) / (draws_RS @ wholes_S))
