"""Processes of the tests, found by a mark in their environment."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LONG_S = 300.0  # how long to wait for what takes seconds on a machine with nothing else to do
MARK = "FEDHUBERT_TEST_DEPLOYMENT"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A process in a session of its own, with its output in a file."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log: Path
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = LONG_S) -> None:
        """Wait until its output contains ``text``."""

        def there() -> bool:
            if text in self.text():
                return True
            assert self.popen.poll() is None, (
                f"{self.name} ended with {self.popen.returncode}:\n{self.text()}"
            )
            return False

        wait_until(there, f"{text!r} in the output of {self.name}", timeout_s, self.text)

    def kill(self) -> None:
        """Kill it and what it started at once, as a machine that loses power would."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def terminate(self) -> None:
        """End it as a service manager would, so that the SuperLink knows."""
        self.popen.terminate()
        self.wait()

    def wait(self, timeout_s: float = LONG_S) -> int:
        """Wait until it ends by itself and return its exit code."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} goes on after {timeout_s} s:\n{self.text()}"
            ) from None


def wait_until(
    check: Callable[[], Any], what: str, timeout_s: float, more: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s\n{more()}"
        time.sleep(0.2)


def marked_processes(mark: str) -> Iterator[tuple[int, str]]:
    """Yield (pid, command line) of the live processes that carry ``mark`` in their environment."""
    needle = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                yield (
                    int(folder.name),
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                )
        except (OSError, ProcessLookupError):
            continue


def children(parent: int) -> dict[int, str]:
    """Return the command lines of the processes that ``parent`` has started, by their ids."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and int(_stat(folder)[1]) == parent:
                command = (folder / "cmdline").read_bytes()
                found[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def cpu_s(pid: int) -> float:
    """Return the processor's seconds that a process has taken."""
    taken = _stat(Path(f"/proc/{pid}"))[11:13]
    return sum(map(int, taken)) / os.sysconf("SC_CLK_TCK")


def _stat(folder: Path) -> list[str]:
    """Return what Linux says of a process, from its state on."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
