"""The terminal while a command works: one line that says what it does, how fast, and for how long
yet; and what libraries write by themselves, kept out of it.

A process does one thing at a time, so there is one line: :func:`doing` says what is done now,
:func:`counting` of how many, :func:`done` that some are done. Without :func:`shown`, or where
standard error is no terminal, all of them are silent.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedhubert.durations import duration

if TYPE_CHECKING:  # a tenth of a second, for commands that need none of it
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

_BAR = 12
_A_SECOND_EACH = 0.2
"""Things a second below which it is said how long one takes."""


@cache
def terminal() -> "Console":
    """Return the console on standard error, which log lines and the live line share."""
    from rich.console import Console

    return Console(stderr=True)


@dataclass
class _Series:
    """Parts of one length that come after another, as rounds do: their time left is that of all."""

    name: str = ""
    first: int = 1
    last: int = 0
    started: float = 0.0


@dataclass
class _Line:
    """What is shown.

    Attributes:
        part, parts: Which of how many of a series this is; 0: of none.
    """

    words: str = ""
    total: int = 0
    unit: str = ""
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    part: int = 0
    parts: int = 0

    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0


_line, _series = _Line(), _Series()
_live: "Live | None" = None
_enabled = False
_apart = False
"""Whether libraries write somewhere else than we do."""


@contextlib.contextmanager
def shown(words: str) -> Iterator[None]:
    """Show the live line until the end, first with ``words``; not where there is no terminal."""
    global _enabled
    if _enabled:
        doing(words)
        yield
        return
    _enabled = bool(getattr(sys.stderr, "isatty", lambda: False)()) and terminal().is_terminal
    try:
        doing(words)
        yield
    finally:
        hide()
        _enabled = False


def doing(words: str, part: int = 0, parts: int = 0) -> None:
    """Say what is done from now on; of a series, which part of how many it is."""
    global _line
    name = re.sub(r"\d+", "", words)
    if parts:
        if _series.name != name or part <= _series.last:  # another job of a sweep has the same
            _series.name, _series.first, _series.started = name, part, time.monotonic()
        _series.last = part
    _line = _Line(words, part=part, parts=parts)
    _show()


def counting(total: int, unit: str) -> None:
    """Say of how many (``unit``: "clients") what is done consists; counts from 0 on."""
    _line.total, _line.unit, _line.done, _line.started = total, unit, 0, time.monotonic()
    _show()


def done(count: int = 1) -> None:
    """Say that ``count`` more are done."""
    _line.done += count


def reached(count: int) -> None:
    """Say that ``count`` are done in all."""
    _line.done = count


def hide() -> None:
    """Take the line away until something is done again: results are about to be printed."""
    global _live
    if _live is not None:
        _live.stop()
        _live = None


def _show() -> None:
    global _live
    if not _enabled or _live is not None:
        return
    from rich.live import Live

    _live = Live(
        console=terminal(),
        get_renderable=lambda: _text(time.monotonic()),
        refresh_per_second=4,
        transient=True,
        redirect_stdout=sys.stdout.isatty() and not _apart,
        redirect_stderr=not _apart,
    )
    _live.start(refresh=True)


def _text(now: float) -> "Text":
    """Return the line, cut to the terminal's width."""
    from rich.text import Text

    line, plain = _line, terminal().options.ascii_only
    text = Text(line.words)
    if line.total:
        full = round(_BAR * line.share())
        text.append("  ").append(("#" if plain else "━") * full, style="green")
        text.append(("-" if plain else "━") * (_BAR - full), style="dim")
        text.append(f"  {line.done}/{line.total} {line.unit}")
    for words in _pace(line, now):
        text.append(", " if line.total else "  ").append(words, style="cyan")
    width = terminal().width - 1
    text.truncate(width, overflow="ellipsis")
    return text


def _pace(line: _Line, now: float) -> Iterator[str]:
    """Yield the rate and the time left, or, while these are unknown, the time that has passed."""
    spent = now - line.started
    if not line.done or spent <= 0:
        yield _seconds(spent) if spent >= 1 else "..."
    else:
        rate = line.done / spent
        yield (
            f"{rate:.{0 if rate >= 10 else 1}f}/s"
            if rate >= _A_SECOND_EACH
            else f"{_seconds(1 / rate)} each"
        )
    begun, ahead = line.share(), 1.0 - line.share()
    if line.parts:
        spent = now - _series.started
        begun, ahead = line.part - _series.first + begun, line.parts - line.part + ahead
    if begun > 0 and ahead > 0:
        whole = f" of all {line.parts}" if line.parts else ""
        yield f"{_seconds(spent / begun * ahead)} left{whole}"


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.0f} s"


@contextlib.contextmanager
def libraries_write_to(path: Path) -> Iterator[None]:
    """Have what libraries (Ray, Flower, decoders of audio) print by themselves appended to
    ``path``: the process's standard output and error lead there, and ours goes on to the terminal.

    Only whoever uses :func:`terminal` is seen until the end. Does nothing where standard error is
    not the process's own, as under a test.
    """
    global _apart
    was_shown = _live is not None
    hide()
    try:
        ours = sys.stderr.fileno() == 2 and sys.stdout.fileno() == 1
    except (AttributeError, OSError, ValueError):
        ours = False
    if not ours or _apart:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:  # no place for it: it is seen
        yield
        return
    kept = [os.dup(number) for number in (1, 2)]
    out = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding, errors="replace", buffering=1)
    _flush()
    terminal().file, _apart = out, True
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    if was_shown:
        _show()
    try:
        yield
    finally:
        hide()
        _flush()
        for number, file in zip((1, 2), kept, strict=True):
            os.dup2(file, number)
            os.close(file)
        terminal().file, _apart = sys.stderr, False
        out.close()
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
