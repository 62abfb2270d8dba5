"""Clients that train on several devices, through the whole system: the run of one device, whatever is killed on the way."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhubert.federation.site import ranks as site_ranks
from fedhubert.federation.site.ranks import train_rank
from fedhubert.federation.wire.messages.rounds import Train
from fedhubert.federation.wire.protocol import Request
from fedhubert.training import rank_pool
from fedhubert.training.rank_pool import RankPool
from fedhubert.training.ranks import Ranks
from tests.integration.test_kills import run as run_killable
from tests.integration.test_kills import state_of

from .test_personal_heads import TASKS, heads_of, run_of, train
from .test_runs import Run, model, rounds, run  # noqa: F401

TWO = ["client.accumulate=2", 'client.device="cpu:0,1"']
FOUR = ["client.accumulate=4", 'client.device="cpu:0,1,2,3"']
KEPT = "client.optimizer_policy=keep"


@pytest.fixture(autouse=True)
def ranks_end() -> Iterator[None]:
    yield
    if rank_pool._pool is not None:
        rank_pool._pool.close()
        rank_pool._pool = None


def losses(result: Any) -> list[float]:
    """The summed losses, and their frames, of what each client has trained and scored, round by round."""
    return [
        value
        for event in rounds(result)
        for client in event["clients"]
        for name, value in sorted(client.items())
        if "cross_entropy" in name or "frames" in name
    ]


def test_two_ranks_a_client_make_the_run_of_one_to_the_bit(run: Run) -> None:  # noqa: F811
    """Each has one micro-batch of a step, so that sums have the same bits; three clients, kept optimisers, the same ranks throughout."""
    alone = run("alone", KEPT, TWO[0], "client.device=cpu")
    together = run("together", KEPT, *TWO)
    assert model(together).equal(model(alone))
    assert losses(together) == pytest.approx(losses(alone), rel=1e-6) and losses(alone)
    assert rank_pool._pool is not None and rank_pool._pool.ready


def test_heads_that_stay_are_trained_by_two_ranks_as_by_one(words: Path, tmp_path: Path) -> None:
    one = run_of(words, tmp_path / "one", *TASKS["classify"], KEPT, TWO[0], "client.device=cpu")
    two = run_of(words, tmp_path / "two", *TASKS["classify"], KEPT, *TWO)
    alone, together = train(one)[0], train(two)[0]
    assert model(together).equal(model(alone))
    last = one.federated.num_rounds
    heads, same = heads_of(one, last), heads_of(two, last)
    assert heads.keys() == same.keys() and heads
    assert all(
        heads[client][name].equal(same[client][name]) for client in heads for name in heads[client]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "apart"),
    [([KEPT], 1e-6), (["client.optimizer=muon", "federated.strategy=FedProx"], 1e-5)],
)
def test_four_ranks_learn_the_same_to_rounding(
    run: Run,  # noqa: F811
    strategy: list[str],
    apart: float,
) -> None:
    """Muon makes directions of equal length of whatever is in a gradient, rounding included."""
    alone = run("alone", *strategy, FOUR[0], "client.device=cpu")
    together = run("together", *strategy, *FOUR)
    assert losses(together) == pytest.approx(losses(alone), rel=apart) and losses(alone)


def dying_rank(ranks: Ranks, request: Request[Train], config: Any, number: int, *given: Any) -> Any:
    """Train as a rank does; but in round 2 and for client 0 the second dies with its gradients in hand."""
    if (ranks.number, request.task.round, number) == (1, 2, 0):
        ranks.add_gradients = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    return train_rank(ranks, request, config, number, *given)


def test_a_rank_killed_in_mid_step_fails_its_client_and_new_ones_train_the_next(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(site_ranks, "train_rank", dying_rank)
    begun: list[RankPool] = []
    monkeypatch.setattr(
        rank_pool, "RankPool", lambda *given: begun.append(RankPool(*given)) or begun[-1]
    )
    result = run("killed", *TWO)
    failed = [event["failed"] for event in rounds(result)]
    (failure,) = failed[1]
    assert (failure["code"], failure["setting"]) == ("ranks", "client.device")
    assert failed[0] == failed[2] == [] and len(begun) == 2
    assert [len(event["clients"]) for event in rounds(result)] == [3, 2, 3]


@pytest.mark.slow
def test_killed_and_resumed_on_other_devices_it_comes_to_the_same_bits(
    tone_folder: Path,
    data: list[str],
    tmp_path: Path,
) -> None:
    """FedAdam, int8 with error feedback, kept optimisers; the server, its clients and their ranks die together."""
    manifest = Path(data[0].partition("=")[2])
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    one = [TWO[0], "client.device=cpu"]
    assert run_killable(alone, manifest, tone_folder, also=one) == 0
    for point, call in (("site state", 4), ("optimiser step", 3)):
        assert run_killable(killed, manifest, tone_folder, point, call, TWO) == -signal.SIGKILL
    assert run_killable(killed, manifest, tone_folder, "journal", 2, one) == -signal.SIGKILL
    assert run_killable(killed, manifest, tone_folder, also=TWO) == 0
    assert state_of(killed) == state_of(alone)
