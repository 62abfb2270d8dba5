"""How much of a disk a run takes, and whether it is there. Arithmetic over the number of parameters
and the seconds of audio."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from fedhubert.config import ClientConfig, Config
from fedhubert.errors import CheckpointError, ConfigError
from fedhubert.federation.strategies.strategy import strategy_of
from fedhubert.models.hubert import num_parameters
from fedhubert.targets.sets import mfcc_source
from fedhubert.training.muon import numel_of_matrices
from fedhubert.training.parameters import ParameterLayout

_STATE_VERSIONS = 4
"""Versions of a partition's state that its site keeps at most (see
:mod:`fedhubert.clients.state`)."""


def checkpoint_bytes(config: Config, layout: ParameterLayout, parameters: int) -> int:
    """Return the bytes of a round's checkpoint with what resuming needs.

    Args:
        layout: Of the parameters that travel.
        parameters: All of them, frozen ones included.
    """
    return saved_model_bytes(config, parameters) + server_state_bytes(config, layout)


def saved_model_bytes(config: Config, parameters: int) -> int:
    """Return the bytes of the model in a checkpoint. Heads of several sets of labels are there
    twice: as they are trained, and as one, which fairseq's form has."""
    model = config.model
    if not model.other_classes:
        return 4 * parameters
    rows = sum((model.num_classes, *model.other_classes))
    projections = (1 + len(model.other_classes)) * (model.embed_dim + 1)
    return 4 * (parameters + model.final_dim * (rows + projections))


def server_state_bytes(config: Config, layout: ParameterLayout) -> int:
    """Return the bytes of what the strategy keeps between rounds, and of clients' momenta."""
    kept = strategy_of(config.federated).state_numel(layout.without_momenta)
    return 4 * (kept + layout.num_momenta)


def checkpoints_disk(config: Config, layout: ParameterLayout, parameters: int) -> int:
    """Return the bytes of the checkpoints that are kept, with the one that is being written."""
    checkpoint, rounds = config.checkpoint, config.federated.num_rounds
    kept = min(checkpoint.keep_last + 1, math.ceil(rounds / checkpoint.every))
    best = (checkpoint.keep_best and rounds > 1) * saved_model_bytes(config, parameters)
    return kept * checkpoint_bytes(config, layout, parameters) + best


def labels_disk(config: Config, audio_s: float) -> float:
    """Return the bytes of a client's pseudo-labels of so many seconds of audio."""
    targets = config.targets
    if not config.task.needs_labels or targets.kind != "kmeans":
        return 0.0
    sets = targets.label_sets
    width = 2 if max(each.num_clusters for each in sets) <= 2**15 else 4
    return len(sets) * width * targets.label_rate_hz * audio_s


def sample_disk(config: Config, train_s: float, width: int | None = None) -> float:
    """Return the bytes of k-means' sample of a client's features [frames, ``width``]; None: kinds
    of MFCC."""
    targets = config.targets
    if not config.task.needs_labels or targets.kind != "kmeans":
        return 0.0
    width = mfcc_source(targets).dimension if width is None else width
    return 4.0 * width * min(targets.max_frames_per_client, targets.label_rate_hz * train_s)


def state_disk(config: Config, layout: ParameterLayout) -> int:
    """Return the bytes of the optimiser and left-over rounding that a client carries from round to
    round."""
    keeps = config.client.optimizer_policy == "keep"
    kept = optimizer_bytes(config.client, layout) if keeps else 0
    kept += 4 * layout.numel if config.federated.update_codec == "int8" else 0
    return _STATE_VERSIONS * kept


def optimizer_bytes(settings: ClientConfig, layout: ParameterLayout) -> int:
    """Return the bytes of a local optimiser's state."""
    layout = layout.without_momenta
    if settings.optimizer == "muon":
        return 8 * layout.numel - 4 * numel_of_matrices(layout)
    return layout.numel * (8 if settings.optimizer == "adamw" else 4 if settings.momentum else 0)


def check_checkpoint_space(
    config: Config, folder: Path, layout: ParameterLayout, model: nn.Module
) -> None:
    """Raise :class:`CheckpointError` where the disk of ``folder`` has no room for the checkpoints
    that are still to come."""
    there = sum(file.stat().st_size for file in folder.glob("*.pt"))
    needed = checkpoints_disk(config, layout, num_parameters(model)) - there
    short = _lacking(folder, needed)
    if short:
        raise CheckpointError(
            f"checkpoints take {_size(needed)} of {folder}, where {short}: free some space, "
            "choose another out=... (or checkpoint_dir=...), or keep fewer "
            f"(checkpoint.keep_last={config.checkpoint.keep_last})",
            setting="checkpoint.keep_last",
        )


def check_site_space(
    config: Config,
    folder: Path,
    layout: ParameterLayout,
    seconds: Iterable[tuple[float, float]],
    *,
    feature_width: int,
    kept_bytes: int,
) -> None:
    """Raise :class:`ConfigError` where the disk of the state folder has no room for what all
    clients keep there; caches, which do without, are not counted.

    Args:
        seconds: Of audio to train on and held out, by client.
        feature_width: Of the features that k-means sees.
        kept_bytes: Of a teacher and an extractor, which all clients on this host share.
    """
    needed = kept_bytes + sum(
        labels_disk(config, train_s + held_out_s)
        + sample_disk(config, train_s, feature_width)
        + state_disk(config, layout)
        for train_s, held_out_s in seconds
    )
    short = _lacking(folder, needed)
    if short:
        raise ConfigError(
            f"labels, features, optimisers and models of the clients take {_size(needed)} of "
            f"{folder}, where {short}: free some space, "
            "or choose another client.state_dir=...",
            setting="client.state_dir",
        )


def _lacking(folder: Path, needed: float) -> str:
    """Return how much is free where ``folder`` is, or will be, if that is less than ``needed``."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return f"{_size(free)} are free" if free < needed else ""


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
