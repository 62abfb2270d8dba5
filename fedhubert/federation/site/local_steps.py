"""A client's local steps in a round: from the server's model on, with what the site has kept."""

import math
import time

from fedhubert.clients import Metrics
from fedhubert.clients.data import Site
from fedhubert.clients.partitions import Partition
from fedhubert.clients.state import PartitionState
from fedhubert.federation.site.handling import said_of
from fedhubert.federation.site.incoming import Incoming
from fedhubert.federation.site.scoring import batches_at
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.protocol import Request
from fedhubert.training.local import LocalResult, Progress, train_locally
from fedhubert.training.ranks import ALONE, Ranks
from fedhubert.training.schedule import round_progress


def train_partition(
    request: Request[Train],
    site: Site,
    partition: Partition,
    incoming: Incoming,
    state: PartitionState,
    repeated: int | None = None,
    ranks: Ranks = ALONE,
) -> LocalResult:
    """Train from ``incoming`` on, with the optimiser that ``state`` has kept; ``repeated``: the
    micro-batches of an earlier attempt whose like is asked for. ``ranks``: who trains the partition
    beside this process."""
    job, task, number = request.job, request.task, partition.number
    planned = job.client.steps_per_round(partition.train_plan.num_batches)
    # a replayed round takes as many steps as it took then, whatever the clock says
    exactly = None if task.steps is None else said_of(number, task.steps, "steps")
    if exactly is None and repeated is not None:
        exactly = math.ceil(repeated / job.client.accumulate)
    position = said_of(number, task.positions, "positions")
    cached = incoming.load(state.head)
    deadline = time.monotonic() + (job.client.max_seconds or float("inf"))
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps >= exactly if exactly is not None else time.monotonic() >= deadline

    return train_locally(
        cached.model,
        batches_at(
            request,
            site,
            partition,
            partition.train_plan,
            ranks.deal(
                range(position, position + planned * job.client.accumulate), job.client.accumulate
            ),
            round_progress(task.round, job.num_rounds),
        ),
        client=job.client,
        task=job.task,
        progress=Progress(task.round, job.num_rounds, planned),
        seed=job.seed,
        partition=number,
        device=incoming.device,
        proximal_mu=job.proximal_mu,
        optimizer_state=state.optimizer,
        should_stop=should_stop,
        objective=cached.objective,
        ranks=ranks,
    )


def training_metrics(result: LocalResult) -> Metrics:
    return {
        **{f"train_{name}": figure for name, figure in result.metrics.items()},
        "train_steps": result.steps,
        "train_micro_batches": result.micro_batches,
        "train_audio_s": result.audio_s,
        "train_grad_norm": result.grad_norm,
        "train_seconds": result.seconds,
    }
