"""What a plan is made from: the run's configuration, the model's parameters, the clients' audio,
and how fast things go."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedhubert.clients.data import Site, open_site
from fedhubert.clients.partitions import Partition
from fedhubert.config import Config
from fedhubert.config.base import Model, NonNegative, Positive, PositiveFraction
from fedhubert.errors import ConfigError
from fedhubert.federation.engine.simulation import num_supernodes
from fedhubert.federation.phases.teacher import with_teacher
from fedhubert.federation.strategies.strategy import check_strategy, client_job
from fedhubert.training.parameters import ParameterLayout
from fedhubert.training.travelling import travelling_model

_SCORING = 3.0
"""How much faster scoring is than training: a forward pass alone, where a backward pass takes two
more."""
_OVERHEAD_HERE_S, _OVERHEAD_ON_SITES_S = 0.5, 2.0
"""Simulations and sites keep their workers; a site (``fedhubert site``) looks for messages several
times a second."""


class Rates(Model):
    """How fast things go."""

    audio_s_per_s: Positive
    """Seconds of audio that a client trains on in a second, on one device."""

    rank_efficiency: PositiveFraction | None = None
    """Of a client with several devices: how much of that each reaches beside the others; None:
    all."""

    score_audio_s_per_s: Positive | None = None
    """Seconds of audio that it scores in a second; None: three times as many."""

    label_audio_s_per_s: Positive = 900.0
    """Seconds of audio that get MFCC and pseudo-labels in a second, on one CPU thread."""

    up_mbit_s: Positive | None = None
    """A site's own line up, in 1e6 bits a second; None: clients are played on this host."""

    down_mbit_s: Positive | None = None
    """Its line down; None: as up."""

    message_ns: NonNegative = 10.0
    """A real site's nanoseconds for each byte that it is sent or sends, beside its line."""

    superlink_ns: NonNegative = 12.0
    """The SuperLink's nanoseconds for each byte to and from real sites, while their lines are
    busy."""

    round_overhead_s: NonNegative | None = None
    """What a round takes beside training, transfer and the server's arithmetic; None: 2 on real
    sites, else 0.5."""

    client_ms: NonNegative = 0.045
    """The server's milliseconds for each client of a round: what it says is checked and booked."""

    fold_ns: NonNegative = 4.0
    """The server's nanoseconds per parameter for each update."""

    step_ns: NonNegative = 20.0
    """The server's nanoseconds per parameter for the end of a round."""

    server_gflop_s: Positive = 50.0
    """How fast the server multiplies matrices, in 1e9 operations a second (FedMuon)."""

    disk_mb_s: Positive = 150.0
    """How fast the server writes checkpoints and forces them to the disk, in 1e6 bytes a second."""

    @property
    def on_sites(self) -> bool:
        """Whether clients are real sites, each with a line and a device of its own."""
        return self.up_mbit_s is not None

    @property
    def scoring(self) -> float:
        """Seconds of audio scored in a second."""
        return self.score_audio_s_per_s or _SCORING * self.audio_s_per_s

    @property
    def overhead_s(self) -> float:
        """Seconds of a round beside all that is counted."""
        return (
            (_OVERHEAD_ON_SITES_S if self.on_sites else _OVERHEAD_HERE_S)
            if self.round_overhead_s is None
            else self.round_overhead_s
        )

    def line_s(self, down_bytes: int, up_bytes: int) -> float:
        """Return the seconds that a site and its line need for what it is sent and sends; none in a
        simulation."""
        if self.up_mbit_s is None:
            return 0.0
        on_line_s = 8e-6 * (
            down_bytes / (self.down_mbit_s or self.up_mbit_s) + up_bytes / self.up_mbit_s
        )
        return on_line_s + 1e-9 * self.message_ns * (down_bytes + up_bytes)

    def passed_on_s(self, num_bytes: int) -> float:
        """Return the seconds in which the SuperLink passes ``num_bytes`` on; none in a
        simulation."""
        return 1e-9 * self.superlink_ns * num_bytes if self.on_sites else 0.0


@dataclass(frozen=True)
class ClientAudio:
    """A client's audio.

    Attributes:
        train_s, validation_s: Seconds of its splits.
        scored_s, scored_at_end_s: Seconds of its validation split that a round scores, and that the
            end scores.
        num_batches: Micro-batches of an epoch.
        audio_s: Returns the seconds of audio in the micro-batches at a range of positions.
    """

    train_s: float
    validation_s: float
    scored_s: float
    scored_at_end_s: float
    num_batches: int
    audio_s: Callable[[range], float]


