"""What a client can say of itself at most: by what its site described, by the configuration, and by
what the median client has.

A site is believed what it describes of its data; everything after that has to fit. What a weight
can be beyond that is a multiple of the median client's (``federated.max_weight_ratio``), so that a
site that describes a thousand years of audio is not the whole mean.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fedhubert.clients import Metrics
from fedhubert.config import Config
from fedhubert.objectives.spec import spec_of

FRAME_RATE_HZ = 50
"""Frames of the encoder."""
_SLACK = 1.01
"""What rounding of lengths adds up to, several times over."""
_COUNTED = ("train_utterances", "train_audio_s", "batches_per_epoch")
_MOST_AUDIO_S = 2.0**40
_COSINE_LOSS = 1.1
"""What lower precision adds to a loss whose logits are cosines over a temperature."""


@dataclass(frozen=True)
class TrainingBounds:
    """The most that a client of a round can have: optimiser steps, micro-batches, seconds of audio
    heard, and weight."""

    steps: int
    micro_batches: int
    audio_s: float
    weight: int


def contradiction(config: Config, about: Metrics) -> str:
    """Return what is wrong with the description of a partition, or an empty string."""
    if not all(value >= 0 for value in about.values()):
        return "a negative number"
    if not 1 <= about["batches_per_epoch"] <= about["train_utterances"]:
        return "more batches than utterances"
    audio_s = about["train_audio_s"] + about["validation_audio_s"]
    utterances = about["train_utterances"] + about["validation_utterances"]
    if audio_s > _MOST_AUDIO_S or utterances * config.data.min_seconds > audio_s * _SLACK + 1.0:
        return "more utterances than audio"
    return ""


def training_bounds(
    config: Config, about: Mapping[str, int | float], weight_limit: int | None = None
) -> TrainingBounds:
    """Return what the client that ``about`` describes can have in one round; ``weight_limit``: what
    no weight may exceed."""
    client, epoch = config.client, max(1, int(about["batches_per_epoch"]))
    steps = client.steps_per_round(epoch)
    micro_batches = steps * client.accumulate
    epochs = math.ceil(micro_batches / epoch) + 1  # that it touches
    audio_s = (
        min(micro_batches * config.data.batch_seconds, epochs * float(about["train_audio_s"]))
        * _SLACK
        + 1.0
    )
    weights = {
        "frames": int(audio_s * FRAME_RATE_HZ),
        "utterances": int(about["train_utterances"]),
        "uniform": 1,
    }
    weight = weights[config.federated.weight_by]
    return TrainingBounds(
        steps, micro_batches, audio_s, weight if weight_limit is None else min(weight, weight_limit)
    )


def median_client(partitions: Mapping[int, Metrics]) -> dict[str, float]:
    """Return the medians of what the partitions are described to have, empty without any."""
    described = list(partitions.values())
    return (
        {name: statistics.median(float(about[name]) for about in described) for name in _COUNTED}
        if described
        else {}
    )


def weight_limit(config: Config, median: Mapping[str, float]) -> int | None:
    """Return the most that an update weighs: ``federated.max_weight_ratio`` times the most of the
    ``median`` client; None: no limit."""
    ratio = config.federated.max_weight_ratio
    if not ratio or not median or config.federated.weight_by == "uniform":
        return None
    return max(1, int(ratio * training_bounds(config, median).weight))


def feature_frames(config: Config, about: Metrics) -> int:
    """Return the most frames of a client that k-means sees: all of its audio, since a site may draw
    a sample of its own size over both splits."""
    rate_hz = FRAME_RATE_HZ if config.targets.of_a_layer else 100
    return _frames(about, "train", rate_hz) + _frames(about, "validation", rate_hz)


def label_frames(config: Config, about: Metrics, split: str) -> int:
    """Return the most labelled frames of a client's ``split``."""
    return _frames(about, split, config.targets.label_rate_hz)


def _frames(about: Metrics, split: str, rate_hz: int) -> int:
    return int(float(about[f"{split}_audio_s"]) * rate_hz * _SLACK) + 2 * int(
        about[f"{split}_utterances"]
    )


def check_sums(config: Config, sums: Mapping[str, float], audio_s: float) -> None:
    """Raise ``ValueError`` where an objective's sums (names without ``train_`` or ``validation_``)
    cannot be those of ``audio_s`` seconds.

    Losses are not negative; that of masked prediction, whose logits are cosines over a temperature,
    is at most 2 / temperature + log K a frame.
    """
    most = audio_s * FRAME_RATE_HZ * _SLACK + 1.0
    frames = {
        name: value for name, value in sums.items() if name == "frames" or name.endswith("_frames")
    }
    if not all(0 <= value <= most for value in frames.values()):
        raise ValueError("more frames than audio")
    masked = frames.get("masked_frames", frames.get("pseudo_labels_frames", 0.0))
    temperature, classes = config.model.logit_temperature, config.model.num_classes
    largest = (2.0 / temperature + math.log(classes)) * _COSINE_LOSS * masked + 1.0
    limits = {
        "correct": masked,
        "cross_entropy_sum": largest,
        "pseudo_labels_sum": largest,
        "cosine_distance_sum": 2.0 * _SLACK * most,
        **spec_of(config.task).largest(most, audio_s * _SLACK / config.data.min_seconds + 1.0),
    }
    for name, value in sums.items():
        below = -1e-3 * most  # a divergence of two equal distributions can round to less than 0
        if (name in limits and not 0 <= value <= limits[name]) or (
            name.endswith("_sum") and value < below
        ):
            raise ValueError(f"{name} out of range")
