"""Failures on purpose (``faults.*``), so that users can rehearse what a run does when clients
fail."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhubert.config import FaultsConfig
from fedhubert.seeding import generator


class InjectedCrash(Exception):
    """A node that dies on purpose: no reply of ours is sent, Flower reports an error."""


def crash_if_drawn(
    faults: FaultsConfig, seed: int, round_number: int, attempt: int, partitions: Sequence[int]
) -> None:
    """Raise :class:`InjectedCrash` if one of the node's partitions draws it: the node takes all of
    them with it."""
    for partition in partitions:
        if (
            generator(seed, "faults/crash", round_number, attempt, partition).random()
            < faults.crash
        ):
            raise InjectedCrash(f"faults.crash: round {round_number}, partition {partition}")


def wait_if_drawn(
    faults: FaultsConfig, seed: int, round_number: int, attempt: int, partition: int
) -> None:
    """Sleep for a drawn part of ``faults.delay_s``."""
    if faults.delay_s:
        time.sleep(
            faults.delay_s
            * generator(seed, "faults/delay", round_number, attempt, partition).random()
        )


def spoil_if_drawn(
    faults: FaultsConfig,
    seed: int,
    round_number: int,
    attempt: int,
    partition: int,
    update: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Return ``update`` [P], or a copy with a NaN in it, or one that is an entry short."""
    rng = generator(seed, "faults/update", round_number, attempt, partition)
    spoil, truncate = rng.random(2) < (faults.nan, faults.truncate)
    if spoil:
        update = update.copy()
        update[rng.integers(len(update))] = np.nan
    return update[:-1] if truncate else update