@dataclass(frozen=True)
class Inputs:
    """What is planned.

    Attributes:
        layout: Of the trained parameters, which travel.
        all_parameters: Frozen ones included.
        clients: By partition.
        teacher_bytes: What is sent once to each site that lacks it.
        rows: Of the manifest; 0 where there is none.
        opened_s: Seconds in which it was read, cut into clients and counted here, as each process
            of a run does before its first batch.
    """

    config: Config
    layout: ParameterLayout
    all_parameters: int
    clients: tuple[ClientAudio, ...]
    rates: Rates
    teacher_bytes: int = 0
    rows: int = 0
    opened_s: float = 0.0

    @cached_property
    def numel(self) -> int:
        """P: parameters that travel."""
        return self.layout.numel

    @property
    def frozen_bytes(self) -> int:
        """What of the model is not trained, sent once to each site that lacks it."""
        sent = self.config.model.trainable != "all"
        return 4 * (self.all_parameters - self.numel) if sent else 0

    @property
    def ranks(self) -> int:
        """How many devices share a client's steps."""
        whole = 0 if self.rates.on_sites else int(self.config.simulation.gpus_per_client)
        client = self.config.client
        named = whole if client.device in ("auto", "cuda") else len(client.devices)
        return max(1, min(named, client.accumulate))

    @property
    def training(self) -> float:
        """Seconds of audio that a client trains on in a second: its devices wait for the one with
        the most micro-batches of a step."""
        if self.ranks == 1:
            return self.rates.audio_s_per_s
        turns = math.ceil(self.config.client.accumulate / self.ranks)
        sped = self.config.client.accumulate / turns * (self.rates.rank_efficiency or 1.0)
        return sped * self.rates.audio_s_per_s

    @property
    def device(self) -> str:
        """What a client trains on, as far as the configuration says: ``GPU``, ``CPU`` or, on sites
        that choose for themselves, ``device``."""
        if self.config.client.device.startswith("cuda") or (
            self.config.simulation.gpus_per_client and not self.rates.on_sites
        ):
            return "GPU"
        return "device" if self.rates.on_sites and self.config.client.device == "auto" else "CPU"

    @property
    def devices(self) -> float:
        """How many of them: CPU threads, or a share of a GPU."""
        if self.device == "CPU":
            return float(self.config.client.threads * self.ranks)
        return (
            float(self.ranks)
            if self.rates.on_sites
            else self.config.simulation.gpus_per_client or 1.0
        )


def inputs_of(config: Config, clients: Sequence[ClientAudio], rates: Rates) -> Inputs:
    """Return what is planned; raises :class:`FedhubertError` for a teacher that cannot be used, or
    settings that do not fit."""
    check_strategy(config)
    config, teacher = with_teacher(config)
    model, layout = travelling_model(config.model, config.task, config.client, config.seed)
    every = sum(int(parameter.numel()) for parameter in model.parameters())
    return Inputs(
        config, layout, every, tuple(clients), rates, teacher.teacher.num_bytes if teacher else 0
    )


def open_data(config: Config) -> Site:
    """Return the data of ``data.manifest``, cut into the clients' partitions as a simulation
    would."""
    return open_site(
        client_job(config), {"partition-id": 0, "num-partitions": num_supernodes(config)}
    )


def audio_of(site: Site) -> list[ClientAudio]:
    """Return every client's audio, to the batch; raises :class:`DataError`."""
    lengths, rate = (
        site.manifest.lengths(site.job.data.sample_rate_hz),
        site.job.data.sample_rate_hz,
    )

    def audio(part: Partition) -> ClientAudio:
        scoring = part.validation_plan
        return ClientAudio(
            float(lengths[part.train_rows].sum() / rate),
            float(lengths[part.validation_rows].sum() / rate),
            scoring.audio_s(scoring.first(site.job.client.validation_batches)),
            scoring.audio_s(scoring.first(0)),
            part.train_plan.num_batches,
            part.train_plan.audio_s,
        )

    return [audio(site.partition(number)) for number in range(site.job.num_clients)]


def stated_audio(
    config: Config, hours: float | None, hours_per_client: Sequence[float] | None
) -> list[ClientAudio]:
    """Return every client's audio where only its length is known: batches are
    ``data.batch_seconds`` long, which is the most that they can be.

    Raises:
        ConfigError: neither or both lengths, or another number of clients.
    """
    count = config.federated.num_clients
    if (hours is None) == (hours_per_client is None):
        raise ConfigError(
            "how much audio? Give one of data.manifest=PATH, hours=N (in all) and "
            "hours_per_client=N (or =[N,N,...])",
            setting="hours",
        )
    each = [float(hours) / count] if hours is not None else list(hours_per_client or ())
    each = each * count if len(each) == 1 else each
    if len(each) != count:
        raise ConfigError(
            f"hours_per_client has {len(each)} values, but federated.num_clients is {count}: make "
            "them as many",
            setting="hours_per_client",
        )
    return [_stated(config, 3600.0 * length) for length in each]


def _stated(config: Config, length_s: float) -> ClientAudio:
    held_out, longest_s = config.data.partition.validation_fraction, config.data.batch_seconds
    train_s, validation_s = length_s * (1.0 - held_out), length_s * held_out
    num_batches, wanted = math.ceil(train_s / longest_s), config.client.validation_batches
    scored_s = min(validation_s, wanted * longest_s or validation_s)
    batch_s = train_s / num_batches
    return ClientAudio(
        train_s,
        validation_s,
        scored_s,
        validation_s,
        num_batches,
        lambda positions: batch_s * len(positions),
    )
