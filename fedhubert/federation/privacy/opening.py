"""What a run does about its privacy before its first round: the secret, what was spent so far, and
what is said of it."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedhubert.config import Config
from fedhubert.errors import ConfigError
from fedhubert.federation.privacy.accounting import Ledger, Releases
from fedhubert.federation.privacy.distributed import DistributedPrivacy
from fedhubert.federation.privacy.mechanism import CentralPrivacy, Mechanism
from fedhubert.federation.privacy.secret import FILE_NAME, create_secret, load_secret
from fedhubert.objectives.spec import spec_of

log = logging.getLogger("fedhubert")


def open_privacy(
    config: Config, folder: Path, state: Mapping[str, Any] | None, releases: Releases
) -> Mechanism | None:
    """Return the mechanism of the run whose checkpoints are in ``folder``; None where none is asked
    for.

    Args:
        releases: What the run's journal has released already
            (:meth:`~fedhubert.federation.rounds.journal.Journal.releases`).
        state: What the checkpoint to go on from has of it (:meth:`Mechanism.to_plain`); None
            for a run that has no checkpoint yet.

    Raises:
        CheckpointError: a run that is resumed has lost its secret.
        ConfigError: ``dp-accounting`` is missing.
    """
    if not config.privacy.enabled:
        return None
    ledger, clip_norm = ledger_of(config, state or {}, releases), (state or {}).get("clip_norm")
    if not config.privacy.central:
        return DistributedPrivacy(config, ledger, clip_norm)
    begun = state is not None or bool(releases()) or (folder / FILE_NAME).exists()
    secret = load_secret(folder) if begun else create_secret(folder)
    return CentralPrivacy(config, secret, ledger, clip_norm)


def ledger_of(
    config: Config, state: Mapping[str, Any] | None = None, releases: Releases = dict
) -> Ledger:
    """Return what a run has spent by ``state``, what its last checkpoint says of its privacy, and
    its journal's ``releases``; without either, nothing."""
    state = state or {}
    before = [
        (float(sampling), float(noise), int(rounds))
        for sampling, noise, rounds in state.get("before", ())
    ]
    return Ledger(
        config.federated.client_fraction if config.privacy.central else 1.0,
        config.privacy.noise_multiplier,
        before,
        int(state.get("begin", 0)),
        releases,
    )


def fork_privacy(
    source: Config,
    state: Mapping[str, object] | None,
    releases: Releases,
    number: int,
    config: Config,
) -> dict[str, object] | None:
    """Return what a run under ``config`` begins with that is forked from round ``number`` of
    ``source``.

    It has spent all that the source has, by its journal also after that round: the same clients'
    data are in it.

    Raises:
        ConfigError: the source had no such privacy: its model is not private, and nothing that is
            done to it will make it so.
    """
    if not config.privacy.enabled:
        return None
    if not source.privacy.enabled or state is None:
        raise ConfigError(
            "the run to fork from was trained without differential privacy, so no epsilon covers "
            "what comes of it: "
            f"start anew with privacy={config.privacy.mechanism}",
            setting="privacy.mechanism",
        )
    ledger = ledger_of(source, state, releases)
    clip_norm = (
        state["clip_norm"]
        if source.privacy.clip_norm == config.privacy.clip_norm
        else config.privacy.clip_norm
    )
    before = [list(kind) for kind in ledger.through(ledger.newest(number))]
    return {"clip_norm": clip_norm, "before": before, "begin": number}


def announce(privacy: Mechanism, config: Config, next_round: int) -> None:
    """Log what the run will spend, and what epsilon does not cover.

    Raises:
        ConfigError: a run that begins has a budget that does not allow its first round.
    """
    settings, last = config.privacy, config.federated.num_rounds
    if settings.max_epsilon is not None and not privacy.allows(next_round) and next_round == 1:
        raise ConfigError(
            f"privacy.max_epsilon={settings.max_epsilon:g} does not allow a single round, which "
            f"has epsilon {privacy.epsilon(1):.3g}: "
            "raise privacy.noise_multiplier"
            + (", or lower federated.client_fraction" if settings.central else ""),
            setting="privacy.max_epsilon",
        )
    log.info(
        "privacy: epsilon %.3g at delta %g after round %d; noise multiplier %g, %s",
        privacy.epsilon(last),
        settings.delta,
        last,
        settings.noise_multiplier,
        f"each client in a round with probability {config.federated.client_fraction:g}"
        if not isinstance(privacy, DistributedPrivacy)
        else (
            f"added by the clients, if {privacy.honest} of each sum are honest "
            f"(privacy.colluding={settings.colluding})"
        ),
    )
    if settings.max_epsilon is not None:
        log.info(
            "privacy: the budget of %g ends the run after round %d",
            settings.max_epsilon,
            _last_allowed(privacy, last),
        )
    for what in _outside(config):
        log.warning("outside epsilon: %s", what)


def _last_allowed(privacy: Mechanism, last: int) -> int:
    low, high = 0, last
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if privacy.allows(middle) else (low, middle - 1)
    return low


def _outside(config: Config) -> Iterator[str]:
    """Name what depends on the clients' data and is not covered by epsilon."""
    yield (
        "metrics.jsonl, the log, and what is made of them (exact figures, who took part): keep "
        "them on the server"
    )
    if not config.privacy.central:
        yield (
            "the sums of figures beside the updates (losses, norms, counts), which are opened "
            "exactly"
        )
    if config.task.needs_labels and config.targets.kind == "kmeans":
        yield "the k-means targets (sums and counts of the clients' frames, without noise)"
    if config.privacy.client_metrics:
        yield (
            "the clients' exact figures in checkpoints and exports, and what goes by them "
            "(privacy.client_metrics=true)"
        )
    if config.targets.of_a_layer:
        yield (
            "the model of targets.checkpoint, whose layer the targets are of, if it was trained on "
            "these clients' data"
        )
    if spec_of(config.task).taught is not None:
        yield (
            "the teacher (task.teacher), which the student learns from, if it was trained on these "
            "clients' data"
        )
    if config.init_from is not None:
        yield "the encoder of init_from, if it was trained on these clients' data"
