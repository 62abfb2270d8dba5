"""What a person sees of a run: log lines in the terminal and in the run's log file, and a progress
bar where there is a terminal."""

import logging
import sys
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LOGGER, TERMINAL_ONLY = "fedhubert", "fedhubert.terminal"
"""Loggers of all lines, and of those that the run's log file does not get: it is passed on."""


def log_to_terminal(*, verbose: bool = False) -> Console:
    """Send the project's log lines to standard error; returns the console that progress bars must
    share."""
    console = Console(stderr=True)
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate, logger.disabled = False, False  # Hydra's sweeps disable loggers that exist
    logging.getLogger(TERMINAL_ONLY).disabled = False
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console,
            show_level=False,
            show_path=False,
            rich_tracebacks=False,
            log_time_format="%H:%M:%S",
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    return console


def output_console(width: int) -> Console:
    """Return a console for results on standard output, ``width`` columns wide where that is no
    terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def log_to_file(path: Path) -> logging.Handler:
    """Also append the project's log lines to ``path``; close the returned handler with
    :func:`stop_logging_to`."""
    handler = logging.FileHandler(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    handler.addFilter(lambda record: record.name != TERMINAL_ONLY)
    logger = logging.getLogger(LOGGER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


def stop_logging_to(handler: logging.Handler) -> None:
    logging.getLogger(LOGGER).removeHandler(handler)
    handler.close()


class RoundProgress:
    """A bar of the clients done in the current round, on a terminal; silent otherwise (each round
    logs a line anyway)."""

    def __init__(self, console: Console | None) -> None:
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("clients"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> "RoundProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, round_number: int, done: int, asked: int) -> None:
        if not self._bar:
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=asked)
        self._bar.update(
            self._task, description=f"round {round_number}", total=asked, completed=done
        )
