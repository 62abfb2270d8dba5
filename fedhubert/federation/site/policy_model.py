"""The keys of a site's policy, with their strict defaults (see
:mod:`fedhubert.federation.site.policy`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from fedhubert.config.base import TASKS, Count, Model, NonNegative, Positive, PositiveInt
from fedhubert.federation.wire.messages import INSTRUCTIONS

Convolutions = tuple[tuple[PositiveInt, PositiveInt], ...]

HUBERT_CONVOLUTIONS: Convolutions = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


class _Part(Model):
    model_config = ConfigDict(strict=True)


class ModelPolicy(_Part):
    """Shapes of models, of teachers and of models for features. By default those that fedhubert
    ships, up to HuBERT large."""

    convolutions: tuple[Convolutions, ...] = (HUBERT_CONVOLUTIONS,)
    """[kernel, stride] of each convolution, one list for each front end that is allowed; none: any.
    A front end of a server's own making can copy windows of the waveform into its update."""

    max_channels: PositiveInt = 512
    """Channels of a convolution (`model.conv_layers`)."""

    max_width: PositiveInt = 1024
    """Of the transformer and of the space of label embeddings (`model.embed_dim`,
    `model.final_dim`)."""

    max_layers: PositiveInt = 24
    """Transformer layers (`model.num_layers`), and heads of a student."""

    max_heads: PositiveInt = 16
    """Attention heads of a layer (`model.num_heads`)."""

    max_ffn: PositiveInt = 4096
    """Width of a layer's feed-forward part (`model.ffn_dim`)."""

    max_clusters: PositiveInt = 2000
    """Pseudo-labels (`targets.num_clusters`, `model.num_classes`), of each set."""

    max_sets: PositiveInt = 8
    """Sets of pseudo-labels, each with a head of its own (`targets.sets`): k-means tells as much of
    each."""

    max_bytes: PositiveInt = 1_400_000_000
    """Parameters in fp32; HuBERT large has 1.27 GB of them."""


class AudioPolicy(_Part):
    """How audio may be cut."""

    min_seconds: NonNegative = 0.5
    """The shortest utterance and crop that a run may train on (`data.min_seconds`)."""

    max_seconds: Positive = 60.0
    """The longest crop (`data.max_seconds`)."""

    max_batch_seconds: Positive = 400.0
    """The most audio in a micro-batch (`data.batch_seconds`)."""


class UpdatePolicy(_Part):
    """What an update, or a score, is made of at least and at most."""

    min_utterances: Count = 8
    """Different utterances in an update; no update leaves that is of fewer."""

    min_seconds: NonNegative = 30.0
    """Audio that an update is trained on, in seconds."""

    min_validation_utterances: Count = 4
    """Different utterances in what a model is scored on; their figures are sums."""

    min_steps: PositiveInt = 1
    """The fewest optimiser steps of an update (`client.local_steps`)."""

    max_steps: PositiveInt = 20_000
    """The most optimiser steps of an update (`client.local_steps`, `client.local_epochs`)."""

    min_momentum: NonNegative = 0.9
    """Of muon (`client.muon.momentum`), where its momentum leaves with the update
    (`client.optimizer_policy=shared`): the less, the fewer of the last steps it tells of alone.
    Of the last 1 / (1 - momentum) steps are asked as much audio and utterances as of an update."""

    max_accumulate: PositiveInt = 1024
    """Micro-batches of a step (`client.accumulate`)."""

    max_outputs: Count = 256
    """Labels, or characters, that a task may tell apart (`task.labels`, `task.vocabulary`)."""

    min_noise_multiplier: NonNegative = 0.0
    """Noise that an update gets here before it is masked, in norms that it is clipped to
    (`privacy.noise_multiplier` of `privacy=distributed`); 0: none is asked for."""

    max_unreadable: NonNegative = 0.05
    """The largest share of utterances that others stand in for (`data.max_unreadable`), so that an
    update is of as many as it seems to be of."""

    rewinding: bool = False
    """Whether a run may ask for other pieces of audio that it has trained on already. Asking again
    for the same piece, as a resumed run does, is always possible. One crop more or less between two
    updates would tell that crop."""


