"""The learning rate over a whole run: rounds do not restart it."""

from fedhubert.config import ClientConfig


def learning_rate(progress: float, client: ClientConfig) -> float:
    """Return a client's rate at ``progress`` in [0, 1] of the run: ``client.lr`` by
    :func:`lr_factor`."""
    return client.lr * lr_factor(progress, client.warmup_fraction, client.schedule)


def lr_factor(progress: float, warmup_fraction: float, schedule: str) -> float:
    """Return what of the rate is left at ``progress`` in [0, 1] of the run.

    Linear warm-up from 0 over ``warmup_fraction``, then ``linear`` decay to 0 (fairseq's polynomial
    decay of power 1) or ``constant``.
    """
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return (
        1.0
        if schedule == "constant"
        else max(0.0, 1.0 - progress) / max(1.0 - warmup_fraction, 1e-12)
    )


def round_progress(round_number: int, num_rounds: int) -> float:
    """Return the share of the run that is done in the middle of a round, counted from 1."""
    return (round_number - 0.5) / num_rounds
