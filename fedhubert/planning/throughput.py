"""How fast this host trains and scores a run's model: measured with the run's own code, on its own
batches where there are any."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle

import numpy as np
import numpy.typing as npt
import torch

from fedhubert import live
from fedhubert.clients.data import Site
from fedhubert.config import Config
from fedhubert.data.batching import SAMPLE_RATE_HZ, Batch, Utterance
from fedhubert.data.loading import LabelSource, load_batches, mask_spec
from fedhubert.federation.phases.teacher import server_objective, with_teacher
from fedhubert.federation.roster.sampling import asking_order
from fedhubert.models.frames import num_frames
from fedhubert.models.masking import span_mask
from fedhubert.objectives.objective import Objective
from fedhubert.objectives.spec import build_model, spec_of
from fedhubert.seeding import generator
from fedhubert.training.device import resolve_device
from fedhubert.training.local import Progress, evaluate, train_locally

_TURNS = 4
"""Clients that take turns: batches are of many sizes."""
_SCORING_SHARE = 0.2
_MANY = 10**6
_NO_RATE = 1e-12
"""A learning rate with which labels drawn at random do no harm."""

Batches = Callable[[int, bool], Iterator[Batch]]
"""Returns a client's batches, to train on or to score; at most a round's."""


@dataclass(frozen=True)
class Throughput:
    """Seconds of audio per second, and how they were found."""

    trained: float
    scored: float
    said: str


def measure_speed(
    config: Config, site: Site | None, budget_s: float, clock: Callable[[], float] = time.monotonic
) -> Throughput:
    """Train and score on this host for about ``budget_s`` seconds, with labels drawn at random, as
    a worker or site would.

    Without ``site`` batches are noise, as long as batches can be. Where a step on a whole batch
    would take too long, utterances come one by one. A distillation runs its teacher, as in the
    first epoch. ``clock``: ``time.process_time`` where other work on the machine would disturb.
    """
    live.doing(f"measuring this host for {budget_s:.0f} s")
    config, teacher = with_teacher(config)
    device, threads = resolve_device(config.client.device), torch.get_num_threads()
    objective = server_objective(config, teacher, device)
    batches = _noise(config) if site is None else _real(config, site)
    turns = asking_order(config, 1)[: min(_TURNS, config.federated.clients_per_round)]
    torch.set_num_threads(config.client.threads)
    try:
        meter = _Meter(config, device, objective, clock)
        first = next(batches(turns[0], True))
        alone = first.split(len(first.mask_BT))[:1]
        meter.train(iter(alone), budget_s=0.0)  # to warm up
        _, one_s = meter.train(iter(alone), budget_s=0.0)
        whole = one_s * len(first.mask_BT) * config.client.accumulate < budget_s / _TURNS
        sized = batches if whole else _one_by_one(batches)
        trained = meter.rate(
            lambda client, left_s: meter.train(sized(client, True), left_s),
            turns,
            budget_s * (1 - _SCORING_SHARE),
        )
        scored = meter.rate(
            lambda client, left_s: meter.score(sized(client, False), left_s),
            turns,
            budget_s * _SCORING_SHARE,
        )
    finally:
        torch.set_num_threads(threads)
    audio = "noise" if site is None else f"audio of {len(turns)} clients"
    return Throughput(
        trained,
        scored,
        f"measured here ({device}, {audio}{'' if whole else ', one utterance at a time'})",
    )


class _Meter:
    """The model that is trained and scored; both return seconds of audio, and by the clock."""

    def __init__(
        self, config: Config, device: torch.device, objective: Objective, clock: Callable[[], float]
    ) -> None:
        self._config, self._device, self._objective, self._clock = config, device, objective, clock
        self._client = config.client.model_copy(update={"lr": _NO_RATE})
        self._model = build_model(config.model, config.task, config.seed)
        self._model.set_activation_checkpointing(config.client.activation_checkpointing)
        self._model.set_compiled(config.client.compile)

    def train(self, batches: Iterator[Batch], budget_s: float) -> tuple[float, float]:
        config, started = self._config, self._clock()
        result = train_locally(
            self._model,
            batches,
            client=self._client,
            task=config.task,
            progress=Progress(1, config.federated.num_rounds, _MANY),
            seed=config.seed,
            partition=0,
            device=self._device,
            objective=self._objective,
            should_stop=lambda: self._clock() - started >= budget_s,
        )
        return result.audio_s, self._clock() - started

    def score(self, batches: Iterator[Batch], budget_s: float) -> tuple[float, float]:
        config, started = self._config, self._clock()

        def in_time() -> Iterator[Batch]:
            for batch in batches:
                yield batch
                if self._clock() - started >= budget_s:
                    return

        result = evaluate(
            self._model,
            in_time(),
            task=config.task,
            device=self._device,
            precision=config.client.precision,
            objective=self._objective,
        )
        return result.audio_s, self._clock() - started

    def rate(
        self, work: Callable[[int, float], tuple[float, float]], turns: list[int], budget_s: float
    ) -> float:
        """Let clients take turns, each at most its share of the time and a round's batches; return
        seconds of audio per second."""
        ends, audio_s, seconds = self._clock() + budget_s, 0.0, 0.0
        for client in cycle(turns):
            heard, taken = work(client, budget_s / len(turns))
            audio_s, seconds = audio_s + heard, seconds + taken
            if self._clock() >= ends:
                break
        return audio_s / seconds


def _real(config: Config, site: Site) -> Batches:
    """A round's own batches, with labels of the right number."""
    rng, settings = np.random.default_rng(config.seed), config.client
    labels, spec = None, spec_of(config.task)
    if spec.whole_utterances:
        lengths = site.manifest.lengths()
        labels = LabelSource(
            lambda row: np.array(spec.example_labels(int(lengths[row])), np.int64), None
        )
    elif config.task.needs_labels:
        rate_hz = config.targets.label_rate_hz
        frames = site.manifest.lengths() * rate_hz // SAMPLE_RATE_HZ + 1
        labels = LabelSource(lambda row: _labels(config, rng, int(frames[row])), rate_hz)

    def batches(client: int, training: bool) -> Iterator[Batch]:
        part = site.partition(client)
        if training:
            plan = part.train_plan
            positions = range(settings.steps_per_round(plan.num_batches) * settings.accumulate)
        else:
            plan = part.validation_plan
            positions = plan.first(settings.validation_batches)
        return load_batches(
            site.manifest,
            plan,
            positions,
            labels,
            mask_spec(config.task),
            config.data,
            part.left_out,
        )

    return batches


