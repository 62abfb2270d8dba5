"""What a simulation's clients write into their site's log, said on the run's terminal alone: in a
simulation the site is the user's own."""

import contextlib
import json
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from fedhubert.reporting.console import TERMINAL_ONLY

log = logging.getLogger(TERMINAL_ONLY)

_LOOK_S = 0.5
_MOST_SAID = 100


@contextlib.contextmanager
def clients_heard() -> Iterator[Path]:
    """Give a file for the workers' failures, and say what arrives in it: each message once, and no
    more than a hundred."""
    with tempfile.TemporaryDirectory(prefix="fedhubert-") as folder:
        file, over = Path(folder, "clients.log"), threading.Event()
        thread = threading.Thread(target=_say, args=(file, over), daemon=True)
        thread.start()
        try:
            yield file
        finally:
            over.set()
            thread.join()


def _say(file: Path, over: threading.Event) -> None:
    said: set[str] = set()
    place, last = 0, False
    while not last:
        last = over.wait(_LOOK_S)
        lines, place = _whole_lines(file, place)
        for line in lines:
            if line not in said and len(said) < _MOST_SAID:
                said.add(line)
                log.warning("client: %s", json.loads(line))
                if len(said) == _MOST_SAID:
                    log.warning("client: more is in site.log of client.state_dir")


def _whole_lines(file: Path, place: int) -> tuple[list[str], int]:
    """Return the lines that end after ``place``, and where they end."""
    try:
        with open(file, "rb") as opened:
            opened.seek(place)
            data = opened.read()
    except OSError:  # nothing has failed yet
        return [], place
    whole, newline, _ = data.rpartition(b"\n")
    return whole.decode().splitlines(), place + len(whole) + len(newline)
