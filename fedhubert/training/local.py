"""Local training and evaluation on one client."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from fedhubert.config import ClientConfig, TaskConfig
from fedhubert.data.batching import Batch
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.masked_prediction import LossTerms, masked_prediction
from fedhubert.seeding import derive_seed
from fedhubert.training.schedule import learning_rate

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAMPLES_PER_S = 16000.0


@dataclass(frozen=True)
class LocalResult:
    """What a client's local work was: optimiser steps taken, micro-batches consumed, sums over masked frames, mean gradient norm before clipping."""

    steps: int
    micro_batches: int
    cross_entropy_sum: float
    masked_frames: int
    correct: int
    audio_s: float
    grad_norm: float
    seconds: float
    optimizer_state: dict[str, Any] | None


@dataclass(frozen=True)
class EvaluationResult:
    """Sums over masked frames of an evaluation."""

    cross_entropy_sum: float
    masked_frames: int
    correct: int
    audio_s: float


@dataclass(frozen=True)
class Progress:
    """Where in the run local training stands; ``num_steps`` optimiser steps make this round."""

    round_number: int
    num_rounds: int
    num_steps: int

    def at(self, step: int) -> float:
        """Return the share of the whole run that is done before ``step`` (0-based) of this round, counting that step's half."""
        return (self.round_number - 1 + (step + 0.5) / self.num_steps) / self.num_rounds


@dataclass
class _Sums:
    cross_entropy: float = 0.0
    masked_frames: int = 0
    correct: int = 0
    samples: int = 0

    def add(self, terms: LossTerms, batch: Batch) -> None:
        self.cross_entropy += float(terms.cross_entropy_sum)
        self.masked_frames += terms.masked_frames
        self.correct += int(terms.correct)
        self.samples += batch.audio_samples


def train_locally(
    model: HubertModel,
    batches: Iterator[Batch],
    *,
    client: ClientConfig,
    task: TaskConfig,
    progress: Progress,
    seed: int,
    partition: int,
    device: torch.device,
    optimizer_state: dict[str, Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LocalResult:
    """Take ``progress.num_steps`` optimiser steps, each on ``client.accumulate`` micro-batches of ``batches``.

    Gradients of summed losses are added over a step's micro-batches and divided by its masked frames, as data-parallel fairseq does; then
    clipped; then stepped. Dropout and layer drop draw from (seed, partition, micro-batch position), so a step gives the same bits wherever it runs.

    Raises:
        TrainingError: a loss or gradient that is not finite, or one utterance that does not fit into the device's memory.
    """
    started = time.monotonic()
    model.to(device).train()
    optimizer = build_optimizer(model, client)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    scaler = torch.amp.GradScaler(device.type, enabled=client.precision == "fp16" and device.type == "cuda")
    sums, norms, steps, consumed, parts = _Sums(), 0.0, 0, 0, 1
    with _own_rng(device):
        for step in range(progress.num_steps):
            if should_stop():
                break
            micro_batches = [batch.to(device) for batch in islice(batches, client.accumulate)]
            if not micro_batches:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress.at(step), client)
            terms, parts = _gradients(model, micro_batches, client, task, seed, partition, scaler, parts)
            norms += _step(model, optimizer, scaler, sum(term.masked_frames for term, _ in terms), client)
            for term, batch in terms:
                sums.add(term, batch)
            steps += 1
            consumed += len(micro_batches)
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    if steps == 0:
        raise TrainingError("no batch to train on", setting="client.local_steps")
    state = optimizer.state_dict() if client.optimizer_policy == "keep" else None
    return LocalResult(
        steps,
        consumed,
        sums.cross_entropy,
        sums.masked_frames,
        sums.correct,
        sums.samples / _SAMPLES_PER_S,
        norms / steps,
        time.monotonic() - started,
        state,
    )


def evaluate(
    model: HubertModel, batches: Iterator[Batch], *, task: TaskConfig, device: torch.device, precision: str = "fp32"
) -> EvaluationResult:
    """Score ``batches`` without dropout or gradients; the model's mode and the global generator are left as they were."""
    training = model.training
    model.to(device).eval()
    sums = _Sums()
    try:
        with torch.inference_mode(), _own_rng(device):
            for batch in batches:
                on_device = batch.to(device)
                with _autocast(device, precision):
                    sums.add(masked_prediction(model, on_device, task), on_device)
    finally:
        model.train(training)
    return EvaluationResult(sums.cross_entropy, sums.masked_frames, sums.correct, sums.samples / _SAMPLES_PER_S)


def build_optimizer(model: HubertModel, client: ClientConfig) -> torch.optim.Optimizer:
    """AdamW on all parameters as the recipe has it, or plain SGD."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if client.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=client.lr, weight_decay=client.weight_decay)
    return torch.optim.AdamW(parameters, lr=client.lr, betas=client.betas, eps=client.eps, weight_decay=client.weight_decay)


def _gradients(
    model: HubertModel,
    micro_batches: list[Batch],
    client: ClientConfig,
    task: TaskConfig,
    seed: int,
    partition: int,
    scaler: torch.amp.GradScaler,
    parts: int,
) -> tuple[list[tuple[LossTerms, Batch]], int]:
    """Fill the gradients of summed losses; when the device runs out of memory, start the step again with micro-batches in halves."""
    while True:
        model.zero_grad(set_to_none=True)
        try:
            return [
                (_backward(model, piece, index, client, task, seed, partition, scaler), piece)
                for batch in micro_batches
                for index, piece in enumerate(batch.split(parts))
            ], parts
        except torch.OutOfMemoryError:
            if parts >= max(len(batch.waveforms_BN) for batch in micro_batches):
                samples = max(batch.waveforms_BN.shape[1] for batch in micro_batches)
                raise TrainingError(
                    f"one utterance of {samples / _SAMPLES_PER_S:.1f} s does not fit into the device's memory: lower data.max_seconds, or set "
                    "client.activation_checkpointing=true or client.precision=bf16",
                    setting="data.max_seconds",
                ) from None
            parts *= 2
            model.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _backward(
    model: HubertModel,
    batch: Batch,
    piece: int,
    client: ClientConfig,
    task: TaskConfig,
    seed: int,
    partition: int,
    scaler: torch.amp.GradScaler,
) -> LossTerms:
    torch.manual_seed(derive_seed(seed, "dropout", partition, batch.position, piece))
    with _autocast(batch.waveforms_BN.device, client.precision):
        terms = masked_prediction(model, batch, task)
    if not bool(torch.isfinite(terms.loss_sum)):
        raise TrainingError(
            f"the loss is {float(terms.loss_sum)}: lower client.lr, or train with client.precision=fp32", setting="client.lr"
        )
    torch.autograd.backward(scaler.scale(terms.loss_sum))
    return terms


def _step(
    model: HubertModel, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, masked_frames: int, client: ClientConfig
) -> float:
    """Normalise, clip and step; return the gradient's norm before clipping."""
    scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch._foreach_div_(gradients, float(max(1, masked_frames)))
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), client.grad_clip_norm or float("inf")))
    if not scaler.is_enabled() and not norm < float("inf"):
        raise TrainingError("a gradient is not finite: lower client.lr, or train with client.precision=fp32", setting="client.lr")
    scaler.step(optimizer)
    scaler.update()
    return norm if norm < float("inf") else 0.0


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def _own_rng(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
