"""The SuperNode of a site: started, watched, and started again with growing pauses, as a service
manager would."""

import os
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedhubert.errors import FederationError
from fedhubert.federation.site.worker import end_with_parent
from fedhubert.federation.wire.flower.supernode import (
    KEY_IS_NOT_TAKEN,
    NODE_IS_ONLINE,
    REPLY_IS_NOT_SENT,
    REPLY_IS_SENT,
    SuperNodeApi,
    supernode_command,
)

FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S = 1.0, 30.0, 60.0
STOP_S = 10.0
LOG_BYTES = 10_000_000
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


class Node(Protocol):
    """The SuperNode whose messages a site answers.

    Attributes:
        api: Where it hands them out.
        replies: How many replies it has passed on or given up.
    """

    api: SuperNodeApi
    replies: int

    def has_passed_on(self, replies: int) -> bool:
        """Whether so many replies are gone, as far as one can know."""

    def tend(self) -> bool:
        """Start it if it is not running and it is time to; return whether it is running."""

    def renew(self) -> None:
        """End it, so that it is started anew."""

    def stop(self) -> None:
        """End it for good."""


@dataclass
class DistantNode:
    """A SuperNode that somebody else runs: in a container of its own, for example. ``say``: as of
    :class:`OwnNode`."""

    api: SuperNodeApi
    say: Callable[[str], None]
    replies: int = 0

    def has_passed_on(self, replies: int) -> bool:
        return True

    def tend(self) -> bool:
        return True

    def renew(self) -> None:
        self.say(f"restart the SuperNode at {self.api.address}: it waits for the rest of a reply")

    def stop(self) -> None:
        return None


class OwnNode:
    """A SuperNode as a child of this process; its output goes to ``supernode.log`` in the state
    folder.

    Args:
        superlink: ``HOST:PORT`` of the coordinator.
        certificates: Who vouches for the coordinator; None: plain HTTP.
        key: The site's private key; None: the coordinator asks for none.
        log: File for its output.
        say: Gets a line of words whenever its state changes.
    """

    def __init__(
        self,
        superlink: str,
        certificates: Path | None,
        key: Path | None,
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        self._superlink, self._certificates, self._key, self._log, self._say = (
            superlink,
            certificates,
            key,
            log,
            say,
        )
        self._scratch = tempfile.TemporaryDirectory(prefix="fedhubert-site-")  # mode 0700
        self._secret = Path(self._scratch.name) / "superexec.secret"
        self._secret.write_text(secrets.token_hex(32))
        self.api = SuperNodeApi("", b"")
        self.replies = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0
        self._last = ""

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def has_passed_on(self, replies: int) -> bool:
        return self.replies >= replies

    def tend(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        now = time.monotonic()
        if self._process is not None:
            self._reader.join(5.0)  # its last words
            steady = now - self._started > STEADY_S
            self._pause_s = FIRST_PAUSE_S if steady else min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._not_before = now + self._pause_s
            self._say(
                f"SuperNode: {self._reason(self._process.returncode)}; again in "
                f"{self._pause_s:.0f} s"
            )
            self._process = None
        if now < self._not_before:
            return False
        self._start()
        return True

    def _start(self) -> None:
        port = free_port()
        self.api = SuperNodeApi(f"127.0.0.1:{port}", self._secret.read_bytes())
        command = supernode_command(
            self._superlink, port, self._secret, self._certificates, self._key
        )
        self._process = subprocess.Popen(
            command,
            env=QUIET | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the parent, which ends it in order
            preexec_fn=end_with_parent,  # a SuperNode that stays behind would keep the key in use
        )
        self._started, self._refused = time.monotonic(), False
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        with self._log.open("ab") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                self._hear(line.decode(errors="replace").strip())

    def _hear(self, line: str) -> None:
        if NODE_IS_ONLINE in line:
            self._say(f"connected to {self._superlink}")
        elif KEY_IS_NOT_TAKEN in line:
            self._refused = True
        elif REPLY_IS_SENT in line:
            self.replies += 1
        elif any(words in line for words in REPLY_IS_NOT_SENT):
            self.replies += 1
            self._say(f"SuperNode: the reply did not reach the coordinator: {line[-200:]}")
        if line:
            self._last = line

    def _reason(self, code: int) -> str:
        if self._refused:
            return (
                "the coordinator does not take the key: it counts as in use for up to 60 s after a "
                "site died, or is in use by another "
                "process, or is not registered (`flwr supernode register`)"
            )
        return f"ended with {code}: {self._last[-200:] or 'it said nothing'}"

    def renew(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def stop(self) -> None:
        self._end()
        self._scratch.cleanup()


def free_port() -> int:
    """Return a port of the loopback that nobody listens on.

    Raises:
        FederationError: there is none.
    """
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise FederationError(f"no free port on 127.0.0.1: {error.strerror}") from None
