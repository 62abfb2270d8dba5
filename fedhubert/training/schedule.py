"""The learning rate over a whole run: rounds do not restart it."""

from fedhubert.config import ClientConfig


def learning_rate(progress: float, client: ClientConfig) -> float:
    """Return the rate at ``progress`` in [0, 1] of the run.

    Linear warm-up from 0 over ``client.warmup_fraction``, then ``linear`` decay to 0 (fairseq's polynomial decay of power 1) or ``constant``.
    """
    if progress < client.warmup_fraction:
        return client.lr * progress / client.warmup_fraction
    if client.schedule == "constant":
        return client.lr
    left = max(0.0, 1.0 - progress)
    return client.lr * left / max(1.0 - client.warmup_fraction, 1e-12)
