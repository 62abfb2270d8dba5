"""Sums over every client that nobody sees the parts of: moments and statistics for k-means, and
label counts. All of the cohort have to answer; what one has answered is the same again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedhubert.errors import FederationError
from fedhubert.federation.phases.asking import ask_again
from fedhubert.federation.roster.nodes import Federation, describe_failures, setting_of
from fedhubert.federation.roster.preflight import check_alike
from fedhubert.federation.rounds.secure_terms import terms_for, wire_terms
from fedhubert.federation.secure.opening import LIMIT, largest_entry
from fedhubert.federation.secure.tail import COUNT, decode
from fedhubert.federation.wire.messages.message import Failure
from fedhubert.federation.wire.messages.secure import MaskedCounts, Summing
from fedhubert.federation.wire.messages.targets import Label
from fedhubert.federation.wire.protocol import Reply

log = logging.getLogger("fedhubert")

Integers = npt.NDArray[np.int64]
Shapes = Mapping[str, tuple[int, ...]]
SummingT = TypeVar("SummingT", bound=Summing)


@dataclass(frozen=True)
class Totals:
    """Arrays by name, and figures, over all clients."""

    arrays: dict[str, Integers]
    figures: dict[str, int | float]


def sum_over_all(
    federation: Federation,
    instruction: SummingT,
    shapes: Shapes,
    names: Sequence[str],
    most_frames: Callable[[int], int],
) -> Totals:
    """Have every connected client follow ``instruction``, and return the totals of the arrays of
    ``shapes`` and of the figures ``names``.

    Those that fail are asked again up to ``federated.round_retries`` times.

    Args:
        most_frames: Of a client: its audio has no more.

    Raises:
        FederationError: one is missing all the same: what is left is noise, and the others answer
            for no other cohort; or totals that no audio of theirs has.
    """
    cohort = sorted(federation.connected)
    roster = federation.roster
    if roster and (missing := sorted(roster.sites.keys() - federation.connected)):
        raise FederationError(
            f"{instruction.KIND}: clients {missing} of the roster are not here, and sites sum "
            "features and labels over the whole roster alone; "
            "start again when they are, or with a roster without them",
            setting="secure.roster",
        )
    terms = terms_for(federation, instruction.KIND, 0, 0, cohort)
    said, keys = wire_terms(terms)
    asking = instruction.model_copy(
        update={"secure": said, "arrays": {**instruction.arrays, **keys}}
    )
    numel = sum(map(prod, shapes.values()))
    total, tail = np.zeros(numel, np.int64), np.zeros(len(names), np.int64)

    def take(reply: Reply[MaskedCounts]) -> list[Failure]:
        nonlocal total, tail
        if reply.answer is None or not reply.metrics:
            return []
        masked, figures = (
            reply.answer.arrays.get(name, np.zeros(0, np.int64)) for name in ("masked", "tail")
        )
        if masked.shape != total.shape or figures.shape != tail.shape:
            return [Failure(partition, "malformed") for partition in reply.metrics]
        if isinstance(instruction, Label):
            targets = federation.config.targets
            alike = {"num_clusters": targets.num_clusters, "label_rate_hz": targets.label_rate_hz}
            check_alike(reply.metrics, alike)
        total += np.asarray(masked, np.int64)
        tail += np.asarray(figures, np.int64)
        return []

    sizes = {"masked": total.nbytes, "tail": tail.nbytes}
    failures = ask_again(federation, asking, MaskedCounts, take, sizes, silent=True)
    if failures:
        raise FederationError(
            f"{instruction.KIND} failed: {describe_failures(failures)} (the site's log says more); "
            "with secure.protocol=pairwise k-means and "
            "label counts need every client that the run begins with: start again without the "
            "missing ones",
            setting=setting_of(failures) or "secure.protocol",
        )
    return _checked(federation, total, decode(tail, names), shapes, cohort, most_frames)


def _checked(
    federation: Federation,
    total: Integers,
    figures: dict[str, int | float],
    shapes: Shapes,
    cohort: Sequence[int],
    most_frames: Callable[[int], int],
) -> Totals:
    """Return the totals by name, in the order in which sites put them; raises
    :class:`FederationError` (``secure_garbage``)."""
    arrays: dict[str, Integers] = {}
    start = 0
    for name in sorted(shapes):
        size = prod(shapes[name])
        arrays[name] = total[start : start + size].reshape(shapes[name])
        start += size
    most = sum(map(most_frames, cohort))
    whole = figures[COUNT] == len(cohort) and 0 <= figures.get("frames", 0) <= most
    if not whole or largest_entry(total) >= LIMIT:
        raise FederationError(
            f"what {len(cohort)} clients sent does not add up: one has sent something else, or was "
            "told something else",
            setting="secure.protocol",
        )
    return Totals(arrays, figures)