def _labels(config: Config, rng: np.random.Generator, *shape: int) -> npt.NDArray[np.int64]:
    """Return any labels of ``shape``, of several sets [..., S]."""
    first, *others = (each.num_clusters for each in config.targets.label_sets)
    if not others:
        return rng.integers(first, size=shape)
    return rng.integers([first, *others], size=(*shape, 1 + len(others)))


def _noise(config: Config) -> Batches:
    """Batches of the longest crops."""
    num_samples = round(config.data.max_seconds * SAMPLE_RATE_HZ)
    rows, frames = (
        int(config.data.batch_seconds // config.data.max_seconds),
        num_frames(num_samples),
    )

    spec, said = spec_of(config.task), None
    if spec.whole_utterances:
        said = (Utterance(num_samples, spec.example_labels(num_samples)),) * rows

    def batches(client: int, training: bool) -> Iterator[Batch]:
        for position in count():
            rng = generator(config.seed, "plan/noise", client, position)
            waveforms = 0.1 * torch.from_numpy(
                rng.standard_normal((rows, num_samples), dtype=np.float32)
            )
            labels = torch.from_numpy(_labels(config, rng, rows, frames))
            masks = torch.from_numpy(span_mask(rows, frames, mask_spec(config.task), rng))
            given = labels if config.task.needs_labels else None
            yield Batch(waveforms, given, masks, position, None, said)

    return batches


def _one_by_one(batches: Batches) -> Batches:
    def alone(client: int, training: bool) -> Iterator[Batch]:
        for batch in batches(client, training):
            yield from batch.split(len(batch.mask_BT))

    return alone
