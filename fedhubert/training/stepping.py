"""One optimiser step, and one batch's score, on a device whose memory may not hold a whole
micro-batch."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedhubert.config import ClientConfig, MaskedTask
from fedhubert.data.batching import Batch
from fedhubert.errors import FedhubertError, TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective, Terms
from fedhubert.objectives.spec import spec_of
from fedhubert.seeding import derive_seed
from fedhubert.training.optimizers import build_optimizer, encoder_parameters, parameters_of
from fedhubert.training.ranks import ALONE, Ranks

log = logging.getLogger("fedhubert.site")

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_LOSS_SCALE = 128.0  # fairseq's; torch's 65536 is for losses that are means, ours are sums
_LEAST_LOSS_SCALE = 2.0**-10


class Figures:
    """An objective's sums by name; those of masked prediction also as attributes (cross-entropy in
    nats, over masked frames)."""

    metrics: Mapping[str, float]

    @property
    def cross_entropy_sum(self) -> float:
        return self.metrics["cross_entropy_sum"]

    @property
    def masked_frames(self) -> int:
        return int(self.metrics["masked_frames"])

    @property
    def correct(self) -> int:
        return int(self.metrics["correct"])


@dataclass
class Sums(Figures):
    """An objective's figures by name, the frames that its loss is divided by, and seconds of audio,
    added up."""

    metrics: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    audio_s: float = 0.0

    def merge(self, other: "Sums") -> None:
        for name, value in other.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0) + value
        self.frames += other.frames
        self.audio_s += other.audio_s


class Tally:
    """Figures of pieces that may still be on their way: adding a piece waits for nothing, reading
    waits once for all of them."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        """Of each piece, what was to be backpropagated."""
        self.frames = 0
        self._pieces: list[tuple[Mapping[str, Tensor | int], int, float]] = []

    def add(self, terms: Terms, batch: Batch) -> None:
        self.losses.append(terms.loss_sum.detach())
        self.frames += terms.frames
        self._pieces.append((terms.sums, terms.frames, batch.audio_s))

    @property
    def scalars(self) -> list[Tensor]:
        """The figures that are tensors, in a fixed order."""
        return [
            value
            for sums, _, _ in self._pieces
            for value in sums.values()
            if isinstance(value, Tensor)
        ]

    def sums(self, values: Sequence[float]) -> Sums:
        """Return the sums, given the values of :attr:`scalars`."""
        total, read = Sums(), iter(values)
        for sums, frames, audio_s in self._pieces:
            figures = {
                name: next(read) if isinstance(value, Tensor) else value
                for name, value in sums.items()
            }
            total.merge(Sums(figures, frames, audio_s))
        return total


def fetch(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of scalars that are on one device (integers as such), waiting for it once,
    and not once for each."""
    by_type: dict[torch.dtype, list[int]] = {}
    for index, scalar in enumerate(scalars):
        by_type.setdefault(scalar.dtype, []).append(index)
    values = [0.0] * len(scalars)
    for indices in by_type.values():
        for index, value in zip(
            indices, torch.stack([scalars[index] for index in indices]).tolist(), strict=True
        ):
            values[index] = value
    return values


def objective_of(task: MaskedTask, objective: Objective | None) -> Objective:
    """Return ``objective``, or else that of ``task``, which then must need nothing but the task."""
    return objective or spec_of(task).loss()