class KMeansPolicy(_Part):
    """What k-means and labelling may see."""

    own_sample: bool = True
    """k-means sees one sample of this site's frames, drawn by a seed that never leaves it, whatever
    `targets.max_frames_per_client`, `seed` and the split are."""

    frames: PositiveInt = 100_000
    """Frames of the own sample; those of a layer take frames x width x 4 bytes of disk until the
    audio is labelled."""

    min_frames: PositiveInt = 20
    """Sums, seeds and counts over fewer frames do not leave (raises `targets.min_frames`)."""

    group_frames: PositiveInt = 20
    """k-means sees means over groups of so many similar frames (raises `targets.group_frames`)."""

    iterations_per_run: Count = 100
    """k-means messages that a run may send, repeated ones included."""

    iterations_per_day: Count = 300
    """The same for all runs of a day (UTC)."""

    labellings_per_run: Count = 10
    """How often a run may have this site's audio labelled."""

    labellings_per_day: Count = 30
    """The same for all runs of a day."""

    needless: bool = False
    """Whether k-means is answered in a run that has no use for it: with precomputed labels, or with
    a task without any."""

    max_label_values: Count = 1000
    """Values that labels may be counted by (`targets.label_values`)."""


class DescribePolicy(_Part):
    """What a site says of its audio before a run."""

    different_per_day: PositiveInt = 4
    """Different ways to cut the same audio (`data.*`, `seed`) that are answered in a day; the same
    again is free. Sweeps of `data.min_seconds` would tell every utterance's length."""

    round_utterances: PositiveInt = 10
    """Numbers of utterances and of batches are rounded up to a multiple of this."""

    round_seconds: NonNegative = 60.0
    """Seconds of audio are rounded up to a multiple of this; 0: not rounded."""


class LimitsPolicy(_Part):
    """The most that is done, counted in the state folder. A day is one of UTC."""

    runs_per_day: PositiveInt = 20
    """Different runs that ask for more than a description."""

    messages_per_run: PositiveInt = 50_000
    """Messages that are answered."""

    messages_per_day: PositiveInt = 20_000
    """Messages that are answered, of all runs."""

    work_seconds_per_run: Positive = 5_000_000.0
    """Seconds of work, from a message's arrival to its answer."""

    work_seconds_per_day: Positive = 86_400.0
    """Seconds of work, of all runs."""

    bytes_per_run: PositiveInt = 10_000_000_000_000
    """Bytes of arrays, received and sent."""

    bytes_per_day: PositiveInt = 1_000_000_000_000
    """Bytes of arrays, received and sent, of all runs."""

    max_threads: PositiveInt = 64
    """`client.threads` and `data.num_workers`."""

    max_prefetch: PositiveInt = 64
    """`data.prefetch_batches`."""

    max_teacher_cache_bytes: PositiveInt = 20_000_000_000
    """`task.teacher_cache_bytes`."""


class Policy(_Part):
    """All of it."""

    instructions: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(INSTRUCTIONS)
    """Kinds of message that are answered. Without the two of the extractor there is no second
    iteration and no `model.trainable` but `all`, without the two of the teacher no distillation."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = TASKS
    """What is trained here (`task`). `classify` and `ctc` learn from labels of people, from a
    column of the manifest that the node's configuration names (`class-column`, `text-column`)."""

    faults: bool = False
    """Whether a server may have this site fail on purpose (`faults.*`)."""

    places: bool = False
    """Whether a server may name a folder or a file of this site (`client.state_dir`,
    `targets.labels`) or how much of its state is kept (`client.state_max_gb`). What the node's
    configuration names for itself always holds, and the server's manifest is never read."""

    model: ModelPolicy = ModelPolicy()
    """Shapes of models."""

    audio: AudioPolicy = AudioPolicy()
    """How audio may be cut."""

    update: UpdatePolicy = UpdatePolicy()
    """What an update, or a score, is made of."""

    kmeans: KMeansPolicy = KMeansPolicy()
    """What k-means and labelling may see."""

    describe: DescribePolicy = DescribePolicy()
    """What is said of the audio."""

    limits: LimitsPolicy = LimitsPolicy()
    """The most that is done."""
