"""Training in one place on the audio of many clients: what a federated run is held against.

A federated round in which C clients take S steps each is S steps in a row over C times a step's
audio. So the central run takes S steps for it, each on C times the micro-batches, and over all
rounds it consumes exactly the micro-batches (crops and masks included) that the clients would have:
the same number of steps in a row, and the same audio to the sample. Only their order differs:
spread evenly over the run, so that every step sees all clients, where a federated round sees its
cohort alone. Each client's own micro-batches stay in order; with one client it is the federated
run. Under ``task.mask_probability_start`` masks are those of the round in which a step is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from fedhubert.config import ClientConfig, MaskedTask
from fedhubert.data.batching import Batch
from fedhubert.errors import TrainingError
from fedhubert.models.hubert import HubertModel
from fedhubert.objectives.objective import Objective
from fedhubert.training.local import Progress
from fedhubert.training.schedule import learning_rate
from fedhubert.training.stepping import Sums, Trainer
from fedhubert.training.upload import uploaded

MicroBatch = tuple[int, int]
"""A client's number, and the position in its stream."""


@dataclass(frozen=True)
class RoundPlan:
    """The steps that stand for one federated round, each a list of micro-batches."""

    number: int
    steps: list[list[MicroBatch]]


@dataclass(frozen=True)
class RoundResult:
    """What they were: as in :class:`~fedhubert.training.local.LocalResult`."""

    steps: int
    sums: Sums
    grad_norm: float


def plan_rounds(rounds: Mapping[int, Mapping[int, int]], accumulate: int) -> list[RoundPlan]:
    """Spread the micro-batches of all clients over the steps of all rounds.

    Args:
        rounds: Round number -> client -> optimiser steps that it takes in that round.
        accumulate: Micro-batches per step of a client.

    Returns:
        The rounds in order; each has as many steps as its longest client.
    """
    totals: dict[int, int] = {}
    for steps in rounds.values():
        for client, count in steps.items():
            totals[client] = totals.get(client, 0) + count * accumulate
    placed = sorted(
        ((position + 0.5) / total, client, position)
        for client, total in totals.items()
        for position in range(total)
    )
    order = [(client, position) for _, client, position in placed]
    num_steps = sum(max(steps.values()) for steps in rounds.values())
    cut = [
        order[len(order) * step // num_steps : len(order) * (step + 1) // num_steps]
        for step in range(num_steps)
    ]
    remaining = iter(cut)
    return [
        RoundPlan(number, list(islice(remaining, max(rounds[number].values()))))
        for number in sorted(rounds)
    ]


class CentralTrainer:
    """A model trained in one place, with an optimiser that lives as long as the run.

    Args:
        reset_each_round: Start the optimiser afresh at every round's boundary, as clients do under
            ``client.optimizer_policy=reset``.
        partition: What dropout draws from, with the micro-batch's position: see
            :func:`~fedhubert.training.local.train_locally`.
        objective: What is learned; None: what ``task`` says, without a teacher.
    """

    def __init__(
        self,
        model: HubertModel,
        client: ClientConfig,
        task: MaskedTask,
        seed: int,
        device: torch.device,
        *,
        reset_each_round: bool = False,
        partition: int = 0,
        objective: Objective | None = None,
    ) -> None:
        self._model, self._client, self._task = model, client, task
        self._seed, self._device, self._partition, self._objective = (
            seed,
            device,
            partition,
            objective,
        )
        self._reset = reset_each_round
        self._trainer = self._fresh()

    def train_round(
        self, plan: RoundPlan, batches: Iterator[Batch], num_rounds: int
    ) -> RoundResult:
        """Take the round's steps on ``batches``, which come in the plan's order; the learning rate
        is that of a client at the same step.

        Raises:
            TrainingError: a loss or gradient that is not finite, or an utterance that does not fit
                into the device's memory.
        """
        if self._reset and plan.number > 1:
            self._trainer = self._fresh()
        self._model.train()
        progress, total, norms = Progress(plan.number, num_rounds, len(plan.steps)), Sums(), 0.0
        most = sum(map(len, plan.steps))
        rng = torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else [])
        with rng, closing(uploaded(batches, self._device, most)) as arriving:
            for number, step in enumerate(plan.steps):
                micro_batches = list(islice(arriving, len(step)))
                if len(micro_batches) < len(step):
                    raise TrainingError(
                        f"round {plan.number}: {len(micro_batches)} of {len(step)} micro-batches "
                        "of a step"
                    )
                share = progress.at(number)
                sums, norm = self._trainer.step(
                    micro_batches, learning_rate(share, self._client), share
                )
                total.merge(sums)
                norms += norm
        return RoundResult(len(plan.steps), total, norms / len(plan.steps))

    def _fresh(self) -> Trainer:
        return Trainer(
            self._model,
            self._client,
            self._task,
            self._seed,
            self._partition,
            self._device,
            0.0,
            self._objective,
        )


def rounds_of_clients(
    asked: Sequence[Sequence[int]], steps: Mapping[int, int]
) -> dict[int, dict[int, int]]:
    """Return round -> client -> steps, from the clients asked in rounds 1, 2, ... and the steps
    that each takes in any round."""
    return {
        number: {client: steps[client] for client in clients}
        for number, clients in enumerate(asked, start=1)
    }
