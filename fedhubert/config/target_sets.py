"""Sets of pseudo-labels that a model predicts side by side, each of its own kind of features."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedhubert.config.model import MAX_SETS, NUM_SPECIAL_ROWS

__all__ = ["MAX_SETS", "TargetSet", "of_set", "other_classes", "read_sets"]

PARTS = ("mfcc", "static", "deltas")
"""What of MFCC is clustered: all 39 numbers, the 13 cepstra, or their first and second
differences."""
SCALES = ("", "_z", "_speaker")
"""As they are; each number on the scale that it has in speech; each speaker's standardised."""

KINDS = tuple(f"{part}{scale}" for part in PARTS for scale in SCALES)

_SET = re.compile(rf"({'|'.join(KINDS)})(?::([1-9][0-9]{{0,6}}))?")


@dataclass(frozen=True)
class TargetSet:
    """A set of pseudo-labels: the kind of features that is clustered (of :data:`KINDS`, or
    ``layer:N``), and into how many clusters."""

    kind: str
    num_clusters: int


def read_sets(names: Sequence[str], num_clusters: int) -> tuple[TargetSet, ...]:
    """Return the sets that ``targets.sets`` names, each ``KIND`` or ``KIND:CLUSTERS``; the first
    has ``num_clusters``, as have those that say nothing else.

    Raises:
        ValueError: a name that is no kind, two equal sets, or a first one of other clusters.
    """
    sets = tuple(_read(names, num_clusters))
    if len(set(sets)) < len(sets):
        raise ValueError("two of them are the same")
    if sets and sets[0].num_clusters != num_clusters:
        raise ValueError(
            f"the first, {names[0]}, is the one that figures are of: its clusters are "
            f"num_clusters={num_clusters}"
        )
    return sets


def of_set(name: str, place: int) -> str:
    """Return what an array or a figure is called that every set has: the first set's has the plain
    ``name``, others their place behind it."""
    return f"{name}_{place}" if place else name


def other_classes(names: object, num_clusters: int) -> tuple[int, ...]:
    """Return the rows of label embeddings of all sets but the first; none where ``names`` are no
    sets, which is said where they are validated."""
    given = [name for name in names if isinstance(name, str)] if isinstance(names, Sequence) else []
    try:
        sets = read_sets(given, num_clusters)
    except ValueError:
        return ()
    return tuple(each.num_clusters + NUM_SPECIAL_ROWS for each in sets[1:])


def _read(names: Sequence[str], num_clusters: int) -> Iterator[TargetSet]:
    for name in names:
        found = _SET.fullmatch(name)
        if found is None:
            raise ValueError(
                f"{name!r} is none of {', '.join(KINDS)}, nor one of them with :CLUSTERS"
            )
        clusters = int(found[2] or num_clusters)
        if clusters < 2:
            raise ValueError(f"{name} has fewer than 2 clusters")
        yield TargetSet(found[1], clusters)
