"""Commands as a person sees them: on a terminal of 80 columns, with a hand on Ctrl-C."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

COLUMNS = 80
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Seen:
    """What was on the terminal.

    Attributes:
        lines: Every state of every line, without colours, in order.
        code: The exit code; negative for a signal.
        stopped_s: From the signal to the end.
    """

    lines: list[str]
    code: int
    stopped_s: float

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def too_wide(self) -> list[str]:
        """Lines that the terminal would wrap."""
        return [line for line in self.lines if cell_len(line) > COLUMNS]


def on_terminal(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    at: str = "",
    press: str = "",
    timeout_s: float = 120.0,
) -> Seen:
    """Run a command; once its output has the pattern ``at``, press Ctrl-C (``press="^C"``), or send
    SIGTERM to all of its group (``press="TERM"``)."""
    child, terminal = pty.fork()
    if child == 0:
        # a shell without job control has its children ignore Ctrl-C, and we may be one
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.execvpe(command[0], list(command), {**env, "TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    started = time.monotonic()
    pressed = 0.0
    said = b""
    try:
        while time.monotonic() - started < timeout_s:
            if not select.select([terminal], [], [], 0.05)[0]:
                continue
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # whoever wrote has ended
                break
            said += piece
            if press and not pressed and re.search(at.encode(), said):
                pressed = time.monotonic()
                if press == "^C":
                    os.write(terminal, b"\x03")
                else:
                    os.killpg(child, signal.SIGTERM)
        else:
            os.killpg(child, signal.SIGKILL)
            raise TimeoutError(said.decode(errors="replace")[-3000:])
        _, status = os.waitpid(child, 0)
    finally:
        os.close(terminal)
    plain = _CODES.sub("", said.decode(errors="replace"))
    lines = [line.rstrip() for line in re.split(r"\r?\n|\r", plain)]
    ended = time.monotonic()
    code = os.waitstatus_to_exitcode(status)
    if pressed:
        print(f"{press} at {at!r}: ended after {ended - pressed:.1f} s, code {code}")
    return Seen([line for line in lines if line], code, ended - pressed)
