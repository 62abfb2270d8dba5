"""Shorter waits inside Flower, in the processes that fedhubert starts itself.

A SuperNode that has found no message asks again after three seconds; whoever pulls an object that
is not all there yet asks again after one, two, four and eight. With sites that train for seconds
this is most of a round. Here a wait is a share of the time for which nothing has happened, so that
a site that idles asks as seldom as Flower's own.

Where a Flower has moved a part, its own waits stay, with a warning: they cost time and nothing
else.
"""

import functools
import importlib
import logging
import time
from collections.abc import Callable
from types import ModuleType

from fedhubert.federation.wire.flower.private import UnsupportedFlower, private

log = logging.getLogger("fedhubert")

BUSY_S, IDLE_S = 0.05, 0.25
"""Shortest waits of a SuperNode: for the site's reply, and for the next message."""
SHARE = 0.1
"""Of the time since a message was last at hand: how long a SuperNode waits before it asks again."""

PULLS = {"initial_backoff": 0.05, "backoff_cap": 1.0, "max_tries_per_object": None}
"""How an object that is not there yet is asked for: Flower's two hours stay the limit."""

_SUPERNODE = "flwr.supernode.start_client_internal"
_PULLED_BY = {
    "grid": ("flwr.superlink.grid.http_grid", "pull_objects"),
    "supernode": (_SUPERNODE, "pull_objects"),
    "site": ("flwr.supernode.runtime.run_clientapp", "pull_and_inflate_object_from_tree"),
}


class Patience(ModuleType):
    """Stands for the module ``time`` in the SuperNode's loop, whose waits are written as
    ``time.sleep(3)`` for the next message and ``time.sleep(0.5)`` for what the site is making."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__("time")
        self._sleep, self._busy = sleep, time.monotonic()

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds``, or less."""
        now = time.monotonic()
        if seconds < 1.0:
            self._busy = now
            self._sleep(min(seconds, BUSY_S))
        else:
            self._sleep(min(seconds, max(IDLE_S, SHARE * (now - self._busy))))


def shorten_waits(of: str) -> None:
    """Shorten the waits of this process.

    Args:
        of: What it is: ``grid`` (a ServerApp), ``supernode``, or ``site`` (who does the work of a
            ClientApp).
    """
    module, name = _PULLED_BY[of]
    try:
        pull = private(module, name)
        if isinstance(pull, functools.partial):
            return
        inside = importlib.import_module(module)
        setattr(inside, name, functools.partial(pull, **PULLS))
        if of == "supernode":
            private(_SUPERNODE, "time")
            inside.__dict__["time"] = Patience()
    except UnsupportedFlower as error:
        log.warning("%s: waits are as long as Flower's own", error)
