"""The learning rate over a whole run: rounds do not restart it."""

from fedhubert.config import ClientConfig


def learning_rate(progress: float, client: ClientConfig) -> float:
    """Return the rate at ``progress`` in [0, 1] of the run: linear warm-up, then linear decay to zero (or constant)."""
    if progress < client.warmup_fraction:
        return client.lr * progress / client.warmup_fraction
    if client.schedule == "constant":
        return client.lr
    return client.lr * max(0.0, 1.0 - progress) / max(1.0 - client.warmup_fraction, 1e-12)
