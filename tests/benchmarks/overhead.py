"""What a client of one small step costs besides the step: a message's CPU seconds from being read to being answered, beside those of the step in it.

``python -m tests.benchmarks.overhead`` trains ``experiment=speech_mini`` on the speech that FEDHUBERT_CORPUS names, in this process, without
Flower's transport; the first quarter of the messages, which load and compile what stays, is left out of the medians and said apart.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import torch
from flwr.app import Message

from fedhubert.compose import compose
from fedhubert.federation.server.session import run_federation
from fedhubert.training.stepping import Trainer
from tests.benchmarks.figures import figure
from tests.federation.in_process import InProcessGrid
from tests.flower import identify

NEVER = 1000
"""More rounds than are played: nothing is scored between the first and the last."""


class TimedGrid(InProcessGrid):
    """Keeps the CPU seconds of each message with steps in it, and of those steps, in ``spent``."""

    def __init__(self, clients: int) -> None:
        super().__init__(
            [{"partition-id": n, "num-partitions": clients} for n in range(clients)],
        )
        self.spent: list[tuple[float, float]] = []
        self.steps_s = 0.0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str] = []
        for message in messages:
            began, self.steps_s = time.thread_time(), 0.0
            with mock.patch.object(Trainer, "step", self._timed(Trainer.step)):
                ids += super().push_messages([message])
            if self.steps_s:
                self.spent.append((time.thread_time() - began, self.steps_s))
        return ids

    def _timed(self, step: Callable[..., object]) -> Callable[..., object]:
        def timed(*given: object) -> object:
            began = time.thread_time()
            done = step(*given)
            self.steps_s += time.thread_time() - began
            return done

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--settings", nargs="*", default=[], help="overrides")
    given = parser.parse_args()
    torch.set_num_threads(1)
    identify()
    with tempfile.TemporaryDirectory() as folder:
        config = compose([
            *("experiment=speech_mini", f"federated.num_rounds={given.rounds}"),
            *(f"out={Path(folder) / 'run'}", f"client.state_dir={Path(folder) / 'state'}"),
            *(f"client.validation_every={NEVER}", *given.settings),
        ])  # fmt: skip
        grid = TimedGrid(config.federated.num_clients)
        run_federation(grid, config)
    first = len(grid.spent) // 4
    message, step = (statistics.median(each) for each in zip(*grid.spent[first:], strict=True))
    warming = sum(whole - steps for whole, steps in grid.spent[:first])
    figure(
        "a message of one step, hubert_tiny with 64 channels: CPU",
        message,
        step,
        "s",
        messages=len(grid.spent),
        besides_steps_share=round(message / step - 1.0, 3),
        besides_steps_of_the_first_s=round(warming, 2),
        of_them=first,
    )


if __name__ == "__main__":
    main()
