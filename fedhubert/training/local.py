"""Local training and evaluation on one client."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from fedhubert.config import ClientConfig, MaskedTask
from fedhubert.data.batching import Batch
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective
from fedhubert.training.optimizers import on_cpu, restore
from fedhubert.training.ranks import ALONE, Ranks
from fedhubert.training.schedule import learning_rate
from fedhubert.training.stepping import Figures, Sums, Tally, Trainer, fetch, objective_of, score
from fedhubert.training.upload import uploaded


@dataclass(frozen=True)
class LocalResult(Figures):
    """What a client's local work was.

    Attributes:
        steps: Optimiser steps taken.
        micro_batches: Micro-batches consumed: a run goes on at its position plus this.
        metrics: The objective's sums, by name.
        frames: What its loss was divided by, over all steps.
        grad_norm: Mean over the steps of the gradient's norm before clipping.
        optimizer_state: ``state_dict`` on the CPU, under ``client.optimizer_policy=keep``.
    """

    steps: int
    micro_batches: int
    metrics: Mapping[str, float]
    frames: int
    audio_s: float
    grad_norm: float
    seconds: float
    optimizer_state: dict[str, object] | None


@dataclass(frozen=True)
class EvaluationResult(Figures):
    """An objective's sums over an evaluation, by name, and the frames that they are of."""

    metrics: Mapping[str, float]
    frames: int
    audio_s: float


@dataclass(frozen=True)
class Progress:
    """Where in the run local training stands; ``num_steps`` optimiser steps make this round."""

    round_number: int
    num_rounds: int
    num_steps: int

    def at(self, step: int) -> float:
        """Return the share of the whole run that is done in the middle of ``step`` (0-based) of
        this round.

        The middle, so that a warm-up from zero does not make the first step an idle one.
        """
        return (self.round_number - 1 + (step + 0.5) / self.num_steps) / self.num_rounds


def train_locally(
    model: HubertModel,
    batches: Iterator[Batch],
    *,
    client: ClientConfig,
    task: MaskedTask,
    progress: Progress,
    seed: int,
    partition: int,
    device: torch.device,
    optimizer_state: Mapping[str, object] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    proximal_mu: float = 0.0,
    objective: Objective | None = None,
    ranks: Ranks = ALONE,
) -> LocalResult:
    """Take ``progress.num_steps`` optimiser steps, each on ``client.accumulate`` micro-batches of
    ``batches``; fewer if these run out.

    Gradients of summed losses are added over a step's micro-batches and divided by its frames
    (masked prediction: its masked ones), as data-parallel fairseq does; then clipped; then stepped.
    Dropout and layer drop draw from (seed, partition, micro-batch position), so a step gives the
    same bits wherever it runs. A step that does not fit into the device's memory is taken in
    smaller pieces, with the same update but for dropout's draws.

    Args:
        model: Trained in place on ``device``; left in training mode.
        batches: Closed at the end, whatever happens; no more of it is consumed than is trained on,
            but for what is copied ahead to a GPU when ``should_stop`` ends the round.
        optimizer_state: What an earlier round's result held; not changed. Hyper-parameters are
            ``client``'s all the same.
        should_stop: Asked after every step but the last: a round is at least one step.
        proximal_mu: FedProx (Li et al. 2020): adds mu / 2 * |w - w_0|^2, w_0 the weights on entry,
            to the mean loss per masked frame. Being part of the loss, its gradient is clipped, and
            goes through Adam's moments, with the rest.
        objective: What is learned; None: what ``task`` says, without a teacher.
        ranks: Who takes the same steps beside this process. ``batches`` and the result's sums are
            then its own alone, and the first rank has the optimiser's state.

    Raises:
        TrainingError: no batch; a loss or gradient that is not finite; one utterance, or the
            optimiser, that does not fit into the device's memory; a kept optimiser state of another
            model.
    """
    started = time.monotonic()
    total, norms, steps, consumed = Sums(), 0.0, 0, 0
    own = ranks.dealt(client.accumulate)
    most = progress.num_steps * own
    with (
        _closing(batches),
        _memory_errors(),
        _own_rng(device),
        closing(uploaded(batches, device, most)) as arriving,
    ):
        trainer = Trainer(
            model, client, task, seed, partition, device, proximal_mu, objective, ranks
        )
        if optimizer_state is not None:
            restore(trainer.optimizer, optimizer_state)
        for step in range(progress.num_steps):
            if step and any(ranks.add([should_stop()])):
                break
            micro_batches = list(islice(arriving, own))
            if own and not micro_batches:
                break
            share = progress.at(step)
            sums, norm = trainer.step(micro_batches, learning_rate(share, client), share)
            total.merge(sums)
            norms += norm
            steps += 1
            consumed += len(micro_batches)
        if steps == 0:
            raise TrainingError("no batch to train on", setting="client.local_steps")
        kept = client.optimizer_policy == "keep" and ranks.number == 0
        state = on_cpu(trainer.optimizer) if kept else None
    return LocalResult(
        steps,
        consumed,
        total.metrics,
        total.frames,
        total.audio_s,
        norms / steps,
        time.monotonic() - started,
        state,
    )


def evaluate(
    model: HubertModel,
    batches: Iterator[Batch],
    *,
    task: MaskedTask,
    device: torch.device,
    precision: str = "fp32",
    objective: Objective | None = None,
) -> EvaluationResult:
    """Score ``batches`` without dropout or gradients, then close them; the model's mode and the
    global generator are left as they were."""
    training, total, parts, scored = model.training, Sums(), 1, objective_of(task, objective)
    tallies: list[Tally] = []
    with (
        _closing(batches),
        _memory_errors(),
        torch.inference_mode(),
        _own_rng(device),
        closing(uploaded(batches, device)) as arriving,
    ):
        model.to(device).eval()
        try:
            for batch in arriving:
                tally, parts = score(model, batch, scored, precision, parts)
                tallies.append(tally)
            read = iter(fetch([scalar for tally in tallies for scalar in tally.scalars]))
        finally:
            model.train(training)
    for tally in tallies:
        total.merge(tally.sums(list(islice(read, len(tally.scalars)))))
    return EvaluationResult(total.metrics, total.frames, total.audio_s)


@contextmanager
def _own_rng(device: torch.device) -> Iterator[None]:
    """Leave the global generators of the CPU and a CUDA ``device`` as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[None]:
    """Stop the loader's threads at the end, however it comes."""
    try:
        yield
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Memory that runs out where splitting the batch does not help."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            "the model, its gradients and the optimiser's state do not fit into the device's "
            "memory: use a larger device, fewer "
            "clients on it, or client.optimizer=sgd",
            setting="client.device",
        ) from None