class Trainer:
    """A model with its optimiser, and how finely its micro-batches have to be split."""

    def __init__(
        self,
        model: HubertModel,
        client: ClientConfig,
        task: MaskedTask,
        seed: int,
        partition: int,
        device: torch.device,
        proximal_mu: float,
        objective: Objective | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.ranks = model.to(device).train(), ranks
        self.client, self.seed, self.partition, self.device = client, seed, partition, device
        self.task, self.objective = task, objective_of(task, objective)
        self.optimizer = build_optimizer(model, client, task.encoder_rate)
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=_FIRST_LOSS_SCALE, enabled=client.precision == "fp16"
        )
        self.parameters = parameters_of(self.optimizer)
        self.encoder = encoder_parameters(model)
        self.mu = proximal_mu
        self.anchor = (
            [parameter.detach().clone() for parameter in self.parameters] if proximal_mu else []
        )
        self.parts = 1

    def step(
        self, micro_batches: list[Batch], lr: float, progress: float = 1.0
    ) -> tuple[Sums, float]:
        """Take one step at rate ``lr``; return its sums and the gradient's norm before clipping.

        At ``progress`` in [0, 1] of the run the task may let the encoder stand still: it then has
        no gradients.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        with _standing_still(self.encoder if self.task.freezes_encoder(progress) else []):
            return self._step(micro_batches)

    def _step(self, micro_batches: list[Batch]) -> tuple[Sums, float]:
        while True:
            tally = self._gradients(micro_batches)
            parts = 2 * self.parts if tally else _halved(self.parts, micro_batches)
            said = [not tally, tally.frames if tally else 0]
            said += [parameter.grad is not None for parameter in self.parameters]
            failed, frames, *having = self.ranks.add(said)
            if failed or tally is None:
                self.parts = parts  # for all further steps: each failed try costs a step
                continue
            self.ranks.add_gradients(self.parameters, having)
            count = len(tally.losses)
            # the step's one wait
            norm, *read = fetch([self._finish(frames), *tally.losses, *tally.scalars])
            for loss in read[:count]:
                if not math.isfinite(loss):
                    raise _not_finite(f"the loss is {loss}")
            if math.isfinite(norm):
                self.scaler.step(self.optimizer)
                self.scaler.update()
                return tally.sums(read[count:]), norm
            self._lower_loss_scale()

    def _gradients(self, micro_batches: list[Batch]) -> Tally | None:
        """Fill the gradients of summed losses, finite or not; None if the device's memory does not
        suffice.

        What fails compiled is done again as it is, and so are all further steps of this model.
        """
        self.optimizer.zero_grad(set_to_none=True)
        try:
            return self._accumulated(micro_batches)
        except (
            torch.OutOfMemoryError
        ):  # this holds the activations: try again only after leaving it
            return None
        except FedhubertError:
            raise
        except Exception as error:
            if not self.model.compiled:
                raise
            failure = (
                f"{type(error).__name__}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
        log.warning(
            "client.compile: torch.compile failed, so this model trains uncompiled from here on: "
            "%s",
            failure,
        )
        self.model.set_compiled(False)
        return self._gradients(micro_batches)

    def _accumulated(self, micro_batches: list[Batch]) -> Tally:
        tally = Tally()
        for batch in micro_batches:
            for number, piece in enumerate(batch.split(self.parts)):
                # by the place in the data, so that a repeated or resumed step drops the same
                _seed(
                    self.device,
                    derive_seed(self.seed, "dropout", self.partition, batch.position, number),
                )
                tally.add(self._backward(piece), piece)
        return tally

    def _backward(self, batch: Batch) -> Terms:
        with _autocast(self.device, self.client.precision):
            terms = self.objective(self.model, batch)
        torch.autograd.backward(self.scaler.scale(terms.loss_sum))
        return terms

    def _finish(self, frames: int) -> Tensor:
        """Turn the gradients of sums into those of the step's mean loss, clipped; return their norm
        before, a scalar on the device."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        # batches without a masked frame have gradients of zero, which stay so
        torch._foreach_div_(gradients, float(max(1, frames)))
        # no anchor without a pull
        for parameter, anchor in zip(self.parameters, self.anchor, strict=False):
            if not parameter.requires_grad:
                continue
            pull = (parameter.detach() - anchor) * self.mu
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
        return torch.nn.utils.clip_grad_norm_(
            self.parameters, self.client.grad_clip_norm or math.inf
        )

    def _lower_loss_scale(self) -> None:
        """Halve the loss scale, to take the same step again: no step is skipped."""
        scale = self.scaler.get_scale() / 2
        if not self.scaler.is_enabled() or scale < _LEAST_LOSS_SCALE:
            raise _not_finite("a gradient is not finite")
        self.scaler.update(scale)


@contextmanager
def _standing_still(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Have ``parameters`` take no gradients, and so no steps."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def score(
    model: HubertModel, batch: Batch, objective: Objective, precision: str, parts: int
) -> tuple[Tally, int]:
    """Return a batch's figures, and the ``parts`` that it had to be split into."""
    while True:
        tally = Tally()
        try:
            with _autocast(batch.waveforms_BN.device, precision):
                for piece in batch.split(parts):
                    tally.add(objective(model, piece), piece)
            return tally, parts
        except torch.OutOfMemoryError:
            pass
        parts = _halved(parts, [batch])


def _halved(parts: int, micro_batches: list[Batch]) -> int:
    """Return the next finer split after memory ran out; raises :class:`TrainingError` when every
    piece is one utterance already."""
    if parts >= max(len(batch.waveforms_BN) for batch in micro_batches):
        seconds = max(batch.audio_s / len(batch.waveforms_BN) for batch in micro_batches)
        raise TrainingError(
            f"one utterance of {seconds:.1f} s does not fit into the device's memory: lower "
            "data.max_seconds, or set "
            "client.activation_checkpointing=true or client.precision=bf16",
            setting="data.max_seconds",
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return parts * 2


def _not_finite(what: str) -> TrainingError:
    return TrainingError(
        f"{what}: lower client.lr, or train with client.precision=fp32", setting="client.lr"
    )


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that ``device`` draws from, and no other device's (``torch.manual_seed``
    would)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        # torch.cuda.manual_seed would change the device there and back
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
