"""What of a secure sum is known before it is opened, and what is believed of it afterwards."""

import math
from collections.abc import Sequence

from fedhubert.federation.roster.bounds import check_sums, training_bounds
from fedhubert.federation.roster.nodes import Federation
from fedhubert.federation.rounds.journal import Attempt, Entry, Journal
from fedhubert.federation.rounds.limits import RoundLimits, sums_of
from fedhubert.federation.rounds.metrics import check_metrics
from fedhubert.federation.rounds.secure_sum import Sums
from fedhubert.federation.rounds.state import RoundState
from fedhubert.federation.secure.errors import SecureError
from fedhubert.federation.secure.figures import CLEAR
from fedhubert.federation.wire.messages.rounds import Evaluate


def opened_before(
    replayed: Entry | None, state: RoundState, journal: Journal | None, number: int
) -> tuple[list[int], list[int]]:
    """Return the cohort of a sum of round ``number``'s model that was opened before, and over whom:
    another would be refused. A repeated round's, that of one that could not be read, or of the
    score of what was the final model until the run went on."""
    if replayed:
        return list(replayed.cohort), sorted(replayed.steps)
    if state.secure_cohort:
        return list(state.secure_cohort), list(state.secure_included or state.secure_cohort)
    scored = journal.attempt_of(Evaluate.KIND, number - 1) if journal else Attempt()
    return (scored.cohort, scored.included) if scored.included else ([], [])


def power_above_weights(federation: Federation, limits: RoundLimits, cohort: Sequence[int]) -> int:
    """Return a power of two that no weight of the cohort exceeds."""
    bounds = [
        training_bounds(federation.config, about, limits.weight).weight
        for partition in cohort
        if (about := federation.partitions.get(partition)) is not None
    ]
    return 1 << max(1, *bounds).bit_length()


def is_possible(
    federation: Federation, limits: RoundLimits, partition: int, numbers: dict[str, int | float]
) -> bool:
    """Whether what a client says in the clear is not more than its data allows."""
    about = federation.partitions.get(partition)
    if about is None or numbers.keys() != set(CLEAR):
        return False
    bounds = training_bounds(federation.config, about, limits.weight)
    return (
        1 <= numbers["train_steps"] <= bounds.steps
        and 1 <= numbers["train_micro_batches"] <= bounds.micro_batches
    )


def check_opened(
    sums: Sums, federation: Federation, limits: RoundLimits, partitions: Sequence[int]
) -> None:
    """Raise :class:`SecureError` for figures that the data of ``partitions`` cannot have."""
    about = [federation.partitions[partition] for partition in partitions]
    bounds = [training_bounds(federation.config, each, limits.weight) for each in about]
    audio_s = float(sums["train_audio_s"])
    validation_s = math.fsum(float(each.get("validation_audio_s", 0.0)) for each in about)
    try:
        if not len(about) <= sums["weight"] <= sum(bound.weight for bound in bounds):
            raise ValueError("weights")
        if not 0.0 <= audio_s <= math.fsum(bound.audio_s for bound in bounds):
            raise ValueError("audio")
        check_metrics(sums, limits.objective)
        # a second for what rounding adds for each
        check_sums(federation.config, sums_of(sums, "train_"), audio_s + len(about))
        check_sums(federation.config, sums_of(sums, "validation_"), validation_s + len(about))
    except ValueError as error:
        raise SecureError("secure_garbage", f"figures out of range: {error}") from None
