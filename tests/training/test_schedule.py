"""The learning rate over rounds."""

import pytest

from fedhubert.config import ClientConfig
from fedhubert.training.local import Progress
from fedhubert.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "progress", "rate"),
    [
        ("linear", 0.0, 0.0),
        ("linear", 0.05, 0.5),
        ("linear", 0.1, 1.0),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, 0.0),
        ("constant", 0.05, 0.5),
        ("constant", 0.55, 1.0),
        ("constant", 1.0, 1.0),
    ],
)
def test_warm_up_then_decay(schedule: str, progress: float, rate: float) -> None:
    client = ClientConfig(lr=1.0, warmup_fraction=0.1, schedule=schedule)
    assert learning_rate(progress, client) == pytest.approx(rate, abs=1e-12)


def test_no_warm_up_and_nothing_but_warm_up() -> None:
    assert learning_rate(0.0, ClientConfig(lr=2.0, warmup_fraction=0.0)) == 2.0
    assert learning_rate(0.5, ClientConfig(lr=2.0, warmup_fraction=1.0)) == 1.0
    assert learning_rate(1.0, ClientConfig(lr=2.0, warmup_fraction=1.0)) == 0.0


def test_rounds_are_one_schedule() -> None:
    client = ClientConfig(lr=5e-4)
    long = [learning_rate(Progress(1, 1, 60).at(step), client) for step in range(60)]
    rounds = [
        learning_rate(Progress(number, 12, 5).at(step), client)
        for number in range(1, 13)
        for step in range(5)
    ]
    assert rounds == pytest.approx(long, rel=1e-9)
    assert all(0 < rate <= 5e-4 for rate in rounds)  # the first step is not idle, nor is the last
    peak = rounds.index(max(rounds))
    assert peak == 5  # the warm-up ends at 8 % of 60 steps, at 4.8
    assert rounds[:6] == sorted(rounds[:6]) and rounds[peak:] == sorted(rounds[peak:], reverse=True)


def test_steps_of_unequal_clients_cover_the_same_stretch_of_the_run() -> None:
    few, many = (Progress(3, 10, steps) for steps in (2, 50))
    assert 0.2 < many.at(0) < few.at(0) < few.at(1) < many.at(49) < 0.3
