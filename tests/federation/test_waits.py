"""Waits inside Flower are a share of how long nothing happened, in the processes that are ours, and Flower's own where it has moved them."""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from fedhubert.federation.wire.flower import waits
from fedhubert.federation.wire.flower.waits import BUSY_S, IDLE_S, PULLS, SHARE, Patience
from tests.flower import pulled_by, unavailable


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Flower its own waits back after a test."""
    for module, names in pulled_by().items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    now = [100.0]
    monkeypatch.setattr(waits.time, "monotonic", lambda: now[0])
    yield lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_who_idles_longer_asks_more_seldom_and_never_more_seldom_than_flower(
    clock: Callable[[float], None],
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock(seconds)

    patience = Patience(sleep)
    patience.sleep(0.5)  # a reply is being made
    while len(slept) < 400 and slept[-1] < 3.0:
        patience.sleep(3)
    assert slept[:2] == [BUSY_S, IDLE_S] and slept[-1] == 3.0 and slept[1:] == sorted(slept[1:])
    # within the first half minute no wait is more than a share of what has passed
    passed = 0.0
    for seconds in slept[1:-1]:
        assert seconds <= max(IDLE_S, SHARE * (passed + BUSY_S) + 1e-9)
        passed += seconds
    patience.sleep(0.5)
    patience.sleep(3)
    assert slept[-1] == IDLE_S
    assert patience.strftime is time.strftime  # all else is the module's


@pytest.mark.parametrize("of", ["grid", "supernode", "site"])
def test_what_is_not_there_yet_is_asked_for_soon(of: str) -> None:
    waits.shorten_waits(of)
    waits.shorten_waits(of)  # once is enough
    shortened = [
        getattr(module, name)
        for module, names in pulled_by().items()
        for name in names
        if isinstance(getattr(module, name), functools.partial)
    ]
    (pull,) = shortened
    assert pull.keywords == PULLS and not isinstance(pull.func, functools.partial)


def test_an_object_that_comes_late_is_pulled_when_it_is_there() -> None:
    waits.shorten_waits("supernode")
    asked: list[float] = []

    def pull(name: str) -> bytes:
        asked.append(time.monotonic())
        if len(asked) < 4:
            raise unavailable(name)
        return b"content"

    (module,) = [module for module in pulled_by() if "time" in pulled_by()[module]]
    assert module.pull_objects(["object"], pull) == {"object": b"content"}
    assert asked[-1] - asked[0] < 3.0  # Flower's own: seven


def test_a_flower_that_has_moved_them_keeps_its_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "flwr.superlink.grid.http_grid", None)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "fedhubert"):
        waits.shorten_waits("grid")
    assert "http_grid.pull_objects" in caplog.text and "as long as Flower's own" in caplog.text
