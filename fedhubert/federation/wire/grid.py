"""A Flower ``Grid`` that hands replies over one at a time, as they arrive.

Stock ``send_and_receive`` collects every reply in a list first, so the server's memory grows with
the number of clients. This proxy keeps a window of messages in flight and returns a generator: a
strategy's ``aggregate_train`` folds each reply and lets it go.
"""

import threading
import time
from collections.abc import Iterable, Iterator

from fedhubert.errors import FedhubertError
from fedhubert.federation.wire.arrays import free_arrays
from fedhubert.federation.wire.flower import ForwardingGrid, Grid, Message
from fedhubert.federation.wire.messages.nodes import Describe
from fedhubert.federation.wire.packing import pack

MIN_POLL_S, MAX_POLL_S = 0.01, 0.5


SITES_IN_FLIGHT = 64
"""Real sites that train at the same time; their replies wait in the SuperLink's store until they
are folded."""


def messages_in_flight(num_workers: int) -> int:
    """Return the window of a simulation: one message more than there are workers, so that none
    waits for work while the server folds."""
    return num_workers + 1


class RunInterrupted(FedhubertError):
    """The run was asked to stop (Ctrl-C, SIGTERM, a scheduler's warning); it can be resumed."""

    code = "interrupted"


class PackingGrid(ForwardingGrid):
    """Wraps the grid of real sites: the small parts of a message travel as one
    (:mod:`fedhubert.federation.wire.packing`), and those who read replies take them apart."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(
            [
                # a site of another version has to be able to read it, and to say so
                message if message.metadata.message_type == Describe.KIND else pack(message)
                for message in messages
            ]
        )


class StreamingGrid(ForwardingGrid):
    """Wraps another grid; only :meth:`send_and_receive` differs.

    Args:
        grid: The grid that Flower gave the ServerApp.
        window: Messages in flight at once.
        stop: When set, waiting ends with :class:`RunInterrupted`.
    """

    def __init__(
        self, grid: Grid, *, window: int = 16, stop: threading.Event | None = None
    ) -> None:
        super().__init__(grid)
        self._window = window
        self._stop = stop or threading.Event()
        self.unanswered: list[int] = []
        """Node ids that had not answered the last ``send_and_receive`` at its deadline."""
        self._late: dict[str, int] = {}

    def check_stop(self) -> None:
        """Raise :class:`RunInterrupted` if the run was asked to stop."""
        if self._stop.is_set():
            raise RunInterrupted("asked to stop")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield replies as they arrive until all are in or ``timeout`` seconds have passed (then
        see :attr:`unanswered`).

        Closing the iterator early gives up on the rest. Replies that come too late are taken from
        Flower and dropped by later calls.

        Raises:
            RunInterrupted: while waiting, when the run was asked to stop.
        """
        self.unanswered = []
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        waiting = iter(messages)
        in_flight: dict[str, int] = {}
        pause_s = MIN_POLL_S
        try:
            while True:
                exhausted = self._push(waiting, in_flight)
                if exhausted and not in_flight:
                    return
                any_arrived = False
                # one id per pull: a pull of many would hold all their arrays at once
                for message_id in list(in_flight):
                    for reply in self._grid.pull_messages([message_id]):
                        del in_flight[message_id]
                        any_arrived = True
                        try:
                            yield reply
                        finally:
                            # also when the caller stops here: a reply holds a whole model
                            free_arrays(reply)
                if time.monotonic() > deadline:
                    self.unanswered += [
                        *in_flight.values(),
                        *(message.metadata.dst_node_id for message in waiting),
                    ]
                    return
                pause_s = MIN_POLL_S if any_arrived else min(pause_s * 1.5, MAX_POLL_S)
                if in_flight and not any_arrived:
                    self._drop_late_replies()
                    self._stop.wait(pause_s)
                self.check_stop()
        finally:
            self._late.update(in_flight)

    def _push(self, waiting: Iterator[Message], in_flight: dict[str, int]) -> bool:
        """Fill the window; returns whether there is nothing left to send."""
        while len(in_flight) < self._window:
            message = next(waiting, None)
            if message is None:
                return True
            node_id = message.metadata.dst_node_id
            pushed = list(self._grid.push_messages([message]))
            if pushed and pushed[0]:
                in_flight[pushed[0]] = node_id
            else:  # Flower refused it, for example because the node has just left
                self.unanswered.append(node_id)
        return False

    def _drop_late_replies(self) -> None:
        """Take replies that nobody waits for any more out of Flower's state, where they would pile
        up; one at a time, as they may be large."""
        for message_id in list(self._late):
            for reply in self._grid.pull_messages([message_id]):
                del self._late[message_id]
                free_arrays(reply)
