"""How far the clients' updates of a round point apart."""

import math
from collections.abc import Mapping

from fedhubert.clients import Metrics
from fedhubert.federation.secure.figures import FINER


def drift_of(clients: Mapping[int, Metrics], mean_norm: float) -> dict[str, float]:
    """Return how far the clients' updates u_i, of weights w_i and mean m of norm ``mean_norm``,
    point apart.

    ``update_norm`` is the weighted mean of |u_i|, ``mean_update_norm`` is |m|. ``pairwise_cosine``
    is the mean cosine of two clients' updates, pairs weighted by w_i |u_i| w_j |u_j|. It follows
    from norms, since |sum w_i u_i|^2 - sum w_i^2 |u_i|^2 is the sum of w_i w_j <u_i, u_j> over
    pairs; so no update has to be kept, or looked at twice. It is left out where there is no pair.
    """
    ordered = [clients[partition] for partition in sorted(clients)]
    total = math.fsum(float(client["weight"]) for client in ordered)
    lengths = [float(client["weight"]) / total * float(client["update_norm"]) for client in ordered]
    return _drift(
        math.fsum(lengths), math.fsum(length**2 for length in lengths), len(lengths), mean_norm
    )


def pooled_drift(
    sums: Mapping[str, int | float], clients: int, scale: float, mean_norm: float
) -> dict[str, float]:
    """Return :func:`drift_of` so many ``clients`` of which only sums are known: of w_i |u_i|, and
    of its square on another scale (:func:`fedhubert.federation.secure.figures.train_figures`)."""
    total = float(sums["weight"])
    mean_length = sums["weighted_norm"] / total
    own = sums["weighted_norm_squared"] * (scale / FINER / total) ** 2
    return _drift(mean_length, own, clients, mean_norm)


def _drift(mean_length: float, own: float, clients: int, mean_norm: float) -> dict[str, float]:
    drift = {"update_norm": mean_length, "mean_update_norm": mean_norm}
    pairs = mean_length**2 - own
    if clients > 1 and pairs > 1e-9 * own:  # else all but one are zero
        drift["pairwise_cosine"] = (mean_norm**2 - own) / pairs
    return drift
