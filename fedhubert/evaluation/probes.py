"""Linear probes: logistic regression on standardised, frozen features, always scored on speakers or
utterances that it has not seen."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedhubert.data.partition import Rows
from fedhubert.errors import DataError
from fedhubert.evaluation.resampling import ratio_interval
from fedhubert.evaluation.sklearn_extra import require_sklearn
from fedhubert.seeding import derive_seed

Fold = tuple[Rows, Rows]
"""Items to fit on, items to score."""

_MAX_ITERATIONS = 200
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ProbeResult:
    """Figures of a probe over its folds; every scored item counts once.

    Attributes:
        accuracy: Share of items named rightly.
        fold_accuracies: The same per fold.
        majority: What naming the most frequent label of the items fitted on would give.
        items, classes: How many were scored, and how many labels there are among them.
        interval: The middle 95 % of the accuracy over resampled speakers of the scored items; None
            for a single one.
    """

    accuracy: float
    fold_accuracies: list[float]
    majority: float
    items: int
    classes: int
    interval: list[float] | None = None


def linear_probe(
    features_ND: npt.NDArray[np.float32],
    labels_N: Rows,
    folds: Sequence[Fold],
    speakers_N: Sequence[str] | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Fit and score a probe on each fold; with ``speakers_N``, with an interval, whose resamples
    ``seed`` draws.

    Raises:
        DataError: a fold whose items to fit on have one label only.
    """
    require_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    right, constant, sizes = [], [], []
    correct_N = np.zeros(len(labels_N))
    for fit, score in folds:
        if len(np.unique(labels_N[fit])) < 2:
            raise DataError(
                "a probe needs at least two labels to tell apart in what it is fitted on",
                setting="--probe",
            )
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
        )
        with (
            warnings.catch_warnings(),
            threadpool_limits(1),
        ):  # so small a problem is not faster on many, and far slower on a busy machine
            # cut off: all rows of a table alike
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(features_ND[fit], labels_N[fit])
        correct_N[score] = probe.predict(features_ND[score]) == labels_N[score]
        right.append(int(correct_N[score].sum()))
        constant.append(int((labels_N[score] == np.bincount(labels_N[fit]).argmax()).sum()))
        sizes.append(len(score))
    scored = np.concatenate([score for _, score in folds])
    interval = None
    if speakers_N is not None:
        said = np.asarray(speakers_N)[scored]
        interval = ratio_interval(correct_N[scored], np.ones(len(scored)), said, seed)
    return ProbeResult(
        sum(right) / sum(sizes),
        [correct / size for correct, size in zip(right, sizes, strict=True)],
        sum(constant) / sum(sizes),
        sum(sizes),
        len(np.unique(labels_N[scored])),
        interval,
    )


def speaker_disjoint_folds(speakers_N: Sequence[str], num_folds: int) -> list[Fold]:
    """Return folds in which no speaker is both fitted on and scored: as many as there are speakers,
    at most ``num_folds``.

    Raises:
        DataError: a single speaker.
    """
    require_sklearn()
    from sklearn.model_selection import GroupKFold

    count = min(num_folds, len(set(speakers_N)))
    if count < 2:
        raise DataError(
            "all labelled audio is of one speaker, and a probe is scored on speakers that it has "
            "not seen: add --train-manifest with others",
            setting="--train-manifest",
        )
    items = np.zeros(len(speakers_N))
    return [
        (fit, score) for fit, score in GroupKFold(count).split(items, groups=np.asarray(speakers_N))
    ]


def utterance_folds(labels_N: Rows, num_folds: int, seed: int) -> list[Fold]:
    """Return folds over utterances that each have every label (for probing who speaks, where
    speakers cannot be disjoint).

    Labels with a single utterance are left out of all folds.

    Raises:
        DataError: fewer than two labels have two utterances.
    """
    require_sklearn()
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(labels_N)
    kept = np.flatnonzero(counts[labels_N] >= 2)
    if len(np.unique(labels_N[kept])) < 2:
        raise DataError(
            "a probe of speakers needs two speakers with two utterances each", setting="--probe"
        )
    count = min(num_folds, int(counts[np.unique(labels_N[kept])].min()))
    splitter = StratifiedKFold(
        count, shuffle=True, random_state=derive_seed(seed, "evaluation/folds") % 2**32
    )
    return [
        (kept[fit], kept[score])
        for fit, score in splitter.split(np.zeros(len(kept)), labels_N[kept])
    ]
