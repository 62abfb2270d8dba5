"""What several ranks make of a client's step: wall and CPU seconds of the same two micro-batches by one rank and by two, a thread each.

Ranks talk over the loopback (gloo); each step ends with the sum of all gradients. Beside other work on the machine wall times say little: the
CPU seconds say what the ranks cost more than one. ``python -m tests.benchmarks.ranks`` prints one JSON line per figure.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import torch

from fedhubert.training.rank_pool import RankPool
from fedhubert.training.ranks import Ranks
from fedhubert.training.stepping import Trainer
from tests.benchmarks.figures import figure
from tests.benchmarks.step import build_ours, configuration, noise

ACCUMULATE = 2


@dataclass(frozen=True)
class Step:
    """Medians over steps."""

    wall_s: float
    cpu_s: float
    adding_s: float
    """Of the CPU seconds, those in which gradients were added up."""


def time_steps(ranks: Ranks, model: str, rows: int, seconds: float, repeats: int) -> Step:
    """Take a step to warm up, and ``repeats`` that are timed, in one rank."""
    torch.set_num_threads(1)
    config = configuration(model)
    adding: list[float] = []
    add_gradients = ranks.add_gradients

    def timed(*given):  # type: ignore[no-untyped-def]
        started = time.process_time()
        add_gradients(*given)
        adding.append(time.process_time() - started)

    ranks.add_gradients = timed  # type: ignore[method-assign]
    batch = noise(config, rows, seconds)
    own = [replace(batch, position=number) for number in ranks.deal(range(ACCUMULATE), ACCUMULATE)]
    cpu = torch.device("cpu")
    trainer = Trainer(build_ours(config), config.client, config.task, 0, 0, cpu, 0.0, ranks=ranks)
    taken = []
    for _ in range(repeats + 1):
        begun = time.monotonic(), time.process_time()
        trainer.step(own, config.client.lr)
        taken.append((time.monotonic() - begun[0], time.process_time() - begun[1]))
    wall, used = (statistics.median(column) for column in zip(*taken[1:], strict=True))
    return Step(wall, used, statistics.median(adding[1:]))


def compare(model: str, rows: int, seconds: float, repeats: int) -> None:
    """Print the figures of one rank and of two."""
    found = {}
    for count in (1, 2):
        pool = RankPool([torch.device("cpu")] * count)
        try:
            each = pool.run(time_steps, model, rows, seconds, repeats)
        finally:
            pool.close()
        found[count] = Step(
            max(step.wall_s for step in each),
            sum(step.cpu_s for step in each),
            sum(step.adding_s for step in each),
        )
        figure(f"{model}, ranks={count}: wall", found[count].wall_s, None, "s")
        figure(f"{model}, ranks={count}: CPU of all", found[count].cpu_s, None, "s")
        figure(f"{model}, ranks={count}: CPU of adding up", found[count].adding_s, None, "s")
    one, two = found[1], found[2]
    figure(f"{model}: efficiency of two ranks, by wall time", one.wall_s / two.wall_s / 2, None, "")
    figure(f"{model}: efficiency of two ranks, by CPU time", one.cpu_s / two.cpu_s, None, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hubert_base")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    compare(arguments.model, arguments.rows, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
    main()
