"""``fedhubert site``'s process: it watches the SuperNode and the worker, gives the one's messages
to the other, and says what goes on.

Nothing of a message but its kind, size and time limit is looked at here. Whatever the worker does
with it, the coordinator gets a reply: the worker's, or one that says that there is none.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fedhubert.federation.site.supernode import Node
from fedhubert.federation.site.work import LOST, Pulled, Pushing
from fedhubert.federation.site.worker import Done, Job, Raised, Ready, Worker, WorkerDied
from fedhubert.federation.wire.flower.supernode import Task, Unreachable, error_reply

POLL_S = 0.25
BEAT_S = 15.0
"""A SuperNode takes a task for lost after 60 s without a beat."""
PULL_LIMIT_S = 1800.0
MARGIN_S = 60.0
GRACE_S = 10.0
"""For so long a message may go on once the site is told to stop."""
DELIVERY_S = 10.0
RETRY_S = 5.0
ALIVE_S = 5.0


class Resident:
    """One site.

    Args:
        node: The SuperNode.
        worker: Who answers the messages.
        say: Gets a line of words of whatever happens.
        alive: A file that is touched for as long as this process goes round, for health checks.
        margin_s, grace_s: See :data:`MARGIN_S` and :data:`GRACE_S`.
    """

    def __init__(
        self,
        node: Node,
        worker: Worker,
        say: Callable[[str], None],
        *,
        alive: Path | None = None,
        margin_s: float = MARGIN_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._node, self._worker, self._say = node, worker, say
        self._alive, self._touched_s = alive, 0.0
        self._margin_s, self._grace_s = margin_s, grace_s
        self._stop = threading.Event()
        self._signal = 0
        self._away = False
        self._due = 0

    def stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Have :meth:`run` end; a signal handler."""
        self._signal = number
        self._stop.set()

    def run(self) -> int:
        """Answer messages until told to stop; returns the exit code: 0, or 130 after Ctrl-C."""
        try:
            self._worker.start()
            while not self._stop.is_set():
                self._live()
                running = self._node.tend()
                if not self._ready() or not running:
                    self._stop.wait(POLL_S)
                    continue
                job = self._claim()
                if job is None:
                    self._stop.wait(POLL_S)
                else:
                    self._see_through(job)
            self._say("stopping: the SuperNode takes its leave")
            self._await_delivery()
        finally:
            self._worker.stop()
            self._node.stop()
        return 130 if self._signal == signal.SIGINT else 0

    def _live(self) -> float:
        """Show that this process goes round; returns the time."""
        now = time.monotonic()
        if self._alive is not None and now - self._touched_s > ALIVE_S:
            self._alive.touch()
            self._touched_s = now
        return now

    def _ready(self) -> bool:
        """Whether the worker waits for a job; one that died meanwhile is begun anew."""
        try:
            event = self._worker.wait(0.0)
        except WorkerDied as died:
            self._say(
                f"the worker {died}; a new one in {RETRY_S:.0f} s (site.log in the state folder "
                "may say more)"
            )
            self._stop.wait(RETRY_S)
            self._worker.start()
            return False
        if isinstance(event, Ready):
            self._say("ready: torch and the handlers are loaded")
        return not self._worker.busy

    def _claim(self) -> Job | None:
        try:
            token = self._node.api.claim()
            if self._away:
                self._away = False
                self._say(f"SuperNode at {self._node.api.address}: there")
        except Unreachable as error:
            if not self._away:
                self._away = True
                self._say(f"waiting for the {error}")
            return None
        return None if token is None else Job(self._node.api.address, token)

    def _see_through(self, job: Job) -> None:
        started = time.monotonic()
        self._due = self._node.replies + 1
        deadline, stop_at, beat_at = started + PULL_LIMIT_S, float("inf"), started + BEAT_S
        asked: Pulled | None = None
        sent: Pushing | None = None
        why = ""
        try:
            self._worker.do(job)
            while not why:
                event = self._worker.wait(POLL_S)
                now = self._live()
                if isinstance(event, Pulled):
                    asked, deadline = event, now + event.limit_s + self._margin_s
                    self._say(f"{_name(asked)} asked{_size(asked.num_bytes)}")
                elif isinstance(event, Pushing):
                    sent = event
                elif isinstance(event, Done) and asked is not None and sent is not None:
                    return self._tell(job, asked, sent, now - started)
                elif isinstance(event, Raised):
                    return self._fail(
                        job, asked, sent, f"{event.kind} (see site.log in the state folder)"
                    )
                if self._stop.is_set():
                    stop_at = min(stop_at, now + self._grace_s)
                if now > deadline:
                    why = f"not done after {now - started:.0f} s, when nobody waits for it any more"
                elif now > stop_at:
                    why = "the site stops"
                elif now > beat_at:
                    beat_at = now + BEAT_S
                    why = self._beat(job)
        except WorkerDied as died:
            why = f"the worker {died}"
        self._worker.stop()
        self._fail(job, asked, sent, why)
        if not self._stop.is_set():
            self._worker.start()

    def _beat(self, job: Job) -> str:
        """Say that the message is being worked on; return why it should not be, if so."""
        if not self._node.tend() or self._node.api.address != job.address:
            return "the SuperNode is gone"
        try:
            return "" if self._node.api.beat(job.token) else "nobody wants it any more"
        except Unreachable:
            return ""  # it may come back

    def _tell(self, job: Job, asked: Pulled, sent: Pushing, seconds: float) -> None:
        with contextlib.suppress(Unreachable):  # the reply is there, which is all that matters
            self._node.api.finish(job.token)
        done = "refused" if sent.refused and not sent.num_bytes else "done"
        words = f": {', '.join(sorted(set(sent.refused))[:5])}" if sent.refused else ""
        self._say(
            f"{_name(asked)} {done} in {seconds:.1f} s{words}; reply sent{_size(sent.num_bytes)}"
        )

    def _fail(self, job: Job, asked: Pulled | None, sent: Pushing | None, why: str) -> None:
        """Answer a message whose work has come to nothing."""
        said = f"{'message' if asked is None else _name(asked)} failed: {why}"
        due, self._due = self._due, 0
        if sent is not None:
            # the SuperNode waits for the rest of a reply that does not come
            self._say(f"{said}, while its reply was leaving")
            return self._node.renew()
        try:
            fallback = self._unread(job) if asked is None else asked.fallback
            if fallback is None:
                return self._say(
                    f"{said}; the SuperNode tells the coordinator within a minute, as it hears no "
                    "more of it"
                )
            self._node.api.push(job.token, fallback.message, fallback)
            self._node.api.finish(job.token, LOST)
        except Unreachable as error:
            return self._say(f"{said}; and the coordinator cannot be told: {error}")
        self._due = due
        self._say(f"{said}; the coordinator is told that there is no reply")

    def _unread(self, job: Job) -> Task | None:
        """Return what to reply to a message that the worker has not read; None if it is not to be
        had any more."""
        task = self._node.api.pull_envelope(job.token)
        return (
            None
            if task is None
            else Task(error_reply(task.message, LOST), task.run_id, task.node_id)
        )

    def _await_delivery(self) -> None:
        """Give the SuperNode the time to pass the last reply on."""
        deadline = time.monotonic() + DELIVERY_S
        while (
            not self._node.has_passed_on(self._due)
            and self._node.tend()
            and time.monotonic() < deadline
        ):
            time.sleep(POLL_S)


def _name(asked: Pulled) -> str:
    return f"{asked.kind} {asked.group}" if asked.group.isdigit() else asked.kind


def _size(num_bytes: int) -> str:
    return f", {num_bytes / 1e6:.1f} MB" if num_bytes else ""
