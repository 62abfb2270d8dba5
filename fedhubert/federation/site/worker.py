"""A process that does one job after another and keeps what it has loaded; one that dies or hangs is
begun anew.

The process that watches it has none of the job's libraries and none of its memory, so that whatever
becomes of the work, somebody is left who can say so.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from fedhubert.processes import watch_parent

log = logging.getLogger("fedhubert.site")

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Event:
    """What a worker tells who watches it."""


@dataclass(frozen=True)
class Ready(Event):
    """It has loaded what it needs; once, before its first job."""


@dataclass(frozen=True)
class Raised(Event):
    """Its job ended with an exception of this class, and it is free for the next."""

    kind: str


@dataclass(frozen=True)
class Done(Event):
    """Its job is done, and it is free for the next."""


@dataclass(frozen=True)
class Job:
    """A message that waits at a SuperNode: where that is, and the token that lets one have it."""

    address: str
    token: str


Say = Callable[[Event], None]


class Work(Protocol):
    """What a worker does; it is pickled on its way there."""

    def prepare(self) -> None:
        """Load what is slow to load."""

    def __call__(self, job: Job, say: Say) -> None:
        """Do ``job``; ``say`` reports events of its own."""


class WorkerDied(Exception):
    """The worker process is gone; the argument says how."""


class Worker:
    """The process that does ``work``, from whoever watches it.

    Attributes:
        busy: It has a job, or is not ready for its first.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._process: multiprocessing.process.BaseProcess | None = None
        self.busy = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin a new process, in place of one that is still there."""
        self.stop()
        context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
        self._events, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._work, theirs), name="fedhubert-site-worker"
        )
        self._process.start()
        theirs.close()
        self.busy = True

    def stop(self) -> None:
        """Kill the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._events.close()
            self._process = None

    def do(self, job: Job) -> None:
        """Give it a job.

        Raises:
            WorkerDied: it is gone.
        """
        self.busy = True
        try:
            self._events.send(job)
        except OSError:
            raise self._died() from None

    def wait(self, timeout_s: float) -> Event | None:
        """Return its next event, or None if there is none within ``timeout_s``.

        Raises:
            WorkerDied: it is gone, and has nothing more to say.
        """
        assert self._process is not None, "not started"
        ended = self._process.sentinel in wait([self._events, self._process.sentinel], timeout_s)
        try:
            if not self._events.poll():
                if not ended:
                    return None
                raise self._died()
            event = self._events.recv()
        except (EOFError, OSError):
            raise self._died() from None
        assert isinstance(event, Event)
        self.busy = self.busy and not isinstance(event, (Ready, Done, Raised))
        return event

    def _died(self) -> WorkerDied:
        assert self._process is not None
        self._process.join(5.0)
        code = self._process.exitcode
        if code is not None and code < 0:
            return WorkerDied(
                f"killed by {signal.Signals(-code).name}; SIGKILL is mostly the kernel, out of "
                "memory"
            )
        return WorkerDied(f"ended with exit code {code}")


def _serve(work: Work, connection: Connection) -> None:
    """The worker's process: one job after another until its parent is gone."""
    # meant for the parent, which ends this one when it is time
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watch_parent()
    work.prepare()
    connection.send(Ready())
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = connection.recv()
            try:
                work(job, connection.send)
            except Exception as error:
                log.exception("a message could not be answered")
                connection.send(Raised(type(error).__name__))
            else:
                connection.send(Done())


def end_with_parent() -> None:
    """Have the kernel end the calling process when its parent is gone, where it can (Linux); for
    ``preexec_fn``."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
